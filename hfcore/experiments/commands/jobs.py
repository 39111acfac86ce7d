"""Commands of many runs: --workers, --slurm and --cohort of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from hfcore.cli.executors import check_where, executor_of, part_given
from hfcore.cli.invocation import Invocation
from hfcore.experiments.side_by_side import Runnable, by_executor, side_by_side

T = TypeVar("T")


def part_of(runs: Sequence[T], options: Mapping[str, Any]) -> Sequence[T]:
    """Those of --cohort I/N, every N-th from the I-th on; all without it."""
    check_where(options)
    part = part_given(options["cohort"])
    return runs if part is None else runs[part[0] - 1 :: part[1]]


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
