"""The memorisation problems: repeat the first symbols of a sequence after a long blank.

The 5-bit and 20-bit problems of Martens & Sutskever 2011: n symbols, blanks, a cue at which the
first symbol is asked back, and blanks while the others are. Apart from what is numbered here:

1. In the paper a sequence has n + T steps, T of them after the symbols. The default has T blanks
   between the symbols and the cue, T + 2n steps, the layout of the code of Pascanu et al. 2013 ("On
   the difficulty of training recurrent neural networks"); ``layout`` chooses.
2. Hochreiter & Schmidhuber 1997 have no such problem. Their criterion is that of their experiment
   6, whose targets are classes too, at all recalled steps.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hfcore.arguments import count, naming_options
from hfcore.batches import Batch
from hfcore.draws import (
    check_draw,
    check_flag,
    check_length,
    check_outputs,
    check_words,
    compile_kernel,
    numpy_dtype,
    subtract_mean,
)
from hfcore.losses import Loss, SoftmaxCrossEntropy
from hfcore.problems.base import Criterion1997, Described
from hfcore.problems.classes import class_deviation, missed

Scored = Literal["all", "recall"]
Layout = Literal["pascanu2013", "martens2011"]

# all_sequences refuses larger sets: the 20-bit problem has 9,765,625 sequences.
MAX_SEQUENCES = 1 << 16


class Memorization(Described):
    """Repeat n symbols from an alphabet of k after a blank.

    A sequence has S = T + 2n steps, in the paper's layout n + T. Inputs ``[S,B,k+2]`` are one-hot:
    a symbol (channels 0 .. k−1) at steps 0 .. n−1, then blanks (channel k), and the cue (channel
    k+1) at step S − n. Targets are classes ``[S,B]``: blank (class k) up to step S − n − 1, then
    the n symbols in the order of their appearance. Symbols are independent and equally likely. A
    sequence is wrong when any of its last n steps is.

    Args:
        length: T, at least 1, in the paper's layout at least n + 1.
        layout: ``"pascanu2013"`` for T blanks before the cue, ``"martens2011"`` for T steps after
            the symbols, T − n of them blanks before the cue.
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

    criterion_1997 = Criterion1997(0.3, mean_below=0.1)

    @naming_options
    def __init__(
        self,
        length: int = 50,
        *,
        layout: Layout = "pascanu2013",
        scored: Scored = "all",
        centre: bool = False,
    ) -> None:
        if layout not in get_args(Layout):
            raise ValueError(f"layout: got {layout!r}, need one of 'pascanu2013', 'martens2011'")
        self.layout: Layout = layout
        recall = self.symbols if layout == "martens2011" else 0
        check_length(length, recall + 1, "there is something to wait for")
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
        """S, the length of every sequence: T + 2n, in the paper's layout n + T."""
        return self.length + (1 if self.layout == "martens2011" else 2) * self.symbols

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

        Over all steps n/(k S) for each symbol and (S − n)/S for the blank; over the recalled ones
        1/k and 0.
        """
        n, k = self.symbols, self.alphabet
        steps = self.steps if self.scored == "all" else n
        frequency = torch.full((k + 1,), n / (k * steps), dtype=torch.float64, device="cpu")
        frequency[k] = (steps - n) / steps
        return frequency

    def mean_input(self, length: int | None = None) -> Tensor:
        """Expected inputs over the S steps, before any centring, float64 ``[k+2]``.

        n/(k S) for each symbol, (S − n − 1)/S for the blank, 1/S for the cue. ``length`` is S, or
        None, since there is one length only.
        """
        n, k, S = self.symbols, self.alphabet, self.steps
        if length not in (None, S):
            formula = "n + T" if self.layout == "martens2011" else "T + 2n"
            raise ValueError(f"length: got {length}, need {S} = {formula}")
        mean = torch.full((k + 2,), n / (k * S), dtype=torch.float64, device="cpu")
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

    def counted_words(self, size: int) -> int:
        """A word for each symbol; see :class:`CountedProblem`."""
        return self.symbols * size

    @property
    def counted_steps(self) -> Tensor | None:
        """The scored steps, bool ``[S]``; None for all of them."""
        if self.scored == "all":
            return None
        return torch.arange(self.steps, device="cpu") >= self.steps - self.symbols

    def counted_batches(
        self, words: Tensor, size: int, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """K batches of ``size`` sequences of ``words`` int64 ``[K,W]``, where these lie.

        Shapes are those of :meth:`batch` with K·size sequences; see :class:`CountedProblem`.
        """
        numpy_dtype(dtype)
        n, k = self.symbols, self.alphabet
        K, B = check_words(words, self.counted_words(size)), len(words) * size
        drawn = (words % k).view(K, n, size).transpose(0, 1).reshape(n, B)
        channels = words.new_full((self.steps, B), k)
        channels[:n], channels[-n] = drawn, k + 1
        inputs = (channels.unsqueeze(-1) == torch.arange(k + 2, device=words.device)).to(dtype)
        targets = words.new_full((self.steps, B), k)
        targets[-n:] = drawn
        if self.centre:
            inputs -= self.mean_input().to(words.device, dtype)
        steps = self.counted_steps
        mask = None if steps is None else steps.to(words.device).unsqueeze(1).repeat(1, B)
        return Batch(inputs, targets, mask)

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
        return missed(*self._recalled(s, batch)).any(-2)

    def errors(self, s: Tensor, batch: Batch) -> Tensor:
        """Float64 ``[B]``: how many of the n recalled symbols are wrong.

        Its mean over sequences is in the units of table 5, which are wrong steps of a sequence
        although its text says "fraction": the entries of its "biases" column are 2.5 = 5 · ½ and
        8.0 = 10 · 0.8. Shapes as in :meth:`wrong`.
        """
        return missed(*self._recalled(s, batch)).sum(-2).double()

    def deviation(self, s: Tensor, batch: Batch) -> Tensor:
        """Float64 ``[B]``: the largest error of the predictions, which are probabilities, at any of
        the n recalled steps. Shapes as in :meth:`wrong`.
        """
        return class_deviation(*self._recalled(s, batch)).amax(-2)

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {
            "name": self.name,
            "length": self.length,
            "layout": self.layout,
            "scored": self.scored,
            "centre": self.centre,
        }

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
            mask = torch.zeros(self.steps, B, dtype=torch.bool, device="cpu")
            mask[-n:] = True
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), mask)

    def _recalled(self, s: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs ``[…,n,B,k+1]`` and classes ``[n,B]`` of the recalled steps."""
        shape = [*batch.targets.shape, self.output_size]
        check_outputs(s, shape, "of outputs for the targets", batch.targets)
        return s[..., -self.symbols :, :, :], batch.targets[-self.symbols :]


class Memorization5(Memorization):
    """The 5-bit problem, n = 5 symbols from k = 2; otherwise :class:`Memorization`.

    Its 32 sequences are all there are: the training set of Martens & Sutskever 2011, the test set,
    and what the policies of :mod:`hfcore.minibatches` choose from.
    """

    name = "memorization-5bit"
    symbols = 5
    alphabet = 2
    criterion_1997 = Criterion1997(0.3, mean_below=0.1, sequences=32)

    def all_cases(self, dtype: torch.dtype = torch.float32) -> Batch:
        """Every sequence once, as :meth:`all_sequences`: inputs ``[S,32,4]``."""
        return self.all_sequences(dtype)

    def test_set(self, size: int, dtype: torch.dtype = torch.float32) -> list[Batch]:
        """Every sequence once, whatever the ``size``: one batch, inputs ``[S,32,4]``."""
        count("size", size)
        return [self.all_sequences(dtype)]


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
