"""What the commands that train autoencoders one after the other share."""

from __future__ import annotations

from pathlib import Path

import click

import hfcore as hf
from hfcore.cli.invocation import Invocation
from hfcore.experiments.report import describe, heading
from hfcore.experiments.training import Line, Trained, Training


class Trainings(Invocation):
    """A call of a command; each training has a folder in that of the call."""

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
        return training(
            folder,
            stop,
            patience=patience,
            resume=self.options["resume"] and folder.is_dir(),
            report=self._report,
        )

    def _report(self, line: Line) -> None:
        if not self.options["quiet"]:
            click.echo(describe(line))
            for message in line.get("messages", ()):
                click.echo(f"    {message}")
