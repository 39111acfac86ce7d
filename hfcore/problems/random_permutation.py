"""Random permutation: repeat the first symbol of a sequence after many that say nothing.

Experiment 2b of Hochreiter & Schmidhuber 1997, as Martens & Sutskever 2011 use it, apart from what
is numbered here.

1. There are 100 symbols in all, two of which may come first, as in the release of 2011; in 1997
   there are 101.
2. Only the answer at the last step counts in the loss, as in the code of Pascanu et al. 2013; the
   prediction of every next symbol, of which all but the last cannot be had, is an option.
3. A sequence has T inputs, whatever the number of symbols; in 1997 both are 100.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hfcore.arguments import count, naming_options
from hfcore.batches import Batch
from hfcore.draws import check_draw, check_flag, check_length, compile_kernel, subtract_mean
from hfcore.problems.base import Criterion1997
from hfcore.problems.classes import LastClass

Scored = Literal["last", "all"]

# Symbols that may come first; the others fill the sequence.
FIRST = 2


class RandomPermutation(LastClass):
    """Repeat the first of T symbols, which is one of two, after the T − 1 others.

    Inputs ``[T,B,symbols]`` are one-hot: symbol 0 or 1 at step 0, then symbols from 2 on, all
    independent and equally likely. Targets are the next symbols ``[T,B]``, the last of them that
    of step 0. A sequence is wrong when another symbol, or none, has the largest output at the last
    step.

    Args:
        length: T, at least 2.
        symbols: at least 3.
        scored: steps that enter the loss, the ``"last"`` or ``"all"`` of them.
        centre: reduce inputs by their expected values (Sutskever et al. 2013, A.5); classes stay.

    Raises ValueError or TypeError naming the option that is out of range.
    """

    name = "random-permutation"
    criterion_1997 = Criterion1997(0.25, sequences=10_000)
    esn_input_scale = 0.1
    """Standard deviation of the input weights of an ESN start: that of memorisation, which is
    one-hot too."""

    @naming_options
    def __init__(
        self,
        length: int = 50,
        *,
        symbols: int = 100,
        scored: Scored = "last",
        centre: bool = False,
    ) -> None:
        check_length(length, 2, "a symbol comes between the first and its repetition")
        if scored not in get_args(Scored):
            raise ValueError(f"scored: got {scored!r}, need one of 'last', 'all'")
        super().__init__()
        self.length = length
        self.symbols = count("symbols", symbols, least=FIRST + 1)
        self.scored: Scored = scored
        self.centre = check_flag("centre", centre)
        self.input_size = self.output_size = self.symbols

    def mean_input(self, length: int | None = None) -> Tensor:
        """Expected inputs over the T steps, before any centring, float64 ``[symbols]``.

        1/(2 T) for the symbols that may come first; the others share the rest. ``length`` is T, or
        None, since there is one length only.
        """
        T = self.length
        if length not in (None, T):
            raise ValueError(f"length: got {length}, need {T} = T")
        others = self.symbols - FIRST
        mean = torch.full(
            (self.symbols,), (T - 1) / (others * T), dtype=torch.float64, device="cpu"
        )
        mean[:FIRST] = 1 / (FIRST * T)
        return mean

    @property
    def mean_target(self) -> Tensor:
        """Frequencies of the symbols among the scored targets, float64 ``[symbols]``.

        Over all steps those of the inputs, :meth:`mean_input`.
        """
        if self.scored == "all":
            return self.mean_input()
        frequency = torch.zeros(self.symbols, dtype=torch.float64, device="cpu")
        frequency[:FIRST] = 1 / FIRST
        return frequency

    @property
    def bias_error(self) -> float:
        """Expected :meth:`errors` of always answering one of the two symbols that come first: ½."""
        return 1.0 - 1.0 / FIRST

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """``size`` sequences; both dtypes get the same draw.

        Inputs ``[T,size,symbols]``, targets int64 ``[T,size]``; mask bool ``[T,size]``, None where
        all steps are scored. The generator must not be used by another thread meanwhile.
        """
        real = check_draw(size, generator, dtype)
        drawn = np.empty((self.length, size), np.int64)
        drawn[0] = generator.integers(0, FIRST, size)
        drawn[1:] = generator.integers(FIRST, self.symbols, (self.length - 1, size))
        inputs = np.empty((*drawn.shape, self.symbols), real)
        _fill(drawn, inputs)
        if self.centre:
            subtract_mean(inputs, self.mean_input().numpy().astype(real))
        mask = None
        if self.scored == "last":
            mask = torch.zeros(self.length, size, dtype=torch.bool, device="cpu")
            mask[-1] = True
        targets = np.roll(drawn, -1, axis=0)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), mask)

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {**super().config(), "symbols": self.symbols, "scored": self.scored}


@compile_kernel
def _fill(drawn: np.ndarray, inputs: np.ndarray) -> None:
    """Make ``inputs [T,B,symbols]`` the one-hot rows of the symbols ``drawn [T,B]``.

    A row is zeroed when its one is written, while it is in the cache.
    """
    T, B, symbols = inputs.shape
    for t in range(T):
        for b in range(B):
            for symbol in range(symbols):
                inputs[t, b, symbol] = 0.0
            inputs[t, b, drawn[t, b]] = 1.0
