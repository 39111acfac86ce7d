"""The memorisation problems: repeat the first symbols of a sequence after a long blank.

The 5-bit and 20-bit problems of Martens & Sutskever 2011, in the layout of the code of Pascanu et
al. 2013 ("On the difficulty of training recurrent neural networks"): n symbols, T blanks, a cue at
which the first symbol is asked back, and blanks while the others are.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.draws import (
    check_draw,
    check_flag,
    check_length,
    check_outputs,
    compile_kernel,
    numpy_dtype,
    subtract_mean,
)
from hfcore.losses import Loss, SoftmaxCrossEntropy

Scored = Literal["all", "recall"]

# all_sequences refuses larger sets: the 20-bit problem has 9,765,625 sequences.
MAX_SEQUENCES = 1 << 16


class Memorization:
    """Repeat n symbols from an alphabet of k after T blanks.

    A sequence has S = T + 2n steps. Inputs ``[S,B,k+2]`` are one-hot: a symbol (channels 0 ..
    k−1) at steps 0 .. n−1, then blanks (channel k), and the cue (channel k+1) at step n + T.
    Targets are classes ``[S,B]``: blank (class k) up to step n + T − 1, then the n symbols in the
    order of their appearance. Symbols are independent and equally likely. A sequence is wrong
    when any of its last n steps is.

    Args:
        length: T, at least 1.
        scored: steps that enter the loss, ``"all"`` of them or the n of the ``"recall"``.
        centre: reduce inputs by their expected values (Sutskever et al. 2013, A.5); classes stay.

    Raises ValueError or TypeError naming the option that is out of range.
    """

    name: str
    symbols: int
    """n, the length of what is to be remembered."""
    alphabet: int
    """k, the number of different symbols."""
    input_size: int
    output_size: int
    esn_input_scale = 0.1
    """Standard deviation of the input weights of an ESN start (Sutskever et al. 2013, table 4)."""

    def __init__(self, length: int = 50, *, scored: Scored = "all", centre: bool = False) -> None:
        check_length(length, 1, "there is something to wait for")
        if scored not in get_args(Scored):
            raise ValueError(f"scored: got {scored!r}, need one of 'all', 'recall'")
        self.length = length
        self.scored: Scored = scored
        self.centre = check_flag("centre", centre)
        self.input_size = self.alphabet + 2
        self.output_size = self.alphabet + 1
        self.loss: Loss = SoftmaxCrossEntropy()

    @property
    def steps(self) -> int:
        """S = T + 2n, the length of every sequence."""
        return self.length + 2 * self.symbols

    @property
    def bias_error(self) -> float:
        """Expected :meth:`errors` of always answering one symbol: n (1 − 1/k).

        It is 2.5 (5 · ½) and 8.0 (10 · 0.8), the "biases" column of table 5. Output biases
        alone come to it when only the recalled steps are scored; over all steps blanks are the
        most frequent class, and biases that answer them make n errors.
        """
        return self.symbols * (1.0 - 1.0 / self.alphabet)

    @property
    def mean_target(self) -> Tensor:
        """Frequencies of the classes among the scored steps, float64 ``[k+1]``.

        Over all steps n/(k S) for each symbol and (T + n)/S for the blank; over the recalled ones
        1/k and 0.
        """
        n, k = self.symbols, self.alphabet
        steps = self.steps if self.scored == "all" else n
        frequency = torch.full((k + 1,), n / (k * steps), dtype=torch.float64)
        frequency[k] = (steps - n) / steps
        return frequency

    def mean_input(self, length: int | None = None) -> Tensor:
        """Expected inputs over the S steps, before any centring, float64 ``[k+2]``.

        n/(k S) for each symbol, (T + n − 1)/S for the blank, 1/S for the cue. ``length`` is S, or
        None, since there is one length only.
        """
        n, k, S = self.symbols, self.alphabet, self.steps
        if length not in (None, S):
            raise ValueError(f"length: got {length}, need {S} = T + 2n")
        mean = torch.full((k + 2,), n / (k * S), dtype=torch.float64)
        mean[k] = (S - n - 1) / S
        mean[k + 1] = 1 / S
        return mean

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """``size`` sequences drawn with replacement; both dtypes get the same draw.

        Inputs ``[S,size,k+2]``, targets int64 ``[S,size]``; mask bool ``[S,size]``, None where
        all steps are scored. The generator must not be used by another thread meanwhile.
        """
        real = check_draw(size, generator, dtype)
        return self._assemble(
            generator.integers(0, self.alphabet, (self.symbols, size), np.int64), real
        )

    def all_sequences(self, dtype: torch.dtype = torch.float32) -> Batch:
        """Every sequence once, kⁿ of them, the first symbol changing fastest.

        The 5-bit problem has 32, the whole training set of Martens & Sutskever 2011. Raises
        ValueError where there are more than 65,536.
        """
        n, k = self.symbols, self.alphabet
        if k**n > MAX_SEQUENCES:
            raise ValueError(
                f"all_sequences: {self.name} has {k**n:,} of them, need at most {MAX_SEQUENCES:,}"
            )
        return self._assemble(
            np.arange(k**n, dtype=np.int64) // k ** np.arange(n, dtype=np.int64)[:, None] % k,
            numpy_dtype(dtype),
        )

    def wrong(self, s: Tensor, batch: Batch) -> Tensor:
        """Bool ``[B]``: any of the n recalled symbols is wrong in ``s [S,B,k+1]``.

        A leading group axis ``[G,S,B,k+1]`` gives ``[G,B]``.
        """
        return self._missed(s, batch).any(-2)

    def errors(self, s: Tensor, batch: Batch) -> Tensor:
        """Float64 ``[B]``: how many of the n recalled symbols are wrong.

        Its mean over sequences is in the units of table 5, which are wrong steps of a sequence
        although its text says "fraction": the entries of its "biases" column are 2.5 = 5 · ½ and
        8.0 = 10 · 0.8. Shapes as in :meth:`wrong`.
        """
        return self._missed(s, batch).sum(-2).double()

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {
            "name": self.name,
            "length": self.length,
            "scored": self.scored,
            "centre": self.centre,
        }

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.length}, scored={self.scored!r}, centre={self.centre!r})"
        )

    def _assemble(self, drawn: np.ndarray, real: type[np.floating[Any]]) -> Batch:
        """The batch of the symbols ``drawn [n,B]``."""
        n, B = drawn.shape
        inputs = np.zeros((self.steps, B, self.input_size), real)
        targets = np.full((self.steps, B), self.alphabet, np.int64)
        _fill(drawn, inputs, targets)
        if self.centre:
            subtract_mean(inputs, self.mean_input().numpy().astype(real))
        mask = None
        if self.scored == "recall":
            mask = torch.zeros(self.steps, B, dtype=torch.bool)
            mask[-n:] = True
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), mask)

    def _missed(self, s: Tensor, batch: Batch) -> Tensor:
        """Bool ``[n,B]``: the asked symbol has not the largest output; ties and NaN miss it."""
        shape = [*batch.targets.shape, self.output_size]
        check_outputs(s, shape, "of outputs for the targets", batch.targets)
        recalled = s[..., -self.symbols :, :, :]
        asked = batch.targets[-self.symbols :, :, None].expand((*recalled.shape[:-1], 1))
        others = recalled.scatter(-1, asked, -torch.inf).amax(-1)
        return ~(recalled.gather(-1, asked).squeeze(-1) > others)


class Memorization5(Memorization):
    """The 5-bit problem, n = 5 symbols from k = 2; otherwise :class:`Memorization`."""

    name = "memorization-5bit"
    symbols = 5
    alphabet = 2


class Memorization20(Memorization):
    """The 20-bit problem, n = 10 symbols from k = 5; otherwise :class:`Memorization`."""

    name = "memorization-20bit"
    symbols = 10
    alphabet = 5


@compile_kernel
def _fill(drawn: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> None:
    """Write symbols, blanks and the cue into zeros, and the symbols into targets of blanks."""
    n, B = drawn.shape
    S, _, channels = inputs.shape
    for t in range(n):
        for b in range(B):
            inputs[t, b, drawn[t, b]] = 1.0
            targets[S - n + t, b] = drawn[t, b]
    for t in range(n, S):
        channel = channels - 1 if t == S - n else channels - 2
        for b in range(B):
            inputs[t, b, channel] = 1.0
