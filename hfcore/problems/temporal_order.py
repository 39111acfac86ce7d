"""Temporal order: name the order in which two or three symbols came, at the end of a sequence.

Experiments 6a and 6b of Hochreiter & Schmidhuber 1997, as Martens & Sutskever 2011 use them, apart
from what is numbered here.

1. Length and positions scale with T, in 1997 about 100: one length L a batch, uniform on
   {T .. ⌊1.1 T⌋}, and positions uniform on [0.1 L, 0.2 L) and [0.5 L, 0.6 L), with three symbols
   on [0.1 L, 0.2 L), [0.3 L, 0.4 L) and [0.6 L, 0.7 L). In 1997 they are in 10–20 and 50–60, with
   three symbols in 10–20, 33–43 and 66–76, of 100 to 110 steps.
2. The release of 2011 has other positions again: at 1–10 % and 40–50 %, with three symbols at 1–10,
   30–40 and 50–60 %.
3. Every sequence of 1997, and of that release, has a length of its own; here only with
   ``mixed_lengths``, as in :mod:`hfcore.problems.marked`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hfcore.arguments import naming_options
from hfcore.batches import Batch
from hfcore.draws import check_flag, check_length, compile_kernel, subtract_mean
from hfcore.problems.base import Criterion1997
from hfcore.problems.classes import LastClass
from hfcore.problems.lengths import RandomLengths

# Input channels: distractors a, b, c, d, then the two symbols, the trigger and the start.
DISTRACTORS = 4
X, Y, TRIGGER, START = 4, 5, 6, 7


class TemporalOrder(RandomLengths, LastClass):
    """Classify the order of symbols X and Y over sequences of length L, uniform on {T .. ⌊1.1 T⌋}.

    Inputs ``[L,B,8]`` are one-hot: the start (channel 7) at step 0, the trigger (6) at the last
    step, X or Y (4, 5), as likely, at one step of each range, and elsewhere one of four distractors
    (0 to 3), all as likely. Targets are classes ``[L,B]``, the mask bool ``[L,B]``; both count at
    the last step only. A class reads the symbols as binary digits, X as 0, Y as 1, the first
    symbol first. A sequence is wrong when another class, or none, has the largest output there.

    Args:
        length: T, at least so long that every range holds a step.
        centre: reduce inputs by their expected values (Sutskever et al. 2013, A.5); classes stay.
        mixed_lengths: a length for each sequence, as in 1997; False: one for all of a batch.

    Raises ValueError or TypeError naming the option that is out of range.
    """

    input_size = 8
    criterion_1997 = Criterion1997(0.3, mean_below=0.1)
    esn_input_scale = 0.1
    """Standard deviation of the input weights of an ESN start: that of memorisation, which is
    one-hot too."""
    ranges: ClassVar[tuple[tuple[int, int], ...]]
    """Of the positions: first and end in percent of L."""
    min_length: ClassVar[int]

    @naming_options
    def __init__(
        self, length: int = 50, *, centre: bool = False, mixed_lengths: bool = False
    ) -> None:
        check_length(length, self.min_length, f"all {len(self.ranges)} ranges hold a step")
        super().__init__()
        self.length = length
        self.centre = check_flag("centre", centre)
        self.mixed_lengths = check_flag("mixed_lengths", mixed_lengths)
        self.output_size = 2 ** len(self.ranges)

    def mean_input(self, length: int) -> Tensor:
        """Expected inputs of a sequence of L = ``length`` steps, before centring, float64 ``[8]``.

        With n symbols (L − 2 − n)/(4 L) for each distractor, n/(2 L) for X and Y, 1/L for trigger
        and start.
        """
        L, n = length, len(self.ranges)
        distractors = [(L - 2 - n) / (DISTRACTORS * L)] * DISTRACTORS
        mean = [*distractors, n / (2 * L), n / (2 * L), 1 / L, 1 / L]
        return torch.tensor(mean, dtype=torch.float64, device="cpu")

    @property
    def mean_target(self) -> Tensor:
        """Frequencies of the classes, all equal, float64 ``[2ⁿ]``."""
        return torch.full(
            (self.output_size,), 1.0 / self.output_size, dtype=torch.float64, device="cpu"
        )

    @property
    def bias_error(self) -> float:
        """Expected :meth:`errors` of always answering one class: 1 − 2⁻ⁿ."""
        return 1.0 - 1.0 / self.output_size

    def _of_length(
        self, L: int, size: int, generator: np.random.Generator, real: type[np.floating[Any]]
    ) -> Batch:
        inputs = np.zeros((L, size, self.input_size), real)
        targets = np.zeros((L, size), np.int64)
        mask = np.zeros((L, size), np.bool_)
        mask[-1] = True
        distractors = generator.integers(0, DISTRACTORS, (L - 2, size))  # in a loop numba is slow
        _fill(generator, distractors, _steps(L, self.ranges), inputs, targets)
        if self.centre:
            subtract_mean(inputs, self.mean_input(L).numpy().astype(real))
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(mask))

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {**super().config(), **self._mixed}


class TemporalOrder2(TemporalOrder):
    """Two symbols, four classes (experiment 6a), T at least 6; otherwise :class:`TemporalOrder`."""

    name = "temporal-order-2bit"
    ranges = ((10, 20), (50, 60))
    min_length = 6


class TemporalOrder3(TemporalOrder):
    """Three symbols, eight classes (experiment 6b), T at least 8; else :class:`TemporalOrder`."""

    name = "temporal-order-3bit"
    ranges = ((10, 20), (30, 40), (60, 70))
    min_length = 8


def _steps(L: int, ranges: tuple[tuple[int, int], ...]) -> np.ndarray:
    """First step and end of every range, int64 ``[n,2]``: the steps t with a·L ≤ 100 t < b·L."""
    return np.array([[-(-L * a // 100), -(-L * b // 100)] for a, b in ranges], np.int64)


@compile_kernel
def _fill(
    generator: np.random.Generator,
    distractors: np.ndarray,
    steps: np.ndarray,
    inputs: np.ndarray,
    targets: np.ndarray,
) -> None:
    """Draw one-hot ``inputs [L,B,8]``, which are zero, and the last of ``targets [L,B]``.

    ``distractors [L-2,B]`` are what stands between the first step and the last where no symbol is.
    """
    L, B = inputs.shape[:2]
    for t in range(1, L - 1):
        for b in range(B):
            inputs[t, b, distractors[t - 1, b]] = 1.0
    for b in range(B):
        inputs[0, b, START] = 1.0
        inputs[L - 1, b, TRIGGER] = 1.0
        code = 0
        for i in range(len(steps)):
            t = generator.integers(steps[i, 0], steps[i, 1])
            bit = int(generator.integers(0, 2))
            inputs[t, b, :DISTRACTORS] = 0.0
            inputs[t, b, X + bit] = 1.0
            code = 2 * code + bit
        targets[L - 1, b] = code
