"""What a run counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hfcore.training.resumable import Counters
from hfcore.training.steps import COST_UNIT, Iteration


@dataclass
class Progress(Counters):
    """Counters of a run; part of every checkpoint."""

    iteration: int = 0
    sequences: int = 0
    """Gone through by gradients and curvature products."""
    evaluated: int = 0
    """Gone through by objective evaluations."""
    cg_iterations: int = 0
    converged: int = 0
    """Iterations in a row whose Hessian-free step found no way down."""
    seconds: float = 0.0
    """Of the whole loop."""
    step_seconds: float = 0.0
    """Of data and steps alone."""
    test_error: float | None = None
    validation_error: float | None = None
    tested_at: int = -1
    diverged: bool = False

    def add(self, done: Iteration, seconds: float) -> None:
        """Count an iteration that took so many seconds with its data."""
        self.iteration += 1
        self.sequences += done.sequences
        self.evaluated += done.evaluated
        self.cg_iterations += done.stats.get("cg_iterations", 0)
        self.step_seconds += seconds
        self.diverged = not math.isfinite(done.stats["loss"])
        self.converged = self.converged + 1 if done.stats.get("converged") else 0

    def measure(self, errors: Mapping[str, float]) -> None:
        """Take up the errors by part, as they are after this iteration."""
        self.test_error = errors.get("test")
        self.validation_error = errors.get("validation")
        self.tested_at = self.iteration

    @property
    def is_tested(self) -> bool:
        """Whether the errors are those of this iteration."""
        return self.tested_at == self.iteration

    def line(self, *, validated: bool, measured: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of every line of the log; errors are None unless just measured.

        ``validated``: whether there is a validation part; ``measured``: further columns of tests.
        """
        errors = {"test_error": self.test_error if self.is_tested else None}
        if validated:
            errors["validation_error"] = self.validation_error if self.is_tested else None
        return {
            "iteration": self.iteration,
            "minibatches": in_minibatches(self.sequences),
            "objective_evaluations_total": in_minibatches(self.evaluated),
            **errors,
            **(measured if self.is_tested else {}),
            "training_seconds": self.seconds,
            "step_seconds": self.step_seconds,
        }


def in_minibatches(sequences: int) -> float:
    """Sequences in units of 1000, an int where it is whole."""
    whole, rest = divmod(sequences, COST_UNIT)
    return sequences / COST_UNIT if rest else whole
