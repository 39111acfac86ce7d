"""What is measured of the runs of a sweep: their tests, one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from typing import Any

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.nets.grouped import GroupedGradient
from hfcore.problems import Problem, ZeroOne
from hfcore.sweeps.outcome import Test, case_count


class Tests:
    """The tests of every run so far, a part of a sweep's checkpoints."""

    __test__ = False  # pytest would collect a class of this name

    def __init__(self, runs: int) -> None:
        self.of: list[list[Test]] = [[] for _ in range(runs)]

    def add(self, index: int, test: Test) -> None:
        """A further test of the run number ``index``."""
        self.of[index].append(test)

    def last(self) -> list[Test]:
        """The last test of every run that has one."""
        return [tests[-1] for tests in self.of if tests]

    def state_dict(self) -> dict[str, Any]:
        """One row a test, float64 ``[M, 1 + fields]``, the run's number first."""
        rows = [[i, *astuple(test)] for i, tests in enumerate(self.of) for test in tests]
        table = torch.tensor(rows, dtype=torch.float64, device="cpu")
        return {"tests": table.reshape(len(rows), 1 + len(fields(Test)))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.of = [[] for _ in self.of]
        for index, update, *values in state["tests"].tolist():
            self.add(int(index), Test(int(update), *values))


@torch.no_grad()
def measure(
    problem: Problem, passes: GroupedGradient, theta: Tensor, batches: Sequence[Batch]
) -> list[list[float]]:
    """Loss, error and share of wrong cases of each of the nets ``theta [G,N]`` on ``batches``.

    The share is NaN where the problem does not call cases wrong.
    """
    measured = torch.zeros(3, len(theta), dtype=torch.float64, device=theta.device)
    cases = sum(case_count(batch) for batch in batches)
    loss, error, wrong = measured
    for batch in batches:
        for nets, s, losses in passes.tested(theta, batch, 1.0 / cases):
            loss[nets] += losses
            error[nets] += problem.errors(s, batch).sum(-1, dtype=torch.float64)
            if isinstance(problem, ZeroOne):
                wrong[nets] += problem.wrong(s, batch).sum(-1)
            else:
                wrong[nets] = math.nan
    measured[1:] /= cases
    rows: list[list[float]] = measured.T.tolist()
    return rows
