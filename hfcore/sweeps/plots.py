"""Plots of a sweep: error against updates, and the map of learning rates and momenta."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from hfcore.training.atomic import write_atomic
from hfcore.training.plots import scale

if TYPE_CHECKING:
    from hfcore.sweeps.result import Row, SweepResult

CURVES, MAP = "error.png", "outcomes.png"

# From bad to good; a map's cell is drawn in the colour of the best outcome in it.
COLOURS: dict[str, str] = {
    "untested": "#f2f2f2",
    "diverged": "#d62728",
    "collapsed": "#ff7f0e",
    "plateau": "#c7c7c7",
    "escaped": "#98df8a",
    "solved": "#2ca02c",
}
_SETTINGS = ("learning_rate", "seed", "method", "momentum")


def draw_plots(result: SweepResult, folder: Path) -> tuple[Path, ...]:
    """Draw a sweep into ``folder``; returns the paths, none before the first test.

    Raises :class:`hfcore.training.RunFolderError` if the folder cannot be written.
    """
    if not any(result.tests):
        return ()
    figures = {CURVES: error_curves(result), MAP: outcome_map(result)}
    for name, figure in figures.items():
        png = io.BytesIO()
        figure.savefig(png, format="png")
        write_atomic(folder / name, png.getvalue())
    return tuple(folder / name for name in figures)


def error_curves(result: SweepResult) -> Figure:
    """Error of every run against its updates, a colour for each momentum."""
    figure = Figure(figsize=(7.0, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    colours: dict[str, str] = {}
    for run, tests in zip(result.runs, result.tests, strict=True):
        points = [(t.update, t.error) for t in tests if math.isfinite(t.error) and t.error > 0]
        if not points:
            continue
        new = run.label not in colours
        colour = colours.setdefault(run.label, f"C{len(colours) % 10}")
        label = run.label if new else None
        style: dict[str, Any] = {"color": colour, "linewidth": 0.8, "alpha": 0.7}
        marker = "o" if len(points) == 1 else None  # a line of one point shows nothing
        ax.plot(*zip(*points, strict=True), **style, marker=marker, markersize=3, label=label)
    ax.axhline(result.constant.error, color="gray", linewidth=0.8, linestyle="--")
    ax.set_title("Test error of every run", fontsize="medium")
    scale(ax, [t.error for tests in result.tests for t in tests])
    ax.set_xlabel("updates")
    ax.set_ylabel("test error (dashed: constant output)")
    ax.grid(alpha=0.3)
    if colours:
        ax.legend(fontsize="small", title="momentum")
    return figure


def outcome_map(result: SweepResult) -> Figure:
    """Learning rate × column, each cell with its outcomes and its least final error."""
    cells: dict[tuple[str, float], list[Row]] = {}
    for run, row in zip(result.runs, result.rows(), strict=True):
        cells.setdefault((_column(run.label, row, result), run.learning_rate), []).append(row)
    columns = list(dict.fromkeys(column for column, _ in cells))
    rates = sorted({rate for _, rate in cells})
    size = (2.0 + 1.1 * len(columns), 1.4 + 0.5 * len(rates))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    for (column, rate), rows in cells.items():
        _cell(ax, columns.index(column), rates.index(rate), rows)
    ax.set_xticks(range(len(columns)), columns, fontsize=7)
    ax.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates], fontsize=7)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.set_ylim(-0.5, len(rates) - 0.5)
    ax.set_xlabel("momentum")
    ax.set_ylabel("learning rate ε")
    ax.set_title("Best outcome and least error of each setting", fontsize="medium")
    return figure


def _column(label: str, row: Row, result: SweepResult) -> str:
    """The momentum, with the initial scales that differ between runs."""
    options = [key for key in result.runs[0].options if _differs(key, result)]
    return "\n".join([label, *(f"{key} {row[key]:g}" for key in options)])


def _differs(key: str, result: SweepResult) -> bool:
    return len({run.options.get(key) for run in result.runs}) > 1


def _cell(ax: Axes, x: int, y: int, rows: list[Mapping[str, Any]] | list[Row]) -> None:
    order = list(COLOURS)
    best = max(rows, key=lambda row: order.index(row["outcome"]))["outcome"]
    errors = [row["error"] for row in rows if row["error"] is not None]
    reached = sum(row["outcome"] == best for row in rows)
    text = f"{best} {reached}/{len(rows)}"
    if errors:
        text += f"\n{min(errors):.2g}"
    ax.add_patch(_square(x, y, COLOURS[best]))
    ax.text(x, y, text, ha="center", va="center", fontsize=6)


def _square(x: int, y: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=(*to_rgb(colour), 0.8))
