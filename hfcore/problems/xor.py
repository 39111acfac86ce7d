"""Exclusive or: whether two marked bits differ, long after they passed.

One of the problems of Martens & Sutskever 2011 (supplement, 2.1), in the format and with the
departures of :mod:`hfcore.problems.marked`, and with these:

1. All values are fair bits. In the released code they are too, its sequences being half as long as
   those of addition; here they have addition's lengths and positions.
2. Hochreiter & Schmidhuber 1997 have no such problem. Their criterion is that of their experiment
   6, whose targets are classes too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.arguments import naming_options
from hfcore.batches import Batch
from hfcore.losses import LogisticCrossEntropy
from hfcore.problems.base import Criterion1997
from hfcore.problems.marked import XOR, Marked


class Xor(Marked):
    """Exclusive or of two marked bits over sequences of length L, uniform on {T .. ⌊1.1 T⌋}.

    Inputs ``[L,B,2]``: a fair bit and a 0/1 marker set at two steps, the first uniform on
    [0, 0.1 L), the second on [0.1 L, 0.5 L). Targets ``[L,B,1]``, 1 where the marked bits differ,
    and the bool mask ``[L,B]`` count at the last step only. The loss is the logistic cross-entropy.
    A sequence is wrong when its output there has the wrong sign.

    Args:
        length: T, at least 3.
        centre: reduce inputs by their expected values (Sutskever et al. 2013, A.5); targets stay.
        mixed_lengths: a length for each sequence, as in 1997; False: one for all of a batch.

    Raises ValueError or TypeError naming the option that is out of range.
    """

    name = "xor"
    criterion_1997 = Criterion1997(0.3, mean_below=0.1)
    _operation = XOR
    _expected_target = 0.5
    _shift = 0.0

    @naming_options
    def __init__(
        self, length: int = 50, *, centre: bool = False, mixed_lengths: bool = False
    ) -> None:
        super().__init__(length, centre, mixed_lengths)
        self.loss = LogisticCrossEntropy()

    @property
    def bias_error(self) -> float:
        """Expected :meth:`errors` of an output that is always positive: half of them."""
        return 0.5

    def wrong(self, s: Tensor, batch: Batch) -> Tensor:
        """Bool ``[B]``: the last output of ``s [L,B,1]`` has not the sign of its target.

        0 and NaN are wrong. A leading group axis ``[G,L,B,1]`` gives ``[G,B]``.
        """
        output, target = self._last(s, batch)
        return ~(torch.where(target > 0.5, output, -output) > 0)

    def deviation(self, s: Tensor, batch: Batch) -> Tensor:
        """Float64 ``[B]``: how far the last prediction, a probability, is from its target.

        Shapes as in :meth:`wrong`.
        """
        output, target = self._last(s, batch)
        return (self.loss.link(output.double()) - target).abs()
