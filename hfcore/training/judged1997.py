"""The criterion of Hochreiter & Schmidhuber (1997), looked at with every test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.problems.base import Judged1997
from hfcore.training.metrics import Judge


class Judging1997:
    """A judge of test cases that also keeps how far the first of them are off.

    As many as the problem's criterion looks at, or all where there are fewer.
    """

    def __init__(self, problem: Judged1997, judge: Judge) -> None:
        self._problem, self._judge = problem, judge
        self._deviations: list[Tensor] = []
        self._seen = 0

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[float, float]:
        """Judge the ``outputs [T,B,k]`` of a batch, keeping their deviations."""
        wanted = self._problem.criterion_1997.sequences - self._seen
        if wanted > 0:
            found = self._problem.deviation(outputs, batch)[:wanted]
            self._deviations.append(found)
            self._seen += len(found)
        return self._judge(outputs, batch)

    def columns(self) -> dict[str, Any]:
        """Columns of the log: the mean deviation, the share of sequences beyond the tolerance,
        and whether the criterion is met, which fewer sequences than it looks at never do."""
        criterion, deviations = self._problem.criterion_1997, torch.cat(self._deviations)
        return {
            "deviation_1997": float(deviations.mean()),
            "wrong_1997": float(criterion.beyond(deviations).double().mean()),
            "solved_1997": self._seen >= criterion.sequences and criterion.met(deviations),
        }
