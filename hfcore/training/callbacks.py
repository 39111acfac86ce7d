"""Hooks into a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfcore.schedules import OptionSchedule, Value
from hfcore.training.describe import describe
from hfcore.training.limits import Limits

if TYPE_CHECKING:
    from hfcore.problems import Problem

StopRequest = bool | str | None
"""True, or a reason by name, to stop training."""


@dataclass(frozen=True)
class TrainState:
    """What a callback sees after each step; ``metrics`` is the line that goes to metrics.jsonl."""

    model: torch.nn.Module
    problem: Problem | None
    """None where the data are no problem of hf.problems."""
    optimizer: torch.optim.Optimizer
    iteration: int
    minibatches: float
    """Gradients and curvature products so far, per 1000 sequences (the paper's cost)."""
    objective_evaluations: float
    """Objective evaluations so far, per 1000 sequences, not contained in ``minibatches``."""
    limits: Limits
    test_error: float | None
    """Share of wrong test cases, or mean error, at the last test, None before the first."""
    training_seconds: float
    run_dir: Path | None
    metrics: dict[str, Any]
    """Statistics of the step; empty before the first."""
    name: str = "data"
    """Of the data."""
    validation_error: float | None = None
    """The same of the validation part."""
    step_seconds: float = 0.0
    """Of data and steps so far, without tests, callbacks and checkpoints."""
    shares: bool = False
    """Errors are shares of wrong cases."""

    @property
    def budget(self) -> float:
        """The limit of minibatches, inf for none."""
        most = self.limits.minibatches
        return float("inf") if most is None else most


class Callback:
    """Base class; override what you need.

    Callbacks run before the checkpoint of their iteration is written: what they change in the
    model or the optimiser is resumed, and what their ``state_dict`` gives (numbers, texts, tensors,
    and lists, tuples and dicts of these).
    """

    reads_gradients = True
    """Set it to False where ``on_step`` looks at no parameter's ``grad``: if no callback does, an
    update of hf.SGD, hf.ClassicalMomentum or hf.NAG may leave none, and is faster."""

    def on_train_begin(self, state: TrainState) -> StopRequest:
        """Before the first step (after a resume: before the first resumed step).

        True or a reason ends training at once: what had asked to stop still does after a resume.
        """
        return None

    def measure(self, state: TrainState) -> Mapping[str, Any]:
        """Further columns of this iteration's line, JSON-able; the time does not count."""
        return {}

    def on_step(self, state: TrainState) -> StopRequest:
        """After every step; return True, or a reason, to stop training."""
        return None

    def on_train_end(self, state: TrainState) -> None:
        """After the last step, also when training stops through an error."""

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, stored in every checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; called before ``on_train_begin``."""

    def config(self) -> Any:
        """JSON-able: what of it determines the run, None for nothing. A resume compares it."""
        return None


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

    def config(self) -> Any:
        return describe(self.options)


class CallbackStates:
    """The states of all callbacks of a run under their names, as one part of a checkpoint."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.named: dict[str, Callback] = {}
        for callback in callbacks:
            name, number = type(callback).__name__, 1
            while name in self.named:
                number += 1
                name = f"{type(callback).__name__} {number}"
            self.named[name] = callback

    def state_dict(self) -> dict[str, Any]:
        states = {name: callback.state_dict() for name, callback in self.named.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Callbacks that the checkpoint does not know begin anew."""
        for name, callback in self.named.items():
            if name in state:
                callback.load_state_dict(state[name])

    def config(self) -> dict[str, Any]:
        """What of each determines the run."""
        configs = {name: callback.config() for name, callback in self.named.items()}
        return {name: config for name, config in configs.items() if config is not None}
