"""A command in the processes that torchrun started: one group, one folder, one voice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from hfcore.cli.options import Decorator, FiniteRange, decorated_by, device_of
from hfcore.distributed.ranks import RankFailed, RankLost, Ranks
from hfcore.distributed.sums import REDUCTIONS
from hfcore.distributed.torchrun import (
    TIMEOUT_SECONDS,
    local_device,
    may_restart,
    restarts,
    started_group,
)


def processes_options() -> Decorator:
    """``--reduction`` and ``--timeout``."""
    return decorated_by(
        [
            click.option(
                "--reduction",
                type=click.Choice(REDUCTIONS),
                help="exact: the same bits on any number of processes; fast: one all-reduce a sum. "
                " [default: under torchrun exact on the CPU, fast on GPUs]",
            ),
            click.option(
                "--timeout",
                type=FiniteRange(0, min_open=True),
                default=TIMEOUT_SECONDS,
                help="Seconds after which a process that does not answer ends the others.",
            ),
        ]
    )


@contextmanager
def processes(context: click.Context, options: dict[str, Any]) -> Iterator[Ranks]:
    """The processes of a command; this one alone where torchrun did not start it.

    ``options`` and those of the context then name the device of this process. What ends another
    process is an error of the command.
    """
    options["device"] = context.params["device"] = str(local_device(device_of(options["device"])))
    if may_restart() and options["run_dir"] is None:
        raise click.UsageError(
            "--run-dir: was not given; need one with torchrun's --max-restarts, so that a restart "
            "finds the run"
        )
    try:
        with started_group(options["device"], timeout=options["timeout"]) as group:
            ranks = Ranks(group)
            if restarts():
                options["resume"] = ranks.any(ranks.first and _has_run(options))
            yield ranks
    except (RankFailed, RankLost) as error:
        raise click.ClickException(str(error)) from error


def _has_run(options: dict[str, Any]) -> bool:
    """Whether a run has begun in the folder."""
    return bool((options["run_dir"] / "config.json").exists())
