"""The experiments of Martens (2010): ``curves-log``, ``martens2010-table2``, ``fig2``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import hfcore as hf
from hfcore.cli.invocation import run_options
from hfcore.cli.options import SEED, Decorator, FiniteRange, decorated_by, folder_option
from hfcore.experiments.commands.jobs import pace_of
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

PRETRAINING = "pretraining"  # its folder in that of the call


def autoencoder_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that all these experiments have."""
    options: list[Decorator] = [
        click.option("--seed", type=SEED, default=0, help="Of the first weights."),
        click.option(
            "--seconds",
            type=FiniteRange(0, min_open=True),
            help="Stop each run after so many seconds of training.",
        ),
        run_options(resume="Continue the run in --run-dir.", quiet="Only the table at the end."),
    ]
    decorated: Callable[..., None] = decorated_by(options)(command)
    return decorated


pretrain_epochs_option = click.option(
    "--pretrain-epochs",
    type=click.IntRange(0),
    help="Of every layer.  [default: 50; 200 of the first layer of FACES]",
)


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
        trainings.expect(experiment, {trainings.folder: Method(HF)})
        result = trainings.run(experiment, Method(HF), trainings.folder)
        trainings.show(*curves_log_report(result, experiment.dataset, trainings.folder))
    trainings.end(context, interrupted=result.reason == "interrupted")


@click.command("martens2010-table2")
@click.option("--dataset", type=click.Choice(sorted(hf.presets.autoencoders)), required=True)
@click.option("--iterations", type=click.IntRange(1), help="HF steps, or passes.  [default: 200]")
@click.option("--l2", type=FiniteRange(0), help="Weight decay.  [default: the preset's]")
@click.option(
    "--starred", is_flag=True, help="The starred run: its weight decay, of the weights alone."
)
@click.option(
    "--early-stopping",
    type=click.IntRange(1),
    metavar="PATIENCE",
    help="Stop after so many iterations without a better validation error; the best one counts. "
    "Where the data has no validation part a tenth of the training part is held out.",
)
@click.option(
    "--columns",
    "--methods",
    "columns",
    default="rand-hf",
    help="Separated by commas: pt-ncg, rand-hf, pt-hf, and others: one of "
    f"{', '.join(METHODS)} behind pt- (pre-trained) or rand-; name=rate sets a learning rate.",
)
@pretrain_epochs_option
@folder_option
@autoencoder_options
@click.pass_context
def martens2010_table2_command(context: click.Context, /, dataset: str, **options: Any) -> None:
    """Autoencoder errors on CURVES, MNIST or FACES beside Martens (2010), table 2.

    Prints every iteration, at the end the table and the files written: table (markdown), numbers
    (JSON) and a plot, in the run folder, which holds one folder for each column, and one for the
    pre-training where a column needs it.
    """
    from hfcore.experiments.martens2010_table2 import table2_report  # matplotlib is slow to import

    preset = hf.presets.autoencoders[dataset]
    l2 = _weight_decay(dataset, options["l2"], options["starred"])
    methods = _methods(options["columns"])
    trainings = _Autoencoders(f"table2-{dataset}", options)
    with trainings.errors_shown():
        data = trainings.data(dataset)
        experiment = Experiment(data, preset, options["seed"], l2, options["starred"])
        results = trainings.run_all(experiment, methods)
        if results:
            trainings.show(*table2_report(experiment, results, trainings.folder))
    trainings.end(context, interrupted=trainings.interrupted)


