"""``hfcore reproduce ablation``: the parts of the methods, one changed at a time."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from pathlib import Path
from typing import Any

import click

from hfcore.cli.executors import executor_options
from hfcore.cli.invocation import Invocation, run_options
from hfcore.cli.options import SEED, FiniteRange, names
from hfcore.cli.tables import number
from hfcore.experiments.ablation import ABLATIONS, CURVES, Outcome, Settings, Variant, variants_of
from hfcore.experiments.ablation_report import ablation_report
from hfcore.experiments.ablation_runs import Images, Job
from hfcore.experiments.commands.jobs import pace_of, part_of, run_jobs
from hfcore.experiments.pace import Pace
from hfcore.experiments.table5 import Rung
from hfcore.experiments.training import Line

DEFAULTS = Settings()


@click.command("ablation")
@click.option(
    "--of",
    required=True,
    metavar="A,B,…",
    help=f"What is changed: {', '.join(ABLATIONS)}.",
)
@click.option(
    "--problem",
    default=CURVES,
    metavar="A,B,…",
    help=f"{CURVES}, or a recurrent one: add-T, mul-T, mem-5-T, mem-20-T.",
)
@click.option("--iterations", type=click.IntRange(1), default=DEFAULTS.iterations, help="HF steps.")
@click.option("--images", type=click.IntRange(4), help="Of CURVES only the first so many.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=DEFAULTS.batch_size,
    help="Sequences of a batch of HF.",
)
@click.option("--hidden", type=click.IntRange(1), default=DEFAULTS.hidden, help="Hidden units.")
@click.option("--updates", type=click.IntRange(1), default=DEFAULTS.updates, help="Of momentum.")
@click.option(
    "--rate",
    "learning_rate",
    type=FiniteRange(0, min_open=True),
    default=DEFAULTS.learning_rate,
    help="ε of momentum.",
)
@click.option(
    "--momentum",
    type=FiniteRange(0, 1, True, True),
    default=DEFAULTS.momentum,
    help="μ up to this.",
)
@click.option("--test-every", type=click.IntRange(1), default=500, help="Updates of momentum.")
@click.option("--seed", type=SEED, default=0, help="Of weights and data.")
@executor_options()
@run_options(
    resume="Continue the runs in --run-dir, to more --iterations perhaps; others may be added.",
    quiet="Only the tables at the end.",
)
@click.pass_context
def ablation_command(context: click.Context, /, of: str, problem: str, **options: Any) -> None:
    """What the texts claim of the parts of their methods: one is changed, the rest as published.

    Runs that several comparisons share are done once. Prints a table for each and writes them
    (markdown), the numbers (JSON) and a plot into the run folder. Ctrl-C ends it with a
    checkpoint.
    """
    pairs = _pairs(of, problem)
    ablations = _Ablations("ablation", options)
    with ablations.errors_shown(RuntimeError):
        ablations.interrupted = not ablations.done_elsewhere(pairs)
        if options["cohort"] is not None and not ablations.interrupted:
            ablations.end_part()
            return
        found: dict[tuple[str, str], list[Outcome]] = {}
        for ablation, name in pairs:
            if ablations.interrupted:
                break
            found[ablation, name] = ablations.compare(ablation, name)
        whole = {key: outcomes for key, outcomes in found.items() if outcomes}
        if whole:
            settings, facts = ablations.settings, ablations.images.facts
            ablations.show(*ablation_report(whole, settings, facts, ablations.folder))
    ablations.end(context, interrupted=ablations.interrupted)


def _pairs(of: str, problems: str) -> list[tuple[str, str]]:
    """Ablations and problems; BadParameter for what is none."""
    pairs = [(a, p) for p in names(problems, "--problem") for a in names(of, "--of")]
    for ablation, problem in pairs:
        if ablation not in ABLATIONS:
            known = ", ".join(ABLATIONS)
            raise click.BadParameter(f"got {ablation!r}, need some of {known}", param_hint="--of")
        try:
            if problem != CURVES:
                Rung.parse(problem)
        except ValueError as error:
            raise click.BadParameter(f"{error}, or {CURVES}", param_hint="--problem") from error
        try:
            variants_of(ablation, problem)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--of") from error
    return pairs


class _Ablations(Invocation):
    """A call of the command: its runs, each done once."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        super().__init__(name, options)
        shared = {key: options[key] for key in Settings.__dataclass_fields__}
        self.settings = Settings(**shared)
        self.images = Images(self.settings, self.device)
        self.interrupted = False
        self.pace = Pace({}, self.device)
        self._resume = bool(options["resume"])
        self._done: dict[Path, Outcome] = {}

    def done_elsewhere(self, pairs: list[tuple[str, str]]) -> bool:
        """Do all runs in processes of their own, or this part of them; False after Ctrl-C.

        Afterwards they are there to be read. Without --workers, --slurm and --cohort nothing is.
        Raises ValueError for runs that are there already, without --resume.
        """
        options = self.options
        every = [self._job(a, problem, v) for a, problem in pairs for v in variants_of(a, problem)]
        jobs = part_of(list({job.folder: job for job in every}.values()), options)
        work: dict[Hashable, float] = {job.folder: job.operations for job in jobs}
        self.pace = pace_of(self, work, workers=options["workers"])
        if all(options[name] is None for name in ("workers", "slurm", "cohort")):
            return True
        for job in () if self._resume or options["cohort"] is not None else jobs:
            if job.folder.exists():
                raise ValueError(f"{job.folder}: already holds a run; resume it (--resume)")
        self._resume = True
        return run_jobs(jobs, self, begun=self._begun, ended=self._ended)

    def compare(self, ablation: str, problem: str) -> list[Outcome]:
        """One comparison; none of it where Ctrl-C came before its end."""
        outcomes = []
        for variant in variants_of(ablation, problem):
            job = self._job(ablation, problem, variant)
            if job.folder not in self._done:
                self._done[job.folder] = self._run(job)
            outcomes.append(self._done[job.folder])
            if outcomes[-1].reason == "interrupted":
                self.interrupted = True
                return []
        return outcomes

    def _job(self, ablation: str, problem: str, variant: Variant) -> Job:
        return Job(
            ablation,
            problem,
            variant,
            self.settings,
            self.folder / problem / variant.folder,
            self.options["test_every"],
            str(self.device),
            self.options["threads"],
        )

    def _run(self, job: Job) -> Outcome:
        quiet = self.options["quiet"]
        self._begun(job)
        report = None if quiet else partial(self._within, job)
        outcome = job.outcome(self.images, resume=self._resume, report=report)
        if not quiet:
            click.echo(f"{job}: {number(outcome.errors[-1])} ({outcome.reason})")
        if outcome.reason != "interrupted":
            self._ended(job)
        return outcome

    def _begun(self, job: Job) -> None:
        if not self.options["quiet"]:
            click.echo(f"{job}: begins")
        self.pace.begin(job.folder)

    def _ended(self, job: Job) -> None:
        self.pace.end(job.folder)

    def _within(self, job: Job, line: Line) -> None:
        _tell(line)
        self.pace.within(job.folder, line["iteration"] / self.settings.iterations)


def _tell(line: Line) -> None:
    error = number(line.get("train_error", line.get("loss")))
    click.echo(f"  {line['iteration']}: {error}, λ {number(line.get('damping'))}")
