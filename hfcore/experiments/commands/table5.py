"""``hfcore reproduce table5``: momentum on problems with long-term dependencies."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import click

import hfcore as hf
from hfcore.cli.executors import executor_of
from hfcore.cli.invocation import Invocation
from hfcore.cli.options import names
from hfcore.experiments.commands.tuned import (
    columns_given,
    columns_option,
    is_part,
    pace_of_sweeps,
    parsed,
    procedure_of,
    rates_of,
    settings_of,
    tuned_options,
)
from hfcore.experiments.table5 import (
    COLUMNS,
    FINAL_MOMENTUM,
    PROBLEMS,
    TEST_SIZE,
    Remedy,
    Rung,
    columns_of,
    remedies_of,
    table5_report,
    with_fast_momentum,
)
from hfcore.experiments.tuning import Tuned


@click.command("table5")
@click.option(
    "--problems",
    default=",".join(PROBLEMS),
    help="Separated by commas: add-T, mul-T, mem-5-T, mem-20-T with a length T.",
)
@columns_option(COLUMNS)
@tuned_options(updates=50_000, batch_size=100)
@click.option("--hidden", type=click.IntRange(1), default=100, help="Hidden units.")
@click.option(
    "--final-phase",
    type=click.IntRange(1),
    metavar="N",
    help="Further columns, not the paper's: those of a μ above 0.9 with the last N updates at "
    "μ = 0.9, against runs that escape and are thrown back.",
)
@click.option(
    "--falling-rate",
    type=click.IntRange(1),
    metavar="N",
    help="The same with an ε that falls linearly to nothing over the last N updates.",
)
@click.option(
    "--on-device",
    is_flag=True,
    help="Sequences are drawn where nets are: others than without it, of one distribution.",
)
@click.pass_context
def table5_command(
    context: click.Context,
    /,
    problems: str,
    columns: str,
    hidden: int,
    final_phase: int | None,
    falling_rate: int | None,
    on_device: bool,
    **options: Any,
) -> None:
    """Recurrent nets with momentum beside Sutskever et al. (2013), table 5.

    The learning rate of every column is that with the best average over the seeds.
    Prints the table and writes it (markdown), the numbers (JSON), the map of learning rates and
    outcomes of every problem (CSV, PNG) and a plot into the run folder. Ctrl-C ends it with
    checkpoints; with --resume the same command continues, and when all is done prints the table
    again.
    """
    rungs = [parsed(Rung.parse, name, "--problems") for name in names(problems, "--problems")]
    chosen = columns_given(columns)
    where = {*chosen, *map(str, rungs), *(f"{rung}/{name}" for rung in rungs for name in chosen)}
    rates = rates_of(options["rates"], where)
    asked = remedies_of(final_phase, falling_rate)
    if asked and not with_fast_momentum(columns_of(rungs[0], chosen, rates)):
        raise click.BadParameter(
            f"got an option for columns with μ above {FINAL_MOMENTUM}, need one of these beside "
            f"or in the place of {columns}",
            param_hint=f"--{asked[0].folder}",
        )
    invocation = Invocation("table5", options)
    start = hf.RnnStart(hidden_size=hidden)
    drawn = {"on_device": True} if on_device else {}
    sweep_options: dict[str, Any] = {"start": start, "test_size": TEST_SIZE, **drawn}
    procedure = procedure_of(invocation, schedule="delayed", **sweep_options)
    results: dict[str, Tuned] = {}
    remedied: dict[Remedy, dict[str, Tuned]] = {remedy: {} for remedy in asked}
    with invocation.errors_shown(), executor_of(options, invocation.folder) as by:
        procedure = procedure.having(**by)
        work: dict[Hashable, float] = {}
        for rung in rungs:
            task, tuned_columns = rung.problem(), columns_of(rung, chosen, rates)
            at = invocation.folder / str(rung)
            work |= procedure.operations(task, tuned_columns, at)
            fast = with_fast_momentum(tuned_columns)
            for remedy in remedied if fast else ():
                work |= remedy.applied(procedure).operations(task, fast, at / remedy.folder)
        procedure = replace(procedure, pace=pace_of_sweeps(invocation, work))
        for rung in rungs:
            folder, tuned_columns = invocation.folder / str(rung), columns_of(rung, chosen, rates)
            results[str(rung)] = procedure(rung.problem(), tuned_columns, folder)
            if results[str(rung)].waits:
                continue
            if not results[str(rung)].finished:
                break
            fast = with_fast_momentum(tuned_columns)
            for remedy, found in remedied.items() if fast else ():
                at = folder / remedy.folder
                found[str(rung)] = remedy.applied(procedure)(rung.problem(), fast, at)
                if not (found[str(rung)].finished or found[str(rung)].waits):
                    break
            if not all(
                t.finished or t.waits for found in remedied.values() for t in found.values()
            ):
                break
        every = [*results.values(), *(t for found in remedied.values() for t in found.values())]
        if is_part(invocation, every):
            return
        falling = {} if falling_rate is None else {"falling_rate": falling_rate}
        more = {**falling, **drawn}
        settings = settings_of(procedure, hidden=hidden, final_phase=final_phase, **more)
        invocation.show(*table5_report(results, settings, invocation.folder, remedied))
    invocation.end(context, interrupted=not all(tuned.finished for tuned in every))
