"""One call of a command that trains: its options, its run folder, what it prints, its exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch

from hfcore.cli.options import (
    INTERRUPTED,
    Decorator,
    check_resume,
    decorated_by,
    device_of,
    new_run_dir,
)
from hfcore.data import DataFileError
from hfcore.distributed.ranks import Ranks
from hfcore.training import RunFolderError
from hfcore.training.errors import ExecutorError

__all__ = ["Invocation", "run_options"]


def run_options(*, resume: str, quiet: str) -> Decorator:
    """``--device``, ``--run-dir``, ``--resume``, ``--threads``, ``--quiet``.

    ``resume`` and ``quiet`` are the help of these two. An :class:`Invocation` acts on all of them.
    """
    return decorated_by(
        [
            click.option("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1 …"),
            click.option(
                "--run-dir",
                type=click.Path(path_type=Path),
                help="[default: a new one in runs/]",
            ),
            click.option("--resume", is_flag=True, help=resume),
            click.option(
                "--threads", type=click.IntRange(1), help="Compute threads.  [default: torch's]"
            ),
            click.option("--quiet", is_flag=True, help=quiet),
        ]
    )


class Invocation:
    """A call of the command ``name`` with the ``options`` of :func:`run_options` and its own.

    In several processes, ``ranks``, the first one has the folder and speaks.

    Raises click's errors for options that cannot be had.
    """

    def __init__(self, name: str, options: dict[str, Any], ranks: Ranks | None = None) -> None:
        check_resume(options["resume"], options["run_dir"])
        if options["threads"] is not None:
            torch.set_num_threads(options["threads"])
        self.options = options
        self.device = device_of(options["device"])
        self.ranks = Ranks() if ranks is None else ranks
        new = self.ranks.on_first(lambda: str(options["run_dir"] or new_run_dir(name)))
        self.folder = Path(self.ranks.sent((new or "").encode()).decode())
        if options["resume"]:
            self.ranks.on_first(self._check_resumed)

    def _check_resumed(self) -> None:
        if not self.folder.is_dir():
            raise click.ClickException(f"{self.folder}: there is no run folder to resume")

    @contextmanager
    def errors_shown(self, *more: type[Exception]) -> Iterator[None]:
        """What can go wrong, and ``more``, as an error of the command; what acts at once as 130."""
        always = (DataFileError, RunFolderError, ExecutorError, ValueError)
        shown: tuple[type[Exception], ...] = (*always, *more)
        try:
            yield
        except shown as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt as error:
            stored = any(self.folder.rglob("checkpoints/*.json"))
            where = f"; the last checkpoint is in {self.folder}" if stored else ""
            if self.ranks.first:
                click.echo(f"interrupted{where}", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from error

    def show(self, table: str, written: Sequence[Path]) -> None:
        """Print a table and the files that hold it."""
        click.echo(f"\n{table}\n")
        for path in written:
            click.echo(f"written: {path}")

    def end_part(self) -> None:
        """What comes after the part of --cohort."""
        click.echo(
            f"part {self.options['cohort']} is done; when all are, the same command with --resume "
            "in place of --cohort unites them"
        )

    def end(self, context: click.Context, *, interrupted: bool) -> None:
        """The exit code: 130 after Ctrl-C."""
        if interrupted:
            if self.ranks.first:
                click.echo(f"continue with the same command and: --run-dir {self.folder} --resume")
            context.exit(INTERRUPTED)
