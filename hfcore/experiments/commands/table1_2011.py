"""``hfcore reproduce table1-2011``: next-step prediction by RNN + HF and by LSTM + GD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import torch

import hfcore as hf
from hfcore.cli.invocation import Invocation, run_options
from hfcore.cli.options import Decorator, decorated_by, folder_option, names, numbers
from hfcore.cli.tables import number
from hfcore.experiments.machine import machine_name
from hfcore.experiments.next_step import COLUMNS, LSTM, RATES, RNN_HF, TASKS, Sizes
from hfcore.experiments.table1_2011 import Outcome, Procedure, table1_2011_report
from hfcore.experiments.training import Line

SEARCH_SHARE = 10
DEFAULTS = Sizes()


def _sizes() -> list[Decorator]:
    """Options for runs that are smaller than the published ones."""
    return [
        click.option("--length", type=click.IntRange(1), help="T.  [default: the paper's]"),
        click.option("--sequences", type=click.IntRange(1), help="midi, speech: only so many."),
        click.option("--hidden", type=click.IntRange(1), default=DEFAULTS.hidden, help="RNN."),
        click.option("--blocks", type=click.IntRange(1), default=DEFAULTS.blocks, help="LSTM."),
        click.option("--cells", type=click.IntRange(1), default=DEFAULTS.cells, help="Of a block."),
        click.option(
            "--curvature-size",
            "curvature",
            type=click.IntRange(1),
            default=DEFAULTS.curvature,
            help="hf: sequences of a curvature batch.",
        ),
        click.option(
            "--gradient-size",
            "gradient",
            type=click.IntRange(1),
            default=DEFAULTS.gradient,
            help="hf, balls: films of a gradient.",
        ),
        click.option(
            "--batch-size",
            "batch",
            type=click.IntRange(1),
            default=DEFAULTS.batch,
            help="LSTM: sequences of an update.",
        ),
        click.option(
            "--test-size",
            "test",
            type=click.IntRange(1),
            default=DEFAULTS.test,
            help="Sequences of the validation and of the test part, at most.",
        ),
    ]


def _options(command: Callable[..., None]) -> Callable[..., None]:
    options: list[Decorator] = [
        click.option("--task", type=click.Choice(list(TASKS)), required=True),
        click.option(
            "--columns",
            default=f"{RNN_HF},{LSTM}",
            help=f"Separated by commas: {', '.join(COLUMNS)}.",
        ),
        click.option(
            "--dataset",
            help="midi: piano_midi, nottingham, musedata or jsb_chorales.  [default: piano_midi]",
        ),
        click.option("--iterations", type=click.IntRange(1), default=200, help="HF steps."),
        click.option("--updates", type=click.IntRange(1), default=20_000, help="LSTM."),
        click.option(
            "--search-updates",
            type=click.IntRange(1),
            help="LSTM: of each rate, before the best goes on.  [default: --updates / 10]",
        ),
        click.option(
            "--rates",
            default=",".join(f"{rate:g}" for rate in RATES),
            help="LSTM: learning rates ε to search, separated by commas.",
        ),
        click.option(
            "--seconds",
            type=click.FloatRange(0, min_open=True),
            help="Of data and steps of each run, at most.",
        ),
        click.option("--test-every", type=click.IntRange(1), default=100, help="LSTM: updates."),
        click.option("--seed", type=click.IntRange(0), default=0, help="Of weights and batches."),
        *_sizes(),
        folder_option,
        run_options(
            resume="Continue the runs in --run-dir, to more iterations perhaps.",
            quiet="Only the table at the end.",
        ),
    ]
    decorated: Callable[..., None] = decorated_by(options)(command)
    return decorated


@click.command("table1-2011")
@_options
@click.pass_context
def table1_2011_command(context: click.Context, /, task: str, columns: str, **options: Any) -> None:
    """Next-step prediction beside Martens & Sutskever (2011), table 1.

    Balls, MIDI or speech, by a plain recurrent net with HF and by LSTMs with gradient descent,
    whose learning rate is searched. None of the paper's data are public; the table says what stands
    in. Prints the table and writes it (markdown), the numbers (JSON) and a plot of error against
    seconds into the run folder, which holds a folder for every run. Ctrl-C ends it with
    checkpoints; with --resume the same command continues, and when all is done prints the table
    again.
    """
    wanted = names(columns, "--columns")
    for column in wanted:
        if column not in COLUMNS:
            known = ", ".join(COLUMNS)
            raise click.BadParameter(f"got {column!r}, need {known}", param_hint="--columns")
    rates = numbers(options["rates"], "--rates")
    if min(rates) <= 0:
        raise click.BadParameter(
            f"got {options['rates']!r}, need positive numbers", param_hint="--rates"
        )
    problem = _problem(task, options)
    invocation = Invocation(f"table1-2011-{task}", options)
    procedure = _procedure(invocation, problem, rates)
    results: dict[str, Outcome] = {}
    with invocation.errors_shown():
        for column in wanted:
            results[column] = procedure(column, invocation.folder / column)
            if results[column].interrupted:
                break
        settings = {
            "seed": procedure.seed,
            "sizes": procedure.sizes,
            "search_updates": procedure.search_updates,
            "rates": list(rates),
            "machine": machine_name(invocation.device),
            "threads": torch.get_num_threads(),
        }
        invocation.show(*table1_2011_report(task, problem, results, settings, invocation.folder))
    invocation.end(context, interrupted=any(outcome.interrupted for outcome in results.values()))


def _problem(task: str, options: dict[str, Any]) -> hf.problems.NextStep:
    """The task's problem; UsageError for an option that it does not have."""
    named = ("length", "dataset", "sequences", "folder")
    given = {key: options[key] for key in named if options[key] is not None}
    try:
        problem = hf.problems.create(TASKS[task].problem.name, **given)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    assert isinstance(problem, hf.problems.NextStep)
    return problem


def _procedure(
    invocation: Invocation, problem: hf.problems.NextStep, rates: tuple[float, ...]
) -> Procedure:
    """How the columns are trained."""
    options = invocation.options
    quiet, seconds = options["quiet"], options["seconds"]
    search = options["search_updates"] or max(1, options["updates"] // SEARCH_SHARE)
    if search > options["updates"]:
        raise click.UsageError(
            f"--search-updates: got {search}, need at most --updates, {options['updates']}"
        )
    sizes = {name: options[name] for name in vars(DEFAULTS)}
    return Procedure(
        problem,
        Sizes(**sizes),
        options["seed"],
        invocation.device,
        hf.training.Limits(options["iterations"], seconds=seconds),
        hf.training.Limits(options["updates"], seconds=seconds),
        search,
        options["test_every"],
        rates,
        options["resume"],
        begin=(lambda text: None) if quiet else click.echo,
        report=(lambda line: None) if quiet else _show,
    )


def _show(line: Line) -> None:
    """A test of a run on the screen."""
    fields = ("loss", "validation_error", "test_error", "step_seconds")
    values = ", ".join(f"{f.replace('_', ' ')} {number(line.get(f))}" for f in fields)
    click.echo(f"{line['iteration']:>8,}: {values}")
