"""The addition problem: report the mean (or sum) of two marked numbers long after they passed.

Hochreiter & Schmidhuber 1997, experiment 4, in the format of Martens & Sutskever 2011 with the
departures numbered here.

1. Markers are 0 and 1; there is no −1 at either end.
2. Marked positions are uniform on [0, 0.1 L) and [0.1 L, 0.5 L).
3. The target is (x + y)/2, the raw sum x + y being an option.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.losses import Loss, SquaredError
from hfcore.problems.base import check_draw, compile_kernel

Target = Literal["mean", "sum"]

# From L = 3 on both marker ranges hold a position: step 0, and step 1 (0.3 <= 1 < 1.5).
MIN_LENGTH = 3


class Addition:
    """Addition of two marked numbers over sequences of length L, uniform on {T .. ⌊1.1 T⌋}.

    Inputs ``[L,B,2]``: a value from U[0,1] and a 0/1 marker set at two steps, the first uniform
    on [0, 0.1 L), the second on [0.1 L, 0.5 L). Targets ``[L,B,1]`` and the bool mask ``[L,B]``
    count at the last step only. A sequence is wrong when its output there is off by more than
    ``tolerance``.

    Args:
        length: T, at least 3.
        target: ``"mean"`` for (x + y)/2 or ``"sum"`` for x + y.
        tolerance: largest error that still counts as right; positive.

    Raises ValueError or TypeError naming the option that is out of range.
    """

    name = "addition"
    input_size = 2
    output_size = 1

    def __init__(
        self, length: int = 50, *, target: Target = "mean", tolerance: float = 0.04
    ) -> None:
        if not isinstance(length, int) or isinstance(length, bool):
            raise TypeError(f"length: got {length!r}, need an int")
        if length < MIN_LENGTH:
            raise ValueError(
                f"length: got {length}, need at least {MIN_LENGTH} so that both marker ranges "
                "hold a step"
            )
        if target not in get_args(Target):
            raise ValueError(f"target: got {target!r}, need one of 'mean', 'sum'")
        if not 0.0 < tolerance < float("inf"):
            raise ValueError(f"tolerance: got {tolerance!r}, need a positive finite number")
        self.length = length
        self.target: Target = target
        self.tolerance = float(tolerance)
        self.loss: Loss = SquaredError()

    @property
    def lengths(self) -> tuple[int, int]:
        """Shortest and longest sequence, both included: T and ⌊1.1 T⌋."""
        return self.length, 11 * self.length // 10

    @property
    def mean_predictor_loss(self) -> float:
        """Expected ½-squared loss of always answering the mean target: half its variance."""
        return 1 / 48 if self.target == "mean" else 1 / 12

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """``size`` sequences of one random length; both dtypes get the same draw, rounded.

        Inputs ``[L,size,2]``, targets ``[L,size,1]``, mask bool ``[L,size]``. The generator must
        not be used by another thread meanwhile.
        """
        real = check_draw(size, generator, dtype)
        L = int(generator.integers(*self.lengths, endpoint=True))
        inputs = np.empty((L, size, self.input_size), real)
        targets = np.zeros((L, size, self.output_size), real)
        mask = np.zeros((L, size), np.bool_)
        mask[-1] = True
        _fill(generator, 0.5 if self.target == "mean" else 1.0, inputs, targets)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(mask))

    def wrong(self, s: Tensor, batch: Batch) -> Tensor:
        """Bool ``[B]``: the last output of ``s [L,B,1]`` is off by more than the tolerance.

        NaN is wrong.
        """
        if s.shape != batch.targets.shape:
            raise ValueError(
                f"s: got shape {list(s.shape)}, need {list(batch.targets.shape)} like the targets"
            )
        return ~((s[-1, :, 0] - batch.targets[-1, :, 0]).abs() <= self.tolerance)

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {
            "name": self.name,
            "length": self.length,
            "target": self.target,
            "tolerance": self.tolerance,
        }

    def __repr__(self) -> str:
        return f"Addition({self.length}, target={self.target!r}, tolerance={self.tolerance})"


@compile_kernel
def _fill(
    generator: np.random.Generator, weight: float, inputs: np.ndarray, targets: np.ndarray
) -> None:
    """Draw values ``inputs[:,:,0]``, markers ``inputs[:,:,1]``, and the last targets."""
    L, B = inputs.shape[:2]
    # Steps t with t < 0.1 L are 0 .. first-1, with t < 0.5 L they are 0 .. half-1 (exact ceilings).
    first = (L + 9) // 10
    half = (L + 1) // 2
    for t in range(L):
        for b in range(B):
            inputs[t, b, 0] = generator.random()
            inputs[t, b, 1] = 0.0
    for b in range(B):
        i = generator.integers(0, first)
        j = generator.integers(first, half)
        inputs[i, b, 1] = 1.0
        inputs[j, b, 1] = 1.0
        targets[L - 1, b, 0] = weight * (inputs[i, b, 0] + inputs[j, b, 0])
