"""``hfcore reproduce ablation``: the parts of the methods, one changed at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

import hfcore as hf
from hfcore.cli.invocation import Invocation, run_options
from hfcore.cli.options import names
from hfcore.cli.tables import number
from hfcore.experiments.ablation import (
    ABLATIONS,
    CURVES,
    MOMENTUM,
    Outcome,
    Settings,
    Variant,
    run,
    run_momentum,
    variants_of,
)
from hfcore.experiments.ablation_report import ablation_report
from hfcore.experiments.experiment import load, on_device, without_validation
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
    type=click.FloatRange(0, min_open=True),
    default=DEFAULTS.learning_rate,
    help="ε of momentum.",
)
@click.option(
    "--momentum",
    type=click.FloatRange(0, 1, True, True),
    default=DEFAULTS.momentum,
    help="μ up to this.",
)
@click.option("--test-every", type=click.IntRange(1), default=500, help="Updates of momentum.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of weights and data.")
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
    with ablations.errors_shown():
        found: dict[tuple[str, str], list[Outcome]] = {}
        for ablation, name in pairs:
            found[ablation, name] = ablations.compare(ablation, name)
            if ablations.interrupted:
                break
        whole = {key: outcomes for key, outcomes in found.items() if outcomes}
        if whole:
            settings, facts = ablations.settings, ablations.facts
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
        self.interrupted = False
        self.facts = ""
        self._dataset: hf.data.Dataset | None = None
        self._done: dict[tuple[str, str], Outcome] = {}

    def compare(self, ablation: str, problem: str) -> list[Outcome]:
        """One comparison; none of it where Ctrl-C came before its end."""
        outcomes = []
        for variant in variants_of(ablation, problem):
            key = problem, variant.folder
            if key not in self._done:
                self._done[key] = self._run(ablation, problem, variant)
            outcomes.append(self._done[key])
            if outcomes[-1].reason == "interrupted":
                self.interrupted = True
                return []
        return outcomes

    def _run(self, ablation: str, problem: str, variant: Variant) -> Outcome:
        folder, resume = self.folder / problem / variant.folder, self.options["resume"]
        quiet = self.options["quiet"]
        if not quiet:
            click.echo(f"{folder}: begins")
        if ablation in MOMENTUM:
            task = self._images() if problem == CURVES else Rung.parse(problem).problem()
            outcome = run_momentum(
                variant,
                task,
                self.settings,
                folder,
                resume=resume,
                test_every=self.options["test_every"],
                device=self.device,
                progress=not quiet,
            )
        else:
            dataset = self._curves() if problem == CURVES else None
            outcome = run(
                variant,
                problem,
                self.settings,
                dataset,
                folder,
                device=self.device,
                resume=resume,
                report=(lambda line: None) if quiet else _tell,
            )
        if not quiet:
            click.echo(f"{folder}: {number(outcome.errors[-1])} ({outcome.reason})")
        return outcome

    def _curves(self) -> hf.data.Dataset:
        if self._dataset is None:
            dataset = on_device(without_validation(load(CURVES)), self.device)
            self._dataset = replace(dataset, train=dataset.train[: self.settings.images])
            self.facts = dataset.facts
        return self._dataset

    def _images(self) -> hf.problems.Reconstruction:
        problem = hf.problems.Reconstruction(CURVES, images=self.settings.images)
        self.facts = self.facts or load(CURVES).facts
        return problem


def _tell(line: Line) -> None:
    error = number(line.get("train_error", line.get("loss")))
    click.echo(f"  {line['iteration']}: {error}, λ {number(line.get('damping'))}")
