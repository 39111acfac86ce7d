"""Commands of many runs: --workers, --slurm and --cohort of them, and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import click

from hfcore.cli.executors import check_where, executor_of, part_given
from hfcore.cli.invocation import Invocation
from hfcore.experiments.pace import Pace
from hfcore.experiments.side_by_side import Runnable, by_executor, side_by_side

T = TypeVar("T")


def part_of(runs: Sequence[T], options: Mapping[str, Any]) -> Sequence[T]:
    """Those of --cohort I/N, every N-th from the I-th on; all without it."""
    check_where(options)
    part = part_given(options["cohort"])
    return runs if part is None else runs[part[0] - 1 :: part[1]]


def in_this_process(options: Mapping[str, Any]) -> bool:
    """Whether runs are neither in processes of their own nor on other machines."""
    return options.get("slurm") is None and (options.get("workers") or 1) == 1


def pace_of(
    invocation: Invocation,
    operations: Mapping[Hashable, float],
    *,
    limits: Mapping[Hashable, float] | None = None,
    at_most: bool = False,
    workers: int | None = None,
    what: str = "run",
) -> Pace:
    """How long the runs of a call take, with their order of magnitude said; nothing if --quiet.

    What other machines take is not known here. See :class:`hfcore.experiments.pace.Pace`.
    """
    options = invocation.options
    silent = options["quiet"] or options.get("slurm") is not None
    pace = Pace(
        operations,
        invocation.device,
        limits=limits,
        at_most=at_most,
        workers=workers or 1,
        what=what,
        tell=(lambda line: None) if silent else click.echo,
    )
    if not silent:
        pace.expect()
    return pace


def run_jobs(
    jobs: Sequence[Runnable],
    invocation: Invocation,
    *,
    begun: Callable[[Any], None] = lambda job: None,
    ended: Callable[[Any], None] = lambda job: None,
) -> bool:
    """All ``jobs`` in the processes of --workers, as the jobs of --slurm, or here; False if they
    were interrupted."""
    options = invocation.options
    if options["slurm"] is None:
        return side_by_side(jobs, options["workers"] or 1, begun=begun, ended=ended)
    with executor_of(options, invocation.folder) as by:
        return by_executor(jobs, by["executor"], ended=ended)
