"""One training of an autoencoder by ``hf.train``, with a line for every iteration.

Errors and losses of every part of the data are measured before the first iteration and after each,
apart from the seconds of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hfcore as hf

Line = dict[str, Any]  # of metrics.jsonl, its seconds those of training alone

ROWS = 5000  # cases in a forward pass


@dataclass(frozen=True)
class Trained:
    """How a training ended, and a line for every iteration, the untrained net (0) first."""

    reason: str
    """As in :class:`hfcore.TrainResult`."""
    lines: list[Line]
    best: int
    """The iteration that counts: with early stopping the best on validation, else the last."""
    before: float = 0.0
    """Seconds of pre-training."""

    @property
    def final(self) -> Line:
        return next(line for line in self.lines if line["iteration"] == self.best)

    @property
    def seconds(self) -> float:
        """Of pre-training and training, up to the last iteration."""
        return self.before + float(self.lines[-1]["training_seconds"])


@dataclass(frozen=True)
class Training:
    """An autoencoder, its images, its loss, its optimiser, and which images serve each iteration.

    ``batches`` is a policy of ``hf.minibatches`` or an ``hf.training.Phased``; ``settings`` are
    what else determines the training: a resume compares them.
    """

    model: torch.nn.Module
    dataset: hf.data.Dataset
    loss: hf.losses.Loss
    optimizer: torch.optim.Optimizer
    batches: hf.minibatches.Policy | hf.training.Phased
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        folder: Path,
        stop: hf.training.Limits,
        *,
        patience: int | None = None,
        resume: bool = False,
        report: Callable[[Line], None] = lambda line: None,
    ) -> Trained:
        """Train in the run folder ``folder`` until a limit is met; ``report`` sees each new line.

        With ``patience`` it ends after so many iterations without a better validation error, and
        the best model is in the checkpoints. Raises ValueError for that without a validation part,
        and what :func:`hfcore.train` raises.
        """
        if patience is not None and self.dataset.validation is None:
            raise ValueError("patience: early stopping needs a validation part of the data")
        callbacks: list[hf.Callback] = [MeasuredErrors(self.dataset, self.loss, report)]
        early = None
        if patience is not None:
            early = hf.training.EarlyStopping(patience)
            callbacks += [early, hf.training.BestModel()]
        images = self.dataset.train
        result = hf.train(
            self.model,
            (images, images),
            self.optimizer,
            batches=self.batches,
            stop=stop,
            callbacks=callbacks,
            loss=self.loss,
            test_untrained=True,
            checkpoint_every=1,
            run_dir=folder,
            resume=resume,
            progress=False,
            notes={**self.settings, "data": self._data()},
        )
        lines = with_training_seconds(hf.training.read_metrics(folder / "metrics.jsonl"))
        best = result.iterations if early is None else early.iteration
        return Trained(result.reason, lines, best)

    def _data(self) -> dict[str, Any]:
        """What tells the images from others, besides those that are trained on."""
        validation = self.dataset.validation
        return {
            "name": self.dataset.name,
            "facts": self.dataset.facts,
            "test": len(self.dataset.test),
            "validation": 0 if validation is None else len(validation),
        }


class MeasuredErrors(hf.Callback):
    """Errors and losses on every part of the data as columns; ends a training that diverges.

    ``report`` sees every line, as it is in :class:`Trained`.
    """

    reads_gradients = False

    def __init__(
        self, dataset: hf.data.Dataset, loss: hf.losses.Loss, report: Callable[[Line], None]
    ) -> None:
        self.parts = {
            "train": dataset.train,
            "test": dataset.test,
            "validation": dataset.validation,
        }
        self.loss = loss
        self.report = report
        self.diverged = False
        self._seconds = 0.0  # of training before the present iteration

    def measure(self, state: hf.TrainState) -> Line:
        line: Line = {}
        for part, images in self.parts.items():
            if images is not None:
                error, loss = errors(state.model, self.loss, images)
                line |= {f"{part}_error": error, f"{part}_loss": loss}
        return line

    def on_train_begin(self, state: hf.TrainState) -> str | None:
        if state.metrics:  # the untrained net was measured
            return self.on_step(state)
        self._seconds = state.step_seconds
        return self._reason()

    def on_step(self, state: hf.TrainState) -> str | None:
        self.diverged = not math.isfinite(state.metrics["train_loss"])
        self.report(_with_seconds(state.metrics, self._seconds))
        self._seconds = state.step_seconds
        return self._reason()

    def _reason(self) -> str | None:
        return "diverged" if self.diverged else None

    def state_dict(self) -> dict[str, Any]:
        return {"diverged": self.diverged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.diverged = bool(state["diverged"])


def with_training_seconds(lines: Iterable[Line]) -> list[Line]:
    """Lines of metrics.jsonl as lines of a training: ``seconds`` and ``training_seconds`` count
    data and steps alone, ``phases`` say what went where."""
    found: list[Line] = []
    before = 0.0
    for line in lines:
        found.append(_with_seconds(line, before))
        before = line["step_seconds"]
    return found


def _with_seconds(line: Line, before: float) -> Line:
    """``before``: seconds of training up to the iteration before."""
    total = line["step_seconds"]
    seconds = {"training_seconds": total, "seconds": total - before}
    phases = {"phases": line["seconds"]} if "seconds" in line else {}
    rest = {k: v for k, v in line.items() if k != "step_seconds"}
    return {"cg_total": 0, **rest, **seconds, **phases}


@torch.no_grad()
def errors(model: torch.nn.Module, loss: hf.losses.Loss, images: Tensor) -> tuple[float, float]:
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
