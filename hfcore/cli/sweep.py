"""``hfcore sweep``: a whole grid of first-order runs trained at once."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from hfcore.cli.build import problem_of
from hfcore.cli.executors import check_where, executor_of, executor_options
from hfcore.cli.invocation import Invocation, run_options
from hfcore.cli.options import FiniteRange, folder_option, names, numbers, seeds_of
from hfcore.cli.tables import clock, markdown, number
from hfcore.problems import PROBLEMS, Problem, Reconstruction
from hfcore.sweeps import AutoencoderStart, RnnStart, Start, SweepResult, join_folder, sweep
from hfcore.sweeps.grid import METHODS
from hfcore.sweeps.settings import SCHEDULES
from hfcore.sweeps.starts import RnnInit
from hfcore.training import RunFolderError

# Options that are lists of numbers, and the keys of the grid that they become.
AXES = ("learning_rate", "momentum", "input_scale", "spectral_radius", "scale")
SHOWN = ("outcome", "updates", "error", "wrong", "test_loss", "best_error", "escaped_at")


@click.command("sweep")
@click.argument("problem", metavar="PROBLEM", required=False)
@click.option("--length", type=int, help="Sequence length T.  [default: the problem's]")
@click.option("--centre/--no-centre", default=True, help="Sequences less their expected values.")
@click.option("--images", type=click.IntRange(1), help="Only so many training images.")
@folder_option
@click.option("--learning-rate", metavar="A,B,…", help="ε.  [required]")
@click.option("--momentum", default="0.9", metavar="A,B,…", help="μ₀; 0 is plain SGD.")
@click.option("--method", default="nag", metavar="A,B,…", help=f"Of {', '.join(METHODS)}.")
@click.option("--schedule", type=click.Choice(list(SCHEDULES)), default="delayed", help="Of μ.")
@click.option("--final-updates", type=click.IntRange(0), default=0, help="At the end with μ ≤ 0.9.")
@click.option(
    "--falling-updates", type=click.IntRange(0), default=0, help="At the end, over which ε falls."
)
@click.option("--weight-decay", type=FiniteRange(0), default=0.0, help="Of ½‖θ‖².")
@click.option("--seeds", default="1", metavar="N|A,B,…", help="How many, or which.")
@click.option("--updates", type=click.IntRange(1), default=50_000, help="Of every run.")
@click.option("--batch-size", type=click.IntRange(1), default=100)
@click.option("--hidden", type=click.IntRange(1), default=100, help="Hidden units of an RNN.")
@click.option(
    "--init", "init_name", type=click.Choice(get_args(RnnInit)), default="esn", help="Of an RNN."
)
@click.option("--input-scale", metavar="A,B,…", help="esn: of W_hx.  [default: the problem's]")
@click.option("--spectral-radius", metavar="A,B,…", help="esn: of W_hh.  [default: 1.1]")
@click.option("--scale", metavar="A,B,…", help="Other starts: factor on the first weights.")
@click.option("--test-every", type=click.IntRange(1), default=500, help="Updates.")
@click.option("--test-size", type=click.IntRange(1), default=1000, help="Cases of the test set.")
@click.option("--solved-below", type=FiniteRange(0, 1), default=0.01, help="Share wrong.")
@click.option("--on-device", is_flag=True, help="Cases are drawn where nets are.")
@click.option("--csv", type=click.Path(path_type=Path), help="Write the table there.")
@click.option("--parquet", type=click.Path(path_type=Path), help="The same; needs pyarrow.")
@click.option("--max-mib", type=click.IntRange(1), default=2048, help="Memory of nets in step.")
@run_options(
    resume="Continue the sweep in --run-dir, bit for bit.", quiet="No progress, only the table."
)
@executor_options()
@click.option(
    "--join",
    "join_dir",
    type=click.Path(path_type=Path),
    help="Unite the parts in this --run-dir of --cohort, and print the whole; without PROBLEM.",
)
@click.option("--require-solved", is_flag=True, help="Exit with 1 unless a run solved it.")
@click.pass_context
def sweep_command(context: click.Context, /, problem: str | None, **options: Any) -> None:
    """Train every combination of the listed values on PROBLEM, all of them at once.

    PROBLEM is addition, multiplication, xor, temporal-order-2bit, temporal-order-3bit,
    random-permutation, memorization-5bit, memorization-20bit, curves, mnist or faces. Prints a row
    a run; tables, plots and the final parameters are in the run folder. Ctrl-C ends the sweep with
    a checkpoint, and exits with 130.
    """
    outputs = _outputs(options)
    if options["join_dir"] is not None:
        _join(context, problem, options, outputs)
        return
    if problem is None:
        raise click.UsageError("Missing argument 'PROBLEM'.")
    if options["learning_rate"] is None:
        raise click.UsageError("Missing option '--learning-rate'.")
    check_where(options)
    invocation = Invocation(f"sweep-{problem}", options)
    grid = _grid(options)
    seeds = seeds_of(options["seeds"])
    task = _problem(problem, options)
    start = _start(context, task, options)
    with (
        invocation.errors_shown(TypeError, OSError),
        executor_of(options, invocation.folder) as by,
    ):
        result = sweep(
            task,
            grid,
            seeds=seeds,
            updates=options["updates"],
            batch_size=options["batch_size"],
            start=start,
            schedule=options["schedule"],
            final_updates=options["final_updates"],
            falling_updates=options["falling_updates"],
            weight_decay=options["weight_decay"],
            test_every=options["test_every"],
            test_size=options["test_size"],
            solved_below=options["solved_below"],
            device=invocation.device,
            on_device=options["on_device"],
            max_bytes=options["max_mib"] << 20,
            run_dir=invocation.folder,
            resume=options["resume"],
            progress=not options["quiet"],
            **by,
        )
        _show(result, outputs)
    invocation.end(context, interrupted=result.reason == "interrupted")
    if options["require_solved"] and all(row["outcome"] != "solved" for row in result.rows()):
        context.exit(1)


def _join(
    context: click.Context, problem: str | None, options: dict[str, Any], outputs: list[Path]
) -> None:
    """Unite the parts of a sweep that were computed one by one."""
    if problem is not None or options["cohort"] is not None:
        raise click.UsageError("--join goes without PROBLEM and --cohort")
    try:
        result = join_folder(options["join_dir"])
    except RunFolderError as error:
        raise click.ClickException(str(error)) from error
    _show(result, outputs)
    if options["require_solved"] and all(row["outcome"] != "solved" for row in result.rows()):
        context.exit(1)


def _show(result: SweepResult, outputs: list[Path]) -> None:
    """Print the table and write it."""
    _report(result)
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        click.echo(f"written: {result.write(path)}")


def _outputs(options: dict[str, Any]) -> list[Path]:
    """Where the table goes; what could not be written is refused before the training."""
    for name in ("csv", "parquet"):
        path: Path | None = options[name]
        if path is not None and path.suffix != f".{name}":
            raise click.BadParameter(
                f"got {str(path)!r}, need a name that ends in .{name}", param_hint=f"--{name}"
            )
    if options["parquet"] is not None and importlib.util.find_spec("pyarrow") is None:
        raise click.UsageError(
            "--parquet needs pyarrow: pip install hfcore[parquet], or write --csv"
        )
    return [options[name] for name in ("csv", "parquet") if options[name] is not None]


def _grid(options: dict[str, Any]) -> dict[str, Any]:
    grid: dict[str, Any] = {"method": names(options["method"], "--method")}
    for key in AXES:
        if options[key] is not None:
            grid[key] = list(numbers(options[key], "--" + key.replace("_", "-")))
    return grid


def _problem(name: str, options: dict[str, Any]) -> Problem:
    """The problem with those of the options that it has."""
    given = {
        key: options[key] for key in ("length", "images", "folder") if options[key] is not None
    }
    if name in PROBLEMS and "centre" in inspect.signature(PROBLEMS[name]).parameters:
        given["centre"] = options["centre"]
    return problem_of(name, **given)


def _start(context: click.Context, problem: Problem, options: dict[str, Any]) -> Start:
    if isinstance(problem, Reconstruction):
        for name, flag in (("hidden", "--hidden"), ("init_name", "--init")):
            if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
                raise click.UsageError(
                    f"{flag} has no meaning with the autoencoder of {problem.name}"
                )
        return AutoencoderStart(problem.encoder_sizes)
    return RnnStart(hidden_size=options["hidden"], init=options["init_name"])


def _report(result: SweepResult) -> None:
    click.echo(f"\n{table_of(result)}\n")
    best = f"{result.constant.error:.4g}"
    click.echo(f"best constant output: error {best}, loss {result.constant.loss:.4g}")
    click.echo(f"seconds of training: {result.seconds:.1f} ({clock(result.seconds)})")
    click.echo(f"run folder: {result.run_dir}")
    for path in result.plots:
        click.echo(f"plot: {path}")


def table_of(result: SweepResult) -> str:
    """The table of a sweep in markdown: what tells the runs apart, and what became of them."""
    rows = result.rows()
    options = list(result.runs[0].options)
    header = ["momentum", "learning_rate", *options, "seed", *SHOWN]
    lines = []
    for run, row in zip(result.runs, rows, strict=True):
        settings = [run.label, f"{run.learning_rate:g}"]
        settings += [f"{run.options[name]:g}" for name in options]
        cells = [row[key] for key in SHOWN]
        shown = [cell if isinstance(cell, str) else number(cell) for cell in cells]
        lines.append([*settings, str(run.seed), *shown])
    return markdown(header, lines)
