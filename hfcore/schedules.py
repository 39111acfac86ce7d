"""Options of an optimiser that change as training goes on.

:class:`OptionSchedule` is to :class:`hfcore.HessianFree` what a learning-rate scheduler is to
SGD; :class:`Phases` runs the staged recipes of Sutskever et al. (2013), appendix A.6. The schedules
of μ are those of ``momentum_schedules.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hfcore.arguments import naming_fields, naming_options
from hfcore.momentum_schedules import (
    Constant,
    Delayed,
    Final,
    Increasing,
    Nesterov,
    NesterovSequence,
)
from hfcore.optimisers.statistics import StepStats

__all__ = [
    "Constant",
    "Delayed",
    "Final",
    "Increasing",
    "Nesterov",
    "NesterovSequence",
    "OptionSchedule",
    "Phase",
    "Phases",
    "Reciprocal",
]

Value = Any | Callable[[int], Any]  # a constant, or a function of the number of steps taken


class OptionSchedule:
    """Sets options of every parameter group from functions of t, the number of steps taken.

    >>> schedule = hf.schedules.OptionSchedule(opt, cg_decay=lambda t: min(0.995, 1 - 1 / (t + 5)))
    >>> opt.step(batches); schedule.step()

    Values are set for t = 0 at once, then by each :meth:`step`. Raises ValueError for an option
    that the optimiser does not have. ``state_dict`` holds t, not the functions.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, **options: Value) -> None:
        self.optimizer = optimizer
        self.options = options
        self.t = 0
        _check_known(optimizer, options)
        self._apply()

    def step(self) -> None:
        """Another step was taken."""
        self.t += 1
        self._apply()

    def _apply(self) -> None:
        for name, value in self.options.items():
            _set(self.optimizer, name, value(self.t) if callable(value) else value)

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.t = state["t"]
        self._apply()


@naming_fields
@dataclass(frozen=True)
class Phase:
    """A stretch of training: options (constants or functions of t), its data and its length.

    ``gradient`` and ``curvature`` are the shares of the data for each; equal shares below 1 mean
    that both see the same small batch. It ends when the run has done ``cg_total`` CG iterations
    inside it; None: it is the last.
    """

    name: str
    options: Mapping[str, Value] = field(default_factory=dict)
    gradient: float = 1.0
    curvature: float = 1.0
    cg_total: int | None = None


@naming_fields
@dataclass(frozen=True)
class Reciprocal:
    """t ↦ numerator / (t − shift), the step size of the hybrid's second phases."""

    numerator: float
    shift: int = 0

    def __call__(self, t: int) -> float:
        return self.numerator / max(t - self.shift, 1)


class Phases:
    """Runs phases one after the other: options before each step, CG counted after it.

    >>> opt = hf.HessianFree(model, loss, **hf.presets.hybrid2013)
    >>> phases = hf.schedules.Phases(opt, hf.presets.hybrid2013_mnist)
    >>> batches = hf.minibatches.PhaseBatches(images, images)
    >>> while not phases.done:
    ...     phases.step(opt.step(batches(phases.present, phases.t)))

    t counts the steps of the whole run, as the paper's schedules do.
    """

    @naming_options
    def __init__(self, optimizer: torch.optim.Optimizer, phases: Sequence[Phase]) -> None:
        if not phases:
            raise ValueError("phases: got none, need at least one")
        for phase in phases:
            _check_known(optimizer, phase.options)
        self.optimizer = optimizer
        self.phases = tuple(phases)
        self.t, self.index, self.cg = 0, 0, 0
        self._apply()

    @property
    def present(self) -> Phase:
        """The phase of the next step; the last one when all are done."""
        return self.phases[min(self.index, len(self.phases) - 1)]

    @property
    def done(self) -> bool:
        return self.index >= len(self.phases)

    def step(self, stats: StepStats) -> None:
        """A step was taken, with these statistics."""
        self.advance(stats.cg_iterations)

    def advance(self, cg_iterations: int) -> None:
        """A step of so many CG iterations was taken."""
        self.t += 1
        self.cg += cg_iterations
        total = self.present.cg_total
        if not self.done and total is not None and self.cg >= total:
            self.index, self.cg = self.index + 1, 0
        self._apply()

    def _apply(self) -> None:
        for name, value in self.present.options.items():
            _set(self.optimizer, name, value(self.t) if callable(value) else value)

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t, "index": self.index, "cg": self.cg}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.t, self.index, self.cg = state["t"], state["index"], state["cg"]
        self._apply()


def _check_known(optimizer: torch.optim.Optimizer, options: Mapping[str, Value]) -> None:
    for name in options:
        if any(name not in group for group in optimizer.param_groups):
            known = ", ".join(sorted(set(optimizer.param_groups[0]) - {"params"}))
            raise ValueError(f"{name}: is no option of the optimiser, need one of {known}")


def _set(optimizer: torch.optim.Optimizer, name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: the schedule gave {value}, need a finite number")
    for group in optimizer.param_groups:
        group[name] = value
