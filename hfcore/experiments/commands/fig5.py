"""``hfcore reproduce fig5``: CG against NAG on a quadratic of a Hessian-free run."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import click

import hfcore as hf
from hfcore.cli.invocation import run_options
from hfcore.experiments.commands.training import Trainings
from hfcore.experiments.experiment import (
    HF,
    Experiment,
    Method,
    load,
    on_device,
    without_validation,
)
from hfcore.experiments.fig5 import CG_ITERATIONS, ITERATIONS, fig5_report, quadratic_of
from hfcore.experiments.quadratic import Krylov, Quadratic, lanczos

DATASET = "curves"
QUADRATIC, KRYLOV = "quadratic.safetensors", "krylov.safetensors"


@click.command("fig5")
@click.option(
    "--iterations",
    type=click.IntRange(1),
    default=ITERATIONS,
    help="HF steps before it.",
)
@click.option("--cg-iterations", type=click.IntRange(1), default=CG_ITERATIONS, help="CG's last.")
@click.option("--images", type=click.IntRange(1), help="Only the first so many.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the first weights.")
@run_options(resume="Continue the run in --run-dir.", quiet="Only the table at the end.")
@click.pass_context
def fig5_command(
    context: click.Context,
    /,
    iterations: int,
    cg_iterations: int,
    images: int | None,
    seed: int,
    **options: Any,
) -> None:
    """CG against Nesterov's momentum on one quadratic of HF, as in Sutskever et al. (2013), fig. 5.

    Trains on CURVES with Hessian-free steps, keeps the quadratic of the next step (run folder:
    quadratic.safetensors), and prints φ of both methods. With --resume the same command continues,
    and when all is done prints the table again.
    """
    trainings = Trainings("fig5", options)
    interrupted = False
    with trainings.errors_shown():
        dataset = on_device(without_validation(load(DATASET)), trainings.device)
        if images is not None:
            dataset = replace(dataset, train=dataset.train[:images])
        experiment = Experiment(dataset, hf.presets.autoencoders[DATASET], seed)
        quadratic, interrupted = _quadratic(trainings, experiment, iterations)
        if quadratic is not None:
            krylov = _krylov(trainings, quadratic, cg_iterations)
            facts = dataset.facts
            trainings.show(*fig5_report(krylov, quadratic.settings, facts, trainings.folder))
    trainings.end(context, interrupted=interrupted)


def _quadratic(
    trainings: Trainings, experiment: Experiment, iterations: int
) -> tuple[Quadratic | None, bool]:
    """The stored quadratic, made first if it is not there; None and True after Ctrl-C."""
    folder, training = trainings.folder / "hf", experiment.training(Method(HF))
    resume = trainings.options["resume"] and folder.is_dir()
    result = trainings.train(training, folder, hf.training.Limits(iterations=iterations))
    if result.reason != "iterations":
        if result.reason != "interrupted":
            raise ValueError(f"{folder}: the run ended early: {result.reason}")
        return None, True
    path = trainings.folder / QUADRATIC
    if not (resume and path.exists()):
        quadratic_of(experiment, training, iterations).save(path)
    quadratic = Quadratic.load(path, trainings.device)
    if quadratic.settings.iteration != iterations:
        raise ValueError(
            f"{path}: is the quadratic after {quadratic.settings.iteration} iterations, need "
            f"{iterations}; name another --run-dir"
        )
    return quadratic, False


def _krylov(trainings: Trainings, quadratic: Quadratic, iterations: int) -> Krylov:
    """What the products give, computed first if it is not there."""
    path = trainings.folder / KRYLOV
    if trainings.options["resume"] and path.exists():
        krylov = Krylov.load(path)
        if krylov.asked == iterations:
            return krylov
    hidden = trainings.options["quiet"] or not sys.stderr.isatty()
    with click.progressbar(
        length=iterations, label="products", hidden=hidden, file=sys.stderr
    ) as bar:
        matrix = quadratic.operator()
        krylov = lanczos(
            matrix.matvec, quadratic.gradient, iterations, report=lambda j: bar.update(1)
        )
    krylov.save(path)
    return krylov
