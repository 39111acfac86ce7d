"""Files of a tuned table: numbers as JSON, maps of learning rates and outcomes, plots."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import hfcore as hf
from hfcore.experiments.plots import save_figure
from hfcore.experiments.published import PublishedTable
from hfcore.experiments.report import write_results
from hfcore.experiments.tuning import SEARCH, SEEDS, Row, Tuned


def write_tuned(
    folder: Path,
    name: str,
    text: str,
    results: Mapping[str, Tuned],
    published: PublishedTable,
    settings: Mapping[str, Any],
    **more: Any,
) -> list[Path]:
    """``name.md``, ``.json`` and ``.png``, and the map of every problem; gives the paths."""
    data = {
        "settings": settings,
        "published": published.numbers,
        "published_source": published.source,
        "problems": {problem: tuned_json(tuned) for problem, tuned in results.items()},
        **more,
    }
    written = [*write_results(folder, name, text, data)]
    for problem, tuned in results.items():
        written += write_maps(folder, problem, tuned)
    plot = folder / f"{name}.png"
    plot_columns(results, published, plot)
    return [*written, plot]


def tuned_json(tuned: Tuned) -> dict[str, Any]:
    """Search and final runs of a problem as they go into the file of results."""
    constant = next(r.constant for r in (tuned.search, tuned.final) if r is not None)
    return {
        "finished": tuned.finished,
        "seconds": tuned.seconds,
        "constant_output": vars(constant),
        "columns": {
            result.column.name: {
                "rates": result.column.rates,
                "chosen": result.chosen,
                "error": result.error,
                "outcomes": result.outcomes,
                "searched": [run.row for run in result.searched],
                "runs": result.rows,
            }
            for result in tuned.columns
        },
    }


def write_maps(folder: Path, name: str, tuned: Tuned) -> list[Path]:
    """``name_map.csv``, every run with its rate and outcome, and the search drawn as PNG."""
    rows: list[Row] = []
    for result in tuned.columns:
        for stage, found in ((SEARCH, result.searched), (SEEDS, result.column.runs(tuned.final))):
            rows += [{"column": result.column.name, "stage": stage, **run.row} for run in found]
    table, picture = folder / f"{name}_map.csv", folder / f"{name}_map.png"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    hf.training.write_atomic(table, text.getvalue().encode())
    drawn = tuned.search if tuned.search is not None else tuned.final
    assert drawn is not None
    save_figure(drawn.outcome_map(), picture)
    return [table, picture]


def plot_columns(results: Mapping[str, Tuned], published: PublishedTable, path: Path) -> None:
    """Mean error of every column, here and published; dots are single runs."""
    count = len(results)
    figure = Figure(figsize=(7.0, 2.6 * count), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, tuned) in enumerate(results.items()):
        ax = figure.add_subplot(count, 1, i + 1)
        ax.set_title(name, fontsize=9)
        ax.set_ylabel("error")
        _plot_problem(ax, name, tuned, published)
    save_figure(figure, path)


def _plot_problem(ax: Axes, problem: str, tuned: Tuned, published: PublishedTable) -> None:
    names = [result.column.name for result in tuned.columns]
    for x, result in enumerate(tuned.columns):
        errors = [row["error"] for row in result.rows if row["error"] is not None]
        ax.plot([x] * len(errors), errors, ".", color="C0", alpha=0.4)
        mean = result.error
        if mean is not None and math.isfinite(mean):
            ax.plot(x, mean, "_", color="C0", markersize=16, label=None if x else "here")
        there = published.get(problem, names[x])
        if there is not None:
            ax.plot(x, there, "o", color="C1", fillstyle="none", label=None if x else "published")
    # Linear near 0: with a finite test set an error may be none at all.
    ax.set_yscale("symlog", linthresh=1e-4)
    ax.set_ylim(0, 2 * ax.get_ylim()[1])
    ax.set_xticks(range(len(names)), names)
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="small")
