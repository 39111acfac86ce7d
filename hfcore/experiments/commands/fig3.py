"""``hfcore reproduce fig3``: Hessian-free on the eight problems of Martens & Sutskever (2011)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from hfcore.cli.executors import executor_options
from hfcore.cli.invocation import Invocation, run_options
from hfcore.cli.options import FiniteRange, names, numbers, seeds_of
from hfcore.experiments.commands.jobs import in_this_process, pace_of, part_of, run_jobs
from hfcore.experiments.fig3 import (
    BATCH_SIZE,
    DAMPINGS,
    HIDDEN,
    LENGTHS,
    LIMIT,
    NONE,
    PRECONDITIONERS,
    PROBLEMS,
    SPARSE,
    STARTS,
    TEST_SIZE,
    Case,
    Settings,
    cases_of,
)
from hfcore.experiments.fig3_report import fig3_report
from hfcore.experiments.fig3_rows import Row, is_done, joined, read_rows
from hfcore.experiments.fig3_runs import Job


@click.command("fig3")
@click.option(
    "--problems",
    default=",".join(PROBLEMS),
    metavar="A,B,…",
    help=f"Of {', '.join(PROBLEMS)}.",
)
@click.option("--lengths", default=",".join(map(str, LENGTHS)), metavar="A,B,…", help="T.")
@click.option("--seeds", default="3", metavar="N|A,B,…", help="How many, or which.")
@click.option(
    "--damping",
    default=",".join(DAMPINGS),
    metavar="A,B",
    help="structural, with Tikhonov's; tikhonov alone.",
)
@click.option(
    "--starts",
    default=SPARSE,
    metavar="A,B",
    help=f"Of {', '.join(STARTS)}: the echo-state start of Sutskever et al. (2013).",
)
@click.option(
    "--preconditioners", default=NONE, metavar="A,B,…", help=f"Of {', '.join(PRECONDITIONERS)}."
)
@click.option(
    "--limit",
    type=FiniteRange(0, min_open=True),
    default=LIMIT,
    help="Minibatches of a run; more are a failure.",
)
@click.option("--hidden", type=click.IntRange(1), default=HIDDEN, help="Hidden units.")
@click.option("--batch-size", type=click.IntRange(1), default=BATCH_SIZE, help="Sequences.")
@click.option("--test-size", type=click.IntRange(1), default=TEST_SIZE, help="Sequences.")
@executor_options()
@click.option(
    "--results",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file fig3.json whose runs join these and are not done again. May be repeated.",
)
@click.option("--print-only", is_flag=True, help="Train nothing: the figure of what is there.")
@run_options(
    resume="Continue the runs in --run-dir; others may be added.",
    quiet="Only the table at the end.",
)
@click.pass_context
def fig3_command(context: click.Context, /, **options: Any) -> None:
    """Minibatches until success, beside and without structural damping, over T and seeds.

    Every run has a folder in the run folder. Prints the figure as a table with a row a run and
    writes it (markdown), the numbers (JSON) and a plot. Runs have one thread each, or --threads.
    Ctrl-C ends them with checkpoints; with --resume the same command continues, and when all is
    done prints the figure again.
    """
    figure = _Figure("fig3", options)
    with figure.errors_shown(RuntimeError):
        known = read_rows(options["results"], figure.settings)
        whole = options["print_only"] or figure.train(known)
        if whole and options["cohort"] is not None:
            figure.end_part()
            return
        rows = joined(known, figure.rows())
        figure.show(*fig3_report(rows, figure.settings, figure.folder))
    figure.end(context, interrupted=not whole)


class _Figure(Invocation):
    """A call of the command: its cases and their folders."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.cases = _cases(options)
        shared = ("limit", "hidden", "batch_size", "test_size")
        self.settings = Settings(**{key: options[key] for key in shared})
        super().__init__(name, options)

    def train(self, known: Sequence[Row]) -> bool:
        """Do the runs that are neither known nor done; False if they were interrupted."""
        done = {Case.of(row) for row in known if is_done(row, self.settings.limit)}
        mine = part_of(self.cases, self.options)
        jobs = [job for job in map(self._job, mine) if job.case not in done and not job.row]
        taken_up = self.options["resume"] or self.options["cohort"] is not None
        if jobs and not taken_up and self.folder.exists():
            self._refuse(jobs)
        work: dict[Hashable, float] = {job.folder: job.operations for job in jobs}
        self.pace = pace_of(self, work, at_most=True, workers=self.options["workers"])
        if in_this_process(self.options):
            jobs = [replace(job, watch=partial(self.pace.within, job.folder)) for job in jobs]
        return run_jobs(jobs, self, begun=self._begun, ended=self._ended)

    def rows(self) -> list[Row]:
        """Those of the cases that were begun."""
        found = ((job.row or job.so_far()) for job in map(self._job, self.cases))
        return [row for row in found if row is not None]

    def _job(self, case: Case) -> Job:
        threads = self.options["threads"] or 1
        folder = self.folder / case.folder
        return Job(case, self.settings, folder, str(self.device), threads)

    def _refuse(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.folder.exists():
                raise ValueError(
                    f"{job.folder}: already holds a run; resume it (--resume) or name another "
                    "--run-dir"
                )

    def _begun(self, job: Job) -> None:
        if not self.options["quiet"]:
            click.echo(f"{job}: begins")
        so_far = job.so_far()
        self.pace.begin(job.folder, 0.0 if so_far is None else job.share(so_far["minibatches"]))

    def _ended(self, job: Job) -> None:
        row = job.row
        if not self.options["quiet"] and row is not None:
            outcome = "solved" if row["solved"] else f"not solved ({row['reason']})"
            click.echo(f"{job}: {outcome} after {row['minibatches']:,} minibatches")
        self.pace.end(job.folder)


def _cases(options: dict[str, Any]) -> list[Case]:
    """The cases that were asked for; BadParameter for what is none."""
    chosen = {
        "problems": list(PROBLEMS),
        "damping": list(DAMPINGS),
        "starts": list(STARTS),
        "preconditioners": list(PRECONDITIONERS),
    }
    for name, known in chosen.items():
        given = names(options[name], f"--{name}")
        for value in given:
            if value not in known:
                raise click.BadParameter(
                    f"got {value!r}, need some of {', '.join(known)}", param_hint=f"--{name}"
                )
        chosen[name] = given
    lengths = numbers(options["lengths"], "--lengths")
    if any(int(T) != T for T in lengths):
        raise click.BadParameter(
            f"got {options['lengths']!r}, need whole numbers", param_hint="--lengths"
        )
    cases = cases_of(
        chosen["problems"],
        [int(T) for T in lengths],
        chosen["damping"],
        chosen["starts"],
        chosen["preconditioners"],
        seeds_of(options["seeds"]),
    )
    for case in cases:
        try:
            case.task()
        except ValueError as error:
            message = f"{case.problem} with T = {case.length}: {error}"
            raise click.BadParameter(message, param_hint="--lengths") from error
    return cases
