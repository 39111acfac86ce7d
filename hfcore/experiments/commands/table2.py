"""``hfcore reproduce table2``: autoencoders before and after μ is lowered to 0.9."""

from __future__ import annotations

from typing import Any

import click

from hfcore.cli.invocation import Invocation
from hfcore.experiments.commands.momentum_autoencoders import (
    AutoencoderTable,
    autoencoder_options,
    datasets_of,
    datasets_option,
)
from hfcore.experiments.commands.tuned import is_part, rates_of
from hfcore.experiments.table2 import best_column, check_tests, table2_report


@click.command("table2")
@datasets_option
@autoencoder_options()
@click.pass_context
def table2_command(context: click.Context, /, datasets: str, **options: Any) -> None:
    """The last updates at μ = 0.9 beside Sutskever et al. (2013), table 2.

    (Table 2 of Martens (2010) is martens2010-table2.) One column a data set, the paper's best:
    Nesterov's momentum up to 0.999, on MNIST 0.99. Files, Ctrl-C and --resume are as for table5.
    """
    chosen = datasets_of(datasets)
    rates = rates_of(options["rates"], set(chosen))
    invocation = Invocation("table2", options)
    table = AutoencoderTable(invocation)
    with invocation.errors_shown():
        check_tests(options["updates"], options["final_updates"], options["test_every"])
        results = table.run(chosen, lambda name: [best_column(name, rates)])
        if is_part(invocation, results.values()):
            return
        invocation.show(*table2_report(results, table.settings, invocation.folder))
    invocation.end(context, interrupted=not all(tuned.finished for tuned in results.values()))
