"""The multiplication problem: report the product of two marked numbers long after they passed.

Experiment 5 of Hochreiter & Schmidhuber 1997; the format and its departures are those of
:mod:`hfcore.problems.marked`.
"""

from __future__ import annotations

import math

from hfcore.arguments import naming_options
from hfcore.problems.base import Criterion1997
from hfcore.problems.marked import PRODUCT, MarkedPair


class Multiplication(MarkedPair):
    """Product of two marked numbers over sequences of length L, uniform on {T .. ⌊1.1 T⌋}.

    Inputs, markers, mask and what counts as wrong are those of :class:`hfcore.problems.Addition`,
    as are the arguments; Sutskever et al. (2013, A.5) could not train this problem without
    ``centre``.

    Raises ValueError or TypeError naming the option that is out of range.
    """

    name = "multiplication"
    criterion_1997 = Criterion1997(0.04, allowed=13)
    _operation = PRODUCT
    _expected_target = 0.25

    @naming_options
    def __init__(
        self,
        length: int = 50,
        *,
        tolerance: float = 0.04,
        centre: bool = False,
        mixed_lengths: bool = False,
    ) -> None:
        super().__init__(length, tolerance, centre, mixed_lengths)

    @property
    def mean_predictor_loss(self) -> float:
        """Expected ½-squared loss of always answering ¼: half the variance 1/9 − 1/16."""
        return 7 / 288

    @property
    def bias_error(self) -> float:
        """Expected :meth:`errors` of always answering the mean target ¼.

        z = xy has the distribution F(z) = z (1 − ln z) on [0, 1]; with the tolerance 0.04 a share
        1 − F(0.29) + F(0.21) = 0.8888 is off by more. ¼ minimises the loss, not this share: 0.04
        would be off in 0.718 of the cases, as small products are the most likely.
        """
        return 1.0 - _share_below(0.25 + self.tolerance) + _share_below(0.25 - self.tolerance)


def _share_below(z: float) -> float:
    """P(xy ≤ z) for x and y from U[0, 1]."""
    if z <= 0.0:
        return 0.0
    return z * (1.0 - math.log(z)) if z < 1.0 else 1.0
