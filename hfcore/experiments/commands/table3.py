"""``hfcore reproduce table3``: CURVES with Nesterov's momentum by the scale of the start."""

from __future__ import annotations

from typing import Any

import click

from hfcore.cli.invocation import Invocation
from hfcore.cli.options import FiniteRange, numbers
from hfcore.experiments.commands.momentum_autoencoders import AutoencoderTable, autoencoder_options
from hfcore.experiments.commands.tuned import is_part, rates_of
from hfcore.experiments.table3 import DATASET, MOMENTUM, SCALES, scale_columns, table3_report


@click.command("table3")
@click.option(
    "--scales",
    default=",".join(f"{scale:g}" for scale in SCALES),
    help="Factors on the initial weights, separated by commas.",
)
@click.option("--momentum", type=FiniteRange(0, 1, True, True), default=MOMENTUM, help="μ_max")
@autoencoder_options()
@click.pass_context
def table3_command(context: click.Context, /, scales: str, momentum: float, **options: Any) -> None:
    """The scale of the start on CURVES beside Sutskever et al. (2013), table 3.

    The learning rate of every scale is chosen by a search. The paper trains for
    750,000 updates. Files, Ctrl-C and --resume are as for table5.
    """
    chosen = numbers(scales, "--scales")
    if min(chosen) <= 0:
        raise click.BadParameter(f"got {scales!r}, need positive numbers", param_hint="--scales")
    keys = {f"{scale:g}" for scale in chosen}
    rates = rates_of(options["rates"], keys | {DATASET} | {f"{DATASET}/{key}" for key in keys})
    invocation = Invocation("table3", options)
    table = AutoencoderTable(invocation)
    with invocation.errors_shown():
        results = table.run([DATASET], lambda name: scale_columns(chosen, momentum, rates))
        if is_part(invocation, results.values()):
            return
        settings = {**table.settings, "momentum": momentum}
        invocation.show(*table3_report(results, settings, invocation.folder))
    invocation.end(context, interrupted=not results[DATASET].finished)
