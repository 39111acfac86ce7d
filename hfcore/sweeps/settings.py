"""What determines a sweep: the checked arguments of ``sweep``, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from hfcore.flat import FlatParameters
from hfcore.momentum_schedules import Constant, Delayed, Final, Increasing, Schedule
from hfcore.problems import Problem
from hfcore.sweeps.cohort import ARRAYS
from hfcore.sweeps.grid import RunSettings
from hfcore.sweeps.starts import Start
from hfcore.training.environment import describe_environment

ScheduleName = Literal["constant", "delayed", "increasing"]
SCHEDULES: dict[str, Callable[[float], Schedule]] = {
    "constant": Constant,
    "delayed": Delayed,
    "increasing": Increasing,
}


@dataclass(frozen=True)
class SweepSettings:
    """The checked arguments of :func:`sweep`."""

    problem: Problem
    runs: Sequence[RunSettings]
    start: Start
    updates: int
    batch_size: int
    schedule: ScheduleName
    final_updates: int
    falling_updates: int
    weight_decay: float
    test_every: int
    test_size: int
    solved_below: float
    device: torch.device
    on_device: bool
    max_bytes: int
    checkpoint_seconds: float

    def momentum(self, run: RunSettings) -> Schedule:
        """μ of one run, a function of the number of updates done."""
        if run.method == "sgd":
            return Constant(0.0)
        schedule = SCHEDULES[self.schedule](run.momentum)
        if not self.final_updates:
            return schedule
        return Final(schedule, self.updates, updates=self.final_updates)

    def rate_factor(self, t: int) -> float:
        """What ε is multiplied by after t updates: 1, and at the end (updates − t)/falling."""
        left = self.updates - t
        return left / self.falling_updates if left < self.falling_updates else 1.0

    @property
    def ending(self) -> int:
        """Updates at the end that are not like the others: of smaller μ, of a falling ε."""
        return max(self.final_updates, self.falling_updates)

    @property
    def last_phase(self) -> int | None:
        """Updates before those at the end; None where there are no such."""
        return self.updates - self.ending if self.ending else None

    def cohorts(self) -> Iterator[list[int]]:
        """Runs trained together: of one seed, and as many as ``max_bytes`` allow."""
        numel = FlatParameters(self.build(0)).numel
        size = max(1, self.max_bytes // (ARRAYS * numel * torch.float32.itemsize))
        for seed in dict.fromkeys(run.seed for run in self.runs):
            mine = [i for i, run in enumerate(self.runs) if run.seed == seed]
            for at in range(0, len(mine), size):
                yield mine[at : at + size]

    def build(self, index: int) -> torch.nn.Module:
        """The untrained net of one run, on the CPU."""
        run = self.runs[index]
        return self.start.build(self.problem, run.seed, **run.options)

    def config(self) -> dict[str, Any]:
        """What config.json holds; ``run`` and ``environment`` may differ on a resume."""
        training: dict[str, Any] = {
            "batch_size": self.batch_size,
            "schedule": self.schedule,
            "weight_decay": self.weight_decay,
            "test_size": self.test_size,
            "max_bytes": self.max_bytes,
        }
        if self.final_updates:
            training["final_updates"] = self.final_updates
        if self.on_device:
            training["on_device"] = True
        if self.falling_updates:
            training["falling_updates"] = self.falling_updates
        return {
            "sweep": {str(i): run.row() for i, run in enumerate(self.runs)},
            "problem": self.problem.config(),
            "start": self.start.config(),
            "training": training,
            "run": {"updates": self.updates, "test_every": self.test_every},
            "environment": {**describe_environment(), "device": str(self.device)},
        }
