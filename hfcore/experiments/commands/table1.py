"""``hfcore reproduce table1``: autoencoders with SGD, both momenta and the HF hybrid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

import hfcore as hf
from hfcore.experiments.commands.momentum_autoencoders import (
    AutoencoderTable,
    autoencoder_options,
    datasets_of,
    datasets_option,
)
from hfcore.experiments.commands.training import Trainings
from hfcore.experiments.commands.tuned import columns_given, columns_option, is_part, rates_of
from hfcore.experiments.experiment import load, on_device, without_validation
from hfcore.experiments.hybrid import hybrid_training
from hfcore.experiments.table1 import COLUMNS, momentum_columns, table1_report
from hfcore.experiments.training import Trained


@click.command("table1")
@datasets_option
@columns_option(COLUMNS)
@click.option(
    "--hf-updates",
    type=click.IntRange(0),
    default=0,
    help="Of the hybrid, column HF†, whose phases are shortened to so many; 0 leaves it out.",
)
@autoencoder_options()
@click.pass_context
def table1_command(
    context: click.Context, /, datasets: str, columns: str, hf_updates: int, **options: Any
) -> None:
    """Autoencoders with momentum beside Sutskever et al. (2013), table 1.

    The learning rate of every column is chosen by a search; the hybrid starts from the weights of
    the first seed. Files, Ctrl-C and --resume are as for table5.
    """
    sets, chosen = datasets_of(datasets), columns_given(columns)
    rates = rates_of(
        options["rates"], {*sets, *chosen, *(f"{s}/{c}" for s in sets for c in chosen)}
    )
    trainings = Trainings("table1", options)
    table = AutoencoderTable(trainings)
    hybrids: dict[str, Trained] = {}
    with trainings.errors_shown():
        results = table.run(sets, lambda name: momentum_columns(name, chosen, rates))
        if is_part(trainings, results.values()):
            return
        interrupted = not all(tuned.finished for tuned in results.values())
        for name in sets if hf_updates and not interrupted else ():
            hybrids[name] = _hybrid(trainings, name, hf_updates, table.procedure.seeds[0])
            interrupted = hybrids[name].reason == "interrupted"
            if interrupted:
                break
        settings = {**table.settings, "hf_updates": hf_updates}
        trainings.show(*table1_report(results, hybrids, settings, trainings.folder))
    trainings.end(context, interrupted=interrupted)


def _hybrid(trainings: Trainings, name: str, updates: int, seed: int) -> Trained:
    """The hybrid's training."""
    options = trainings.options
    dataset = on_device(without_validation(load(name, options["folder"])), trainings.device)
    if options["images"] is not None:
        dataset = replace(dataset, train=dataset.train[: options["images"]])
    return trainings.train(
        hybrid_training(dataset, updates, seed),
        trainings.folder / name / "hybrid",
        hf.training.Limits(iterations=updates),
    )
