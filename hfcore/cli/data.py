"""``hfcore data``: make or read a data set, and print its statistics beside the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from rich.console import Console
from rich.table import Column, Table

from hfcore.cli.options import SEED, folder_option
from hfcore.data import (
    PUBLISHED,
    DataFileError,
    Dataset,
    curves,
    faces,
    mnist,
    statistics,
)
from hfcore.data.curves import Construction

# Label and field of hfcore.data.Statistics.
ROWS = {
    "squared error of PCA-{0.components}, test": "pca_error",
    "squared error of the mean image, train": "mean_error",
    "cross-entropy of the mean image, train": "mean_cross_entropy",
    "entropy of the pixels, train": "cross_entropy_floor",
}


@click.group("data")
def data_commands() -> None:
    """Data sets of the papers, their statistics beside the published ones."""


@data_commands.command("curves")
@click.option("--train", type=click.IntRange(1), default=20_000, help="Training images.")
@click.option("--test", type=click.IntRange(1), default=10_000, help="Test images.")
@click.option("--seed", type=SEED, default=0)
@click.option("--construction", type=click.Choice(get_args(Construction)), default="bezier")
def curves_command(train: int, test: int, seed: int, construction: Construction) -> None:
    """CURVES, regenerated."""
    click.echo("CURVES is made and its principal components: some seconds")
    _show(curves(train, test, seed=seed, construction=construction))


@data_commands.command("mnist")
@folder_option
def mnist_command(folder: Path | None) -> None:
    """MNIST."""
    click.echo("MNIST is read, and its principal components are taken: some seconds")
    try:
        _show(mnist(folder))
    except DataFileError as error:
        raise click.ClickException(str(error)) from error


@data_commands.command("faces")
@folder_option
@click.option("--transforms", type=click.IntRange(1), default=414, help="Images of each face.")
@click.option("--seed", type=SEED, default=0)
def faces_command(folder: Path | None, transforms: int, seed: int) -> None:
    """FACES, made from the Olivetti faces."""
    click.echo("FACES is made and its principal components: about half a minute")
    try:
        _show(faces(folder, transforms=transforms, seed=seed))
    except DataFileError as error:
        raise click.ClickException(str(error)) from error


def _show(dataset: Dataset) -> None:
    console = Console()
    here, there = statistics(dataset), PUBLISHED[dataset.name]
    table = Table(
        "sum over pixels, mean over images",
        Column("here", justify="right"),
        Column("published", justify="right"),
        title=dataset.name,
    )
    for label, field in ROWS.items():
        values = (getattr(s, field) for s in (here, there))
        table.add_row(label.format(here), *("–" if v is None else f"{v:.4g}" for v in values))
    sizes = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    parts = [f"{len(x):,} {part}" for part, x in sizes.items() if x is not None]
    rows, columns = dataset.image_shape
    console.print(f"{', '.join(parts)} images of {rows}x{columns}. {dataset.facts}")
    console.print(table)
