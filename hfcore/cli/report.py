"""``hfcore report``: one HTML page of a run or a sweep."""

from __future__ import annotations

from pathlib import Path

import click

from hfcore.training import RunFolderError
from hfcore.training.report import write_report


@click.command("report")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="[default: RUN/report.html]")
def report_command(run_dir: Path, out: Path | None) -> None:
    """Write a page with the outcome, plots and settings of a run or a sweep.

    The page is one HTML file that holds its pictures.
    """
    try:
        click.echo(f"written: {write_report(run_dir, out)}")
    except RunFolderError as error:
        raise click.ClickException(str(error)) from error
