"""Hooks into a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfcore.schedules import OptionSchedule, Value

if TYPE_CHECKING:
    from hfcore.problems import Problem


@dataclass(frozen=True)
class TrainState:
    """What a callback sees after each step; ``metrics`` is the line that goes to metrics.jsonl."""

    model: torch.nn.Module
    problem: Problem
    optimizer: torch.optim.Optimizer
    iteration: int
    minibatches: float
    """Gradients and curvature products so far, per 1000 sequences (the paper's cost)."""
    objective_evaluations: float
    """Objective evaluations so far, per 1000 sequences, not contained in ``minibatches``."""
    budget: float
    test_error: float | None
    """Share of wrong test cases (or mean error) at the last test, None before the first."""
    training_seconds: float
    run_dir: Path | None
    metrics: dict[str, Any]
    """Statistics of the step; empty before the first."""


class Callback:
    """Base class; override what you need.

    Callbacks run before the checkpoint of their iteration is written: what they change in the
    model or the optimiser is resumed, state of their own is not.
    """

    reads_gradients = True
    """Set it to False where ``on_step`` looks at no parameter's ``grad``: if no callback does, an
    update of hf.SGD, hf.ClassicalMomentum or hf.NAG may leave none, and is faster."""

    def on_train_begin(self, state: TrainState) -> None:
        """Before the first step (after a resume: before the first resumed step)."""

    def on_step(self, state: TrainState) -> bool | None:
        """After every step; return True to stop training."""
        return None

    def on_train_end(self, state: TrainState) -> None:
        """After the last step, also when training stops through an error."""


class Scheduled(Callback):
    """Options of the optimiser as functions of t, the number of iterations done; or constants.

    >>> hf.train(model, problem, hf.NAG(model, lr=1e-3), callbacks=[
    ...     hf.training.Scheduled(momentum=hf.schedules.Delayed(0.99))])

    t is the run's, so a resumed one goes on where it was. Raises ValueError before the first step
    for an option that the optimiser does not have.
    """

    reads_gradients = False

    def __init__(self, **options: Value) -> None:
        self.options = options
        self._schedule: OptionSchedule | None = None

    def on_train_begin(self, state: TrainState) -> None:
        self._schedule = OptionSchedule(state.optimizer, **self.options)
        self._schedule.load_state_dict({"t": state.iteration})

    def on_step(self, state: TrainState) -> None:
        assert self._schedule is not None
        self._schedule.load_state_dict({"t": state.iteration})