@click.command("fig2")
@click.option("--iterations", type=click.IntRange(1), help="HF steps, or passes.  [default: 200]")
@pretrain_epochs_option
@autoencoder_options
@click.pass_context
def fig2_command(context: click.Context, /, **options: Any) -> None:
    """Error against seconds of PT+NCG, RAND+HF and PT+HF on CURVES: Martens (2010), figure 2.

    The seconds contain those of pre-training. The run folder is that of martens2010-table2 with
    these columns: what one of the two commands has run serves the other with --resume.
    """
    from hfcore.experiments import fig2  # matplotlib is slow to import

    trainings = _Autoencoders("fig2", options)
    with trainings.errors_shown():
        preset = hf.presets.autoencoders[fig2.DATASET]
        experiment = Experiment(trainings.data(fig2.DATASET), preset, options["seed"])
        results = trainings.run_all(experiment, [Method.parse(name) for name in fig2.METHODS])
        if results:
            trainings.show(*fig2.fig2_report(experiment, results, trainings.folder))
    trainings.end(context, interrupted=trainings.interrupted)


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
        raise click.BadParameter(str(error), param_hint="--columns") from error
    if len(set(methods)) < len(methods):
        raise click.BadParameter(f"got {text!r}, need different ones", param_hint="--columns")
    return methods


class _Autoencoders(Trainings):
    """A call that trains autoencoders on one data set with limits."""

    interrupted = False

    def data(self, name: str) -> hf.data.Dataset:
        """On the device, with a validation part if it is needed."""
        split = with_validation if self.options.get("early_stopping") else without_validation
        return on_device(split(load(name, self.options.get("folder"))), self.device)

    def run_all(self, experiment: Experiment, methods: Sequence[Method]) -> dict[Method, Trained]:
        """One method after the other, each in a folder of its own, until Ctrl-C."""
        self.expect(experiment, {self.folder / str(method): method for method in methods})
        start: hf.PretrainResult | None = None
        if any(method.pretrained for method in methods):
            start = self.pretrain(experiment)
            self.interrupted = start.reason == "interrupted"
        results: dict[Method, Trained] = {}
        for method in methods:
            if self.interrupted:
                break
            result = self.run(experiment, method, self.folder / str(method), start)
            results[method] = result
            self.interrupted = result.reason == "interrupted"
        return results

    def expect(self, experiment: Experiment, methods: Mapping[Path, Method]) -> None:
        """Say how long all of it takes by its size; ``methods`` have their folders."""
        iterations = self.options["iterations"] or experiment.preset.iterations
        work: dict[Hashable, float] = {
            folder: experiment.operations(method) * iterations for folder, method in methods.items()
        }
        seconds = self.options["seconds"]
        limits: dict[Hashable, float] = {}
        if seconds is not None:
            limits = dict.fromkeys(work, seconds)
        if any(method.pretrained for method in methods.values()):
            epochs = self.options["pretrain_epochs"]
            work[self.folder / PRETRAINING] = experiment.pretraining_operations(epochs)
        self.pace = pace_of(self, work, limits=limits)

    def run(
        self,
        experiment: Experiment,
        method: Method,
        folder: Path,
        start: hf.PretrainResult | None = None,
    ) -> Trained:
        """One method; ``start`` is that of one that is pre-trained."""
        result = self.train(
            experiment.training(method, start),
            folder,
            hf.training.Limits(
                iterations=self.options["iterations"] or experiment.preset.iterations,
                seconds=self.options["seconds"],
            ),
            title=f"{method}: ",
            patience=self.options.get("early_stopping"),
        )
        if start is None or not method.pretrained:
            return result
        return replace(result, before=start.seconds)

    def pretrain(self, experiment: Experiment) -> hf.PretrainResult:
        """The stack of machines that the pre-trained columns start from."""
        folder = self.folder / PRETRAINING
        if not self.options["quiet"]:
            click.echo(f"pre-training: {folder}")
        self.pace.begin(folder)
        result = hf.pretrain(
            experiment.net(),
            experiment.dataset,
            visible=experiment.visible,
            epochs=self.options["pretrain_epochs"],
            seed=experiment.seed,
            run_dir=folder,
            resume=self.options["resume"] and folder.is_dir(),
            report=None if self.options["quiet"] else _say_epoch,
        )
        if result.reason != "interrupted":
            self.pace.end(folder)
        return result


def _say_epoch(line: dict[str, Any]) -> None:
    click.echo(
        f"layer {line['layer']} epoch {line['layer_epoch']:>3}: error "
        f"{line['reconstruction_error']:.5g}, free energy {line['free_energy']:.5g}, "
        f"{line['seconds']:.3g} s"
    )
