"""One training run of an autoencoder: model, data and trainer in, a table of iterations out.

It leaves the run folder of ``hfcore.training`` behind and resumes from it to the bit. Seconds are
those of training alone; errors are measured apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from hfcore.bindings.checks import check_positive
from hfcore.data import Dataset
from hfcore.experiments.trainers import Trainer
from hfcore.losses import Loss
from hfcore.training.atomic import write_atomic
from hfcore.training.config import device_name, model_config, optimizer_config
from hfcore.training.environment import describe_environment
from hfcore.training.errors import CheckpointError
from hfcore.training.interrupts import stop_on_signal
from hfcore.training.run_folder import RunFolder, read_metrics

Reason = Literal["iterations", "seconds", "early stopping", "interrupted", "diverged"]
Line = dict[str, Any]  # of metrics.jsonl

ROWS = 5000  # cases in a forward pass
BEST = "best.safetensors"  # the model with the least validation error


@dataclass(frozen=True)
class Limits:
    """When a run ends; it may be resumed with others.

    ``patience``: iterations without a better validation error, None for no early stopping.
    """

    iterations: int
    seconds: float = math.inf
    patience: int | None = None

    def __post_init__(self) -> None:
        check_positive(iterations=self.iterations)
        if self.patience is not None:
            check_positive(patience=self.patience)
        if not self.seconds > 0:
            raise ValueError(f"seconds: got {self.seconds}, need more than 0")


@dataclass(frozen=True)
class RunResult:
    """How a run ended, and a line for every iteration, the untrained net (0) first."""

    reason: Reason
    lines: list[Line]
    best: int
    """The iteration that counts: with early stopping the best on validation, else the last."""

    @property
    def final(self) -> Line:
        return next(line for line in self.lines if line["iteration"] == self.best)

    @property
    def seconds(self) -> float:
        """Of training, up to the last iteration."""
        return float(self.lines[-1]["training_seconds"])


@dataclass
class _Progress:
    """Counters of a run; part of every checkpoint."""

    iteration: int = 0
    seconds: float = 0.0
    cg_total: int = 0
    best_iteration: int = 0
    best_error: float = math.inf
    diverged: bool = False


@dataclass(frozen=True)
class Run:
    """A model, its data, its loss, and what trains it."""

    model: torch.nn.Module
    dataset: Dataset
    loss: Loss
    trainer: Trainer
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else determines the run; a resume compares it."""

    def __call__(
        self,
        folder: Path,
        limits: Limits,
        *,
        resume: bool = False,
        report: Callable[[Line], None] = lambda line: None,
    ) -> RunResult:
        """Train until a limit is met; ``report`` sees the line of each new iteration.

        SIGINT or SIGTERM ends the run after its iteration, with a checkpoint; ``resume`` continues
        it with the bits of an uninterrupted run. Raises ValueError for early stopping without a
        validation part, and what :func:`hfcore.train` raises for bad folders.
        """
        if limits.patience is not None and self.dataset.validation is None:
            raise ValueError("patience: early stopping needs a validation part of the data")
        opened = RunFolder.resume if resume else RunFolder.create
        with opened(folder, self._config(limits)) as run_folder:
            return _Session(self, run_folder, limits, report).train()

    def measure(self) -> Line:
        """Errors and losses of the model as it is, on every part of the data."""
        line: Line = {}
        parts = {
            "train": self.dataset.train,
            "test": self.dataset.test,
            "validation": self.dataset.validation,
        }
        for part, images in parts.items():
            if images is not None:
                error, loss = errors(self.model, self.loss, images)
                line |= {f"{part}_error": error, f"{part}_loss": loss}
        return line

    def _config(self, limits: Limits) -> dict[str, Any]:
        validation = self.dataset.validation
        return {
            "data": {
                "name": self.dataset.name,
                "facts": self.dataset.facts,
                "train": len(self.dataset.train),
                "test": len(self.dataset.test),
                "validation": 0 if validation is None else len(validation),
            },
            "model": model_config(self.model),
            "loss": repr(self.loss),
            "optimizer": optimizer_config(self.trainer.optimizer),
            "settings": dict(self.settings),
            "run": vars(limits),
            "environment": {
                **describe_environment(),
                "device": device_name(self.model),
                "threads": torch.get_num_threads(),
            },
        }


