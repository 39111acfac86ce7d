"""The command line, one file a command."""

from __future__ import annotations

from typing import Any

import click

from hfcore import __version__
from hfcore.cli.check_curvature import check_command
from hfcore.cli.data import data_commands
from hfcore.cli.evaluate import evaluate_command
from hfcore.cli.info import info_command
from hfcore.cli.options import INTERRUPTED
from hfcore.cli.report import report_command
from hfcore.cli.sweep import sweep_command
from hfcore.cli.train import train_command
from hfcore.training.interrupts import interrupt_on_signal


class _Commands(click.Group):
    """SIGINT and SIGTERM end every command alike: with a word on stderr and the code 130.

    The experiments are imported when they are asked for.
    """

    REPRODUCE = "reproduce"

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), self.REPRODUCE])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """A process may begin with an experiment, which takes its tables from here."""
        if name != self.REPRODUCE:
            return super().get_command(context, name)
        from hfcore.experiments.commands import reproduce_commands  # which import this package

        return reproduce_commands

    def invoke(self, context: click.Context) -> Any:
        with interrupt_on_signal():
            try:
                return super().invoke(context)
            except KeyboardInterrupt:
                click.echo("interrupted", err=True)
                context.exit(INTERRUPTED)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, prog_name="hfcore")
def main() -> None:
    """Hessian-free and first-order training."""


for command in (
    info_command,
    train_command,
    evaluate_command,
    sweep_command,
    report_command,
    check_command,
    data_commands,
):
    main.add_command(command)
