"""What the commands of ``hfcore reproduce`` share: the run folder, complaints, the exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch

from hfcore.cli.options import INTERRUPTED, check_resume, device_of, new_run_dir
from hfcore.data import DataFileError
from hfcore.training import RunFolderError


class Session:
    """One call of a command: its folder, its device, what it prints.

    ``options`` hold ``run_dir``, ``resume``, ``threads`` and ``device``.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        check_resume(options["resume"], options["run_dir"])
        if options["threads"] is not None:
            torch.set_num_threads(options["threads"])
        self.options = options
        self.device = device_of(options["device"])
        self.folder: Path = options["run_dir"] or new_run_dir(name)

    @contextmanager
    def complaints(self) -> Iterator[None]:
        """What can go wrong, as an error of the command."""
        try:
            yield
        except (DataFileError, RunFolderError, ValueError) as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt as error:
            click.echo(f"aborted; the last checkpoint is in {self.folder}", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from error

    def show(self, table: str, written: Sequence[Path]) -> None:
        click.echo(f"\n{table}\n")
        for path in written:
            click.echo(f"written: {path}")

    def end(self, context: click.Context, *, interrupted: bool) -> None:
        """The exit code: 130 after Ctrl-C."""
        if interrupted:
            click.echo(f"continue with the same command and: --run-dir {self.folder} --resume")
            context.exit(INTERRUPTED)