class _Session:
    """The loop of one run in an open folder."""

    def __init__(
        self, run: Run, folder: RunFolder, limits: Limits, report: Callable[[Line], None]
    ) -> None:
        self.run = run
        self.folder = folder
        self.limits = limits
        self.report = report
        self.at = _Progress()

    def train(self) -> RunResult:
        self._begin_or_resume()
        with stop_on_signal() as interrupted:
            while (reason := self._reason_to_stop(interrupted)) is None:
                line = self.run.trainer.iterate(self.at.iteration)
                self.at.iteration += 1
                self.at.seconds += line["seconds"]
                self.at.cg_total += line.get("cg_iterations", 0)
                self._log(line)
                self._checkpoint()
        lines = read_metrics(self.folder.path / "metrics.jsonl")
        best = self.at.best_iteration if self.limits.patience is not None else self.at.iteration
        return RunResult(reason, lines, best)

    def _reason_to_stop(self, interrupted: Callable[[], bool]) -> Reason | None:
        patience = self.limits.patience
        if self.at.diverged:
            return "diverged"
        if self.at.iteration >= self.limits.iterations:
            return "iterations"
        if patience is not None and self.at.iteration - self.at.best_iteration >= patience:
            return "early stopping"
        if self.at.seconds >= self.limits.seconds:
            return "seconds"
        return "interrupted" if interrupted() else None

    def _log(self, line: Line) -> None:
        """Complete, judge, keep and show the line of the present iteration."""
        totals = {"training_seconds": self.at.seconds, "cg_total": self.at.cg_total}
        line = {"iteration": self.at.iteration, **self.run.measure(), **totals, **line}
        self.at.diverged = not math.isfinite(line["train_loss"])
        error = line.get("validation_error", math.inf)
        if error < self.at.best_error:
            self.at.best_error, self.at.best_iteration = error, self.at.iteration
            self._keep_best()
        self.folder.log(line)
        self.report(line)

    def _keep_best(self) -> None:
        data = safetensors.torch.save(dict(self.run.model.state_dict()))
        write_atomic(self.folder.path / BEST, data)

    def _begin_or_resume(self) -> None:
        checkpoint = self.folder.checkpoints.load()
        if checkpoint is None:
            self.folder.require_unstarted()
            self._checkpoint()
        else:
            self._restore(checkpoint.state)
        self.folder.start_logs(self.at.iteration)
        if not read_metrics(self.folder.path / "metrics.jsonl"):
            self._log({"seconds": 0.0})
            self._checkpoint()

    def _checkpoint(self) -> None:
        self.folder.checkpoint(
            self.at.iteration,
            {
                "progress": vars(self.at),
                "model": dict(self.run.model.state_dict()),
                "optimizer": self.run.trainer.optimizer.state_dict(),
                "trainer": self.run.trainer.state_dict(),
            },
        )

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.at = _Progress(**state["progress"])
            self.run.model.load_state_dict(state["model"])
            self.run.trainer.optimizer.load_state_dict(state["optimizer"])
            self.run.trainer.load_state_dict(state.get("trainer", {}))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.folder.checkpoints.folder}: iteration {self.at.iteration} does not fit "
                f"this model and optimiser: {error}"
            ) from error


@torch.no_grad()
def errors(model: torch.nn.Module, loss: Loss, images: Tensor) -> tuple[float, float]:
    """Σ of squared pixel errors, and the loss without L2, both averaged over ``images [N,n]``.

    The reconstruction is the logistic of the model's outputs where the loss is the logistic
    cross-entropy, else the outputs themselves.
    """
    squares = total = 0.0
    for part in images.split(ROWS):
        s = model(part)
        y = loss.link(s)
        squares += float((y - part).square_().sum(dtype=torch.float64))
        total += loss.value(s, part)
    return squares / len(images), total / len(images)
