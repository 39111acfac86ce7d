"""``hfcore reproduce fig5``: CG against NAG on a quadratic of a Hessian-free run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import hfcore as hf
from hfcore.cli.invocation import run_options
from hfcore.cli.options import SEED
from hfcore.experiments.commands.jobs import pace_of
from hfcore.experiments.commands.training import Trainings
from hfcore.experiments.experiment import (
    HF,
    Experiment,
    Method,
    load,
    on_device,
    without_validation,
)
from hfcore.experiments.fig5 import (
    ARITHMETIC,
    CG_ITERATIONS,
    ITERATIONS,
    fig5_report,
    quadratic_of,
)
from hfcore.experiments.pace import autoencoder_parameters, gradients
from hfcore.experiments.quadratic import Krylov, Quadratic, lanczos, load_curves, save_curves

DATASET = "curves"
QUADRATIC, KRYLOV, CG = "quadratic.safetensors", "krylov.safetensors", "cg.safetensors"


@click.command("fig5")
@click.option(
    "--iterations",
    type=click.IntRange(1),
    default=ITERATIONS,
    help="HF steps before it.",
)
@click.option("--cg-iterations", type=click.IntRange(1), default=CG_ITERATIONS, help="CG's last.")
@click.option("--images", type=click.IntRange(1), help="Only the first so many.")
@click.option("--seed", type=SEED, default=0, help="Of the first weights.")
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
    quadratic.safetensors), and prints φ of both methods, CG's in float32, in float64 and in exact
    arithmetic. With --resume the same command continues,
    and when all is done prints the table again.
    """
    trainings = Trainings("fig5", options)
    interrupted = False
    with trainings.errors_shown():
        dataset = on_device(without_validation(load(DATASET)), trainings.device)
        if images is not None:
            dataset = replace(dataset, train=dataset.train[:images])
        experiment = Experiment(dataset, hf.presets.autoencoders[DATASET], seed)
        trainings.pace = pace_of(
            trainings, _operations(trainings, experiment, iterations, cg_iterations)
        )
        quadratic, interrupted = _quadratic(trainings, experiment, iterations)
        if quadratic is not None:
            krylov = _krylov(trainings, quadratic, cg_iterations)
            cg = _conjugate_gradients(trainings, quadratic, cg_iterations)
            report = fig5_report(krylov, cg, quadratic.settings, dataset.facts, trainings.folder)
            trainings.show(*report)
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
            trainings.pace.end(path)
            return krylov
    with _progress(trainings, path, iterations) as told:
        # In float32 the tridiagonal matrix is off by a percent in φ.
        double = quadratic.to(torch.float64)
        krylov = lanczos(double.operator().matvec, double.gradient, iterations, report=told)
    krylov.save(path)
    return krylov


def _conjugate_gradients(
    trainings: Trainings, quadratic: Quadratic, iterations: int
) -> dict[str, np.ndarray]:
    """φ ``[m+1]`` of CG in each arithmetic, computed first if it is not there."""
    path = trainings.folder / CG
    if trainings.options["resume"] and path.exists():
        found = load_curves(path)
        if all(name in found and len(found[name]) == iterations + 1 for name in ARITHMETIC):
            trainings.pace.end(path)
            return found
    with _progress(trainings, path, iterations * len(ARITHMETIC)) as told:
        found = {
            name: quadratic.to(dtype).conjugate_gradient(iterations, report=told)
            for name, dtype in ARITHMETIC.items()
        }
    save_curves(found, path)
    return found


@contextmanager
def _progress(trainings: Trainings, path: Path, products: int) -> Iterator[Callable[[int], None]]:
    """What is to be told of each of so many products, which end in a file: a bar, or some lines."""
    hidden = trainings.options["quiet"] or not sys.stderr.isatty()
    trainings.pace.begin(path)
    done = 0
    with click.progressbar(
        length=products, label="products", hidden=hidden, file=sys.stderr
    ) as bar:

        def told(j: int) -> None:
            nonlocal done
            done += 1
            bar.update(1)
            if hidden:
                trainings.pace.within(path, done / products)

        yield told
    trainings.pace.end(path)


def _operations(
    trainings: Trainings, experiment: Experiment, iterations: int, cg_iterations: int
) -> dict[Hashable, float]:
    """Floating-point operations of the three parts by their folder or file.

    A product in float64 counts twice.
    """
    parameters = autoencoder_parameters(experiment.preset.encoder_sizes)
    images = len(experiment.dataset.train)
    product = gradients(parameters, images / experiment.preset.curvature_batches, cg_iterations)
    of_cg = sum(2 if dtype == torch.float64 else 1 for dtype in ARITHMETIC.values())
    return {
        trainings.folder / "hf": experiment.operations(Method(HF)) * iterations,
        trainings.folder / KRYLOV: 2 * product,
        trainings.folder / CG: of_cg * product,
    }
