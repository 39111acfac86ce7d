"""What a run counts."""

from __future__ import annotations

from dataclasses import dataclass

from hfcore.training.resumable import Counters
from hfcore.training.steps import COST_UNIT


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


def in_minibatches(sequences: int) -> float:
    """Sequences in units of 1000, an int where it is whole."""
    whole, rest = divmod(sequences, COST_UNIT)
    return sequences / COST_UNIT if rest else whole
