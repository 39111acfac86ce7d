"""What the commands that train autoencoders one after the other share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import hfcore as hf
from hfcore.cli.invocation import Invocation
from hfcore.cli.tables import clock
from hfcore.experiments.pace import Pace
from hfcore.experiments.report import describe, heading
from hfcore.experiments.training import Line, Trained, Training

TOLD_AFTER = (1, 3, 10, 30, 100, 300, 1000, 3000)  # iterations


class Trainings(Invocation):
    """A call of a command; each training has a folder in that of the call, its name in ``pace``."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        super().__init__(name, options)
        self.pace = Pace({}, self.device)

    def train(
        self,
        training: Training,
        folder: Path,
        stop: hf.training.Limits,
        *,
        title: str = "",
        patience: int | None = None,
    ) -> Trained:
        """From the beginning, or with --resume from where it was stopped."""
        if not self.options["quiet"]:
            click.echo(f"{title}{folder}\n{heading()}")
        self.pace.begin(folder)
        trained = training(
            folder,
            stop,
            patience=patience,
            resume=self.options["resume"] and folder.is_dir(),
            report=lambda line: self._report(line, stop),
        )
        if trained.reason != "interrupted":
            self.pace.end(folder)
        return trained

    def _report(self, line: Line, stop: hf.training.Limits) -> None:
        if not self.options["quiet"]:
            click.echo(describe(line))
            left = time_left(line, stop)
            for message in (*line.get("messages", ()), *([left] if left else [])):
                click.echo(f"    {message}")


def time_left(line: Line, stop: hf.training.Limits) -> str | None:
    """How long a training has yet to go at its pace so far; None where it is not told.

    It is told again as iterations grow longer, which those of Hessian-free optimisation do.
    """
    iteration, spent = line["iteration"], line["training_seconds"]
    if iteration not in TOLD_AFTER:
        return None
    left = [] if stop.seconds is None else [stop.seconds - spent]
    if stop.iterations is not None:
        left.append((stop.iterations - iteration) * spent / iteration)
    return f"at this pace {clock(min(left))} more" if left and min(left) > 0 else None
