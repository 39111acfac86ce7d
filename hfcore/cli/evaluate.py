"""``hfcore evaluate``: the test error of a run."""

from __future__ import annotations

from pathlib import Path

import click

from hfcore.cli.options import device_of, folder_option
from hfcore.data import DataFileError
from hfcore.problems import Reconstruction, ZeroOne
from hfcore.problems.next_step import FromWindows
from hfcore.training import RunFolderError, load_run
from hfcore.training.load import Which


@click.command("evaluate")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    default="last",
    metavar="WHICH",
    help="last, best, or an iteration.",
)
@click.option("--test-size", type=click.IntRange(1), help="Cases.  [default: as in the run]")
@click.option("--device", default="cpu", metavar="NAME", help="cpu, cuda, or cuda:1 and so on.")
@folder_option
def evaluate_command(
    run_dir: Path, checkpoint: str, test_size: int | None, device: str, folder: Path | None
) -> None:
    """Test the model of a run folder on its problem."""
    which: Which
    if checkpoint.isdecimal():
        which = int(checkpoint)
    elif checkpoint in ("last", "best"):
        which = checkpoint  # type: ignore[assignment]
    else:
        raise click.BadParameter(
            f"got {checkpoint!r}, need last, best or an iteration", param_hint="--checkpoint"
        )
    try:
        run = load_run(run_dir, which, device=device_of(device))
        if isinstance(run.problem, Reconstruction | FromWindows):
            run.problem.folder = folder
        error = run.test(test_size=test_size)
    except (RunFolderError, DataFileError, ValueError) as problem:
        raise click.ClickException(str(problem)) from problem
    shown = f"{error:.6g}, the mean over the test cases"
    task: object = run.problem
    if isinstance(task, ZeroOne):
        shown = f"{100 * error:.2f}% of the test cases are wrong"
    click.echo(f"{'iteration':22s}{run.iteration:,}")
    click.echo(f"{'test error':22s}{shown}")
