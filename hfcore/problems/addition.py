"""The addition problem: report the mean (or sum) of two marked numbers long after they passed.

Experiment 4 of Hochreiter & Schmidhuber 1997; the format and its departures are those of
:mod:`hfcore.problems.marked`. The target is (x + y)/2 (figure 3 of Sutskever et al. 2013 gives a
mean target of 0.5), the raw sum x + y being an option.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from hfcore.arguments import naming_options
from hfcore.problems.base import Criterion1997
from hfcore.problems.marked import SUM, MarkedPair

Target = Literal["mean", "sum"]


class Addition(MarkedPair):
    """Addition of two marked numbers over sequences of length L, uniform on {T .. ⌊1.1 T⌋}.

    Inputs ``[L,B,2]``: a value from U[0,1] and a 0/1 marker set at two steps, the first uniform
    on [0, 0.1 L), the second on [0.1 L, 0.5 L). Targets ``[L,B,1]`` and the bool mask ``[L,B]``
    count at the last step only. A sequence is wrong when its output there is off by more than
    ``tolerance``.

    Args:
        length: T, at least 3.
        target: ``"mean"`` for (x + y)/2 or ``"sum"`` for x + y.
        tolerance: largest error that still counts as right; positive.
        centre: reduce inputs and targets by their expected values (Sutskever et al. 2013, A.5).
        mixed_lengths: a length for each sequence, as in 1997; False: one for all of a batch.

    Raises ValueError or TypeError naming the option that is out of range.
    """

    name = "addition"
    criterion_1997 = Criterion1997(0.04, mean_below=0.01)
    _operation = SUM

    @naming_options
    def __init__(
        self,
        length: int = 50,
        *,
        target: Target = "mean",
        tolerance: float = 0.04,
        centre: bool = False,
        mixed_lengths: bool = False,
    ) -> None:
        super().__init__(length, tolerance, centre, mixed_lengths)
        if target not in get_args(Target):
            raise ValueError(f"target: got {target!r}, need one of 'mean', 'sum'")
        self.target: Target = target
        self._weight = 0.5 if target == "mean" else 1.0
        self._expected_target = self._weight
        self._unit_1997 = 0.5 / self._weight

    @property
    def mean_predictor_loss(self) -> float:
        """Expected ½-squared loss of always answering the mean target: half its variance."""
        return self._weight**2 / 12

    @property
    def bias_error(self) -> float:
        """Expected :meth:`errors` of always answering the mean target.

        x + y is triangular on [0, 2]: a share (1 − w)² of it is off its mean by more than
        w ≤ 1. With (x + y)/2 and the tolerance 0.04, w = 0.08 and the share is 0.8464.
        """
        return (1.0 - min(1.0, self.tolerance / self._weight)) ** 2

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {**super().config(), "target": self.target}
