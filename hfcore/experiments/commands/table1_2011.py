"""``hfcore reproduce table1-2011``: next-step prediction by RNN + HF and by LSTM + GD."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import click
import torch

import hfcore as hf
from hfcore.cli.invocation import Invocation, run_options
from hfcore.cli.options import (
    SEED,
    Decorator,
    FiniteRange,
    decorated_by,
    folder_option,
    names,
    numbers,
)
from hfcore.cli.tables import number
from hfcore.experiments.commands.jobs import pace_of
from hfcore.experiments.machine import machine_name
from hfcore.experiments.next_step import COLUMNS, LSTM, RATES, RNN_HF, TASKS, Sizes
from hfcore.experiments.pace import Pace, gradients, hessian_free, recurrent_parameters
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
            type=FiniteRange(0, min_open=True),
            help="Of data and steps of each run, at most.",
        ),
        click.option("--test-every", type=click.IntRange(1), default=100, help="LSTM: updates."),
        click.option("--seed", type=SEED, default=0, help="Of weights and batches."),
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
    watched = _Watched(options, rates)
    procedure = _procedure(invocation, problem, rates, watched)
    results: dict[str, Outcome] = {}
    with invocation.errors_shown():
        watched.expect(invocation, procedure, wanted)
        for column in wanted:
            watched.column(column)
            results[column] = procedure(column, invocation.folder / column)
            if results[column].interrupted:
                break
            watched.pace.end(column)
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


class _Watched:
    """What is said of the columns while they train; ``rates`` are searched by the LSTMs.

    A column is one run of the pace: a search of all rates and what follows it are its parts.
    """

    def __init__(self, options: dict[str, Any], rates: tuple[float, ...]) -> None:
        self._options, self._quiet = options, options["quiet"]
        self._search: int = _search_updates(options) if len(rates) > 1 else 0
        # The best rate goes on from where its search ended.
        self._updates: int = len(rates) * self._search + options["updates"] - self._search
        self._searches = len(rates) if len(rates) > 1 else 0
        self._column, self._run = "", -1
        self.pace: Pace

    def expect(self, invocation: Invocation, procedure: Procedure, columns: Sequence[str]) -> None:
        """Say how long all columns take by their sizes."""
        work: dict[Hashable, float] = {
            column: self._operations(procedure, column) for column in columns
        }
        seconds, runs = self._options["seconds"], 1 + self._searches
        limits: dict[Hashable, float] = {}
        if seconds is not None:
            limits = {c: seconds * (1 if c == RNN_HF else runs) for c in columns}
        self.pace = pace_of(invocation, work, limits=limits)

    def column(self, column: str) -> None:
        """One begins."""
        self._column, self._run = column, -1
        self.pace.begin(column)

    def begin(self, text: str) -> None:
        """A run of the column begins."""
        self._run += 1
        if not self._quiet:
            click.echo(text)

    def report(self, line: Line) -> None:
        """A test of a run on the screen."""
        if self._quiet:
            return
        fields = ("loss", "validation_error", "test_error", "step_seconds")
        values = ", ".join(f"{f.replace('_', ' ')} {number(line.get(f))}" for f in fields)
        click.echo(f"{line['iteration']:>8,}: {values}")
        self.pace.within(self._column, self._share(line["iteration"]))

    def _share(self, iteration: int) -> float:
        """What is done of the column."""
        if self._column == RNN_HF:
            return min(1.0, iteration / int(self._options["iterations"]))
        before = self._run * self._search - (self._search if self._run == self._searches else 0)
        return min(1.0, max(0, before + iteration) / self._updates)

    def _operations(self, procedure: Procedure, column: str) -> float:
        """Floating-point operations of a column."""
        problem, sizes, T = procedure.problem, procedure.sizes, procedure.problem.length
        if column == RNN_HF:
            cases = sizes.gradient
            if isinstance(problem, hf.problems.FiniteProblem):
                cases = problem.all_cases().inputs.shape[1]
            parameters = recurrent_parameters(problem, sizes.hidden)
            curvature = min(sizes.curvature, cases)
            step = hessian_free(parameters, cases * T, curvature * T)
            return step * int(self._options["iterations"])
        n, H = problem.input_size, sizes.blocks * sizes.cells
        gates = 4 * H if column != LSTM else H + 3 * sizes.blocks  # the paper's share theirs
        return gradients(gates * (n + H + 1) + n * H, sizes.batch * T, self._updates)


def _search_updates(options: dict[str, Any]) -> int:
    return int(options["search_updates"] or max(1, options["updates"] // SEARCH_SHARE))


def _procedure(
    invocation: Invocation,
    problem: hf.problems.NextStep,
    rates: tuple[float, ...],
    watched: _Watched,
) -> Procedure:
    """How the columns are trained."""
    options = invocation.options
    seconds, search = options["seconds"], _search_updates(options)
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
        begin=watched.begin,
        report=watched.report,
    )
