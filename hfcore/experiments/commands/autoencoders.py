"""The autoencoder experiments of Martens (2010): ``curves-log``, ``martens2010-table2``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import hfcore as hf
from hfcore.cli.invocation import run_options
from hfcore.cli.options import Decorator, decorated_by, folder_option
from hfcore.experiments.commands.training import Trainings
from hfcore.experiments.experiment import (
    HF,
    METHODS,
    Experiment,
    Method,
    load,
    on_device,
    with_validation,
    without_validation,
)
from hfcore.experiments.published import CURVES_LOG_END
from hfcore.experiments.training import Trained


def autoencoder_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that both experiments have."""
    options: list[Decorator] = [
        click.option("--seed", type=click.IntRange(0), default=0, help="Of the first weights."),
        click.option(
            "--seconds",
            type=click.FloatRange(0, min_open=True),
            help="Stop each run after so many seconds of training.",
        ),
        run_options(resume="Continue the run in --run-dir.", quiet="Only the table at the end."),
    ]
    decorated: Callable[..., None] = decorated_by(options)(command)
    return decorated


@click.command("curves-log")
@click.option("--iterations", type=click.IntRange(1), default=CURVES_LOG_END, help="HF steps.")
@autoencoder_options
@click.pass_context
def curves_log_command(context: click.Context, /, **options: Any) -> None:
    """Martens' demo on CURVES beside its published log.

    Prints every iteration, at the end the table and the files written: table (markdown), numbers
    (JSON) and a plot, in the run folder. Ctrl-C ends the run after its iteration.
    """
    from hfcore.experiments.curves_log import curves_log_report  # matplotlib is slow to import

    preset = hf.presets.autoencoders["curves"]
    trainings = _Autoencoders("curves-log", options)
    with trainings.errors_shown():
        experiment = Experiment(trainings.data("curves"), preset, options["seed"])
        result = trainings.run(experiment, Method(HF), trainings.folder)
        trainings.show(*curves_log_report(result, experiment.dataset, trainings.folder))
    trainings.end(context, interrupted=result.reason == "interrupted")


@click.command("martens2010-table2")
@click.option("--dataset", type=click.Choice(sorted(hf.presets.autoencoders)), required=True)
@click.option("--iterations", type=click.IntRange(1), help="HF steps, or passes.  [default: 200]")
@click.option("--l2", type=click.FloatRange(0), help="Weight decay.  [default: the preset's]")
@click.option("--starred", is_flag=True, help="The starred run: its weight decay.")
@click.option(
    "--early-stopping",
    type=click.IntRange(1),
    metavar="PATIENCE",
    help="Stop after so many iterations without a better validation error; the best one counts. "
    "Where the data has no validation part a tenth of the training part is held out.",
)
@click.option(
    "--methods",
    default=HF,
    help=f"Separated by commas: {', '.join(METHODS)}; name=rate sets a learning rate. "
    "With several the plot shows error against seconds for each (figure 2).",
)
@folder_option
@autoencoder_options
@click.pass_context
def martens2010_table2_command(context: click.Context, /, dataset: str, **options: Any) -> None:
    """Autoencoder errors on CURVES, MNIST or FACES beside Martens (2010), table 2.

    Prints every iteration, at the end the table and the files written: table (markdown), numbers
    (JSON) and a plot, in the run folder, which holds one folder for each method.
    """
    from hfcore.experiments.martens2010_table2 import table2_report  # matplotlib is slow to import

    preset = hf.presets.autoencoders[dataset]
    l2 = _weight_decay(dataset, options["l2"], options["starred"])
    methods = _methods(options["methods"])
    trainings = _Autoencoders(f"table2-{dataset}", options)
    with trainings.errors_shown():
        experiment = Experiment(trainings.data(dataset), preset, options["seed"], l2)
        results: dict[str, Trained] = {}
        for method in methods:
            result = trainings.run(experiment, method, trainings.folder / str(method))
            results[str(method)] = result
            if result.reason == "interrupted":
                break
        trainings.show(*table2_report(experiment, results, trainings.folder))
    trainings.end(context, interrupted=result.reason == "interrupted")


def _weight_decay(dataset: str, l2: float | None, starred: bool) -> float | None:
    if not starred:
        return l2
    if l2 is not None:
        raise click.UsageError("--starred has a weight decay of its own; leave out --l2")
    value = hf.presets.autoencoders[dataset].starred_l2
    if value is None:
        raise click.UsageError(f"--starred: there is no starred run of {dataset}")
    return value


def _methods(text: str) -> list[Method]:
    try:
        methods = [Method.parse(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--methods") from error
    if len({str(method) for method in methods}) < len(methods):
        raise click.BadParameter(f"got {text!r}, need different ones", param_hint="--methods")
    return methods


class _Autoencoders(Trainings):
    """A call that trains autoencoders on one data set with limits."""

    def data(self, name: str) -> hf.data.Dataset:
        """On the device, with a validation part if it is needed."""
        split = with_validation if self.options.get("early_stopping") else without_validation
        return on_device(split(load(name, self.options.get("folder"))), self.device)

    def run(self, experiment: Experiment, method: Method, folder: Path) -> Trained:
        """One method."""
        return self.train(
            experiment.training(method),
            folder,
            hf.training.Limits(
                iterations=self.options["iterations"] or experiment.preset.iterations,
                seconds=self.options["seconds"],
            ),
            title=f"{method}: ",
            patience=self.options.get("early_stopping"),
        )
