"""The plot of figure 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hfcore.experiments.fig3_rows import Group
from hfcore.experiments.plots import save_figure


def plot_groups(groups: Sequence[Group], limit: float, path: Path) -> None:
    """Minibatches to success against T, a panel a problem (Martens & Sutskever 2011, figure 3).

    Means of the runs that were solved, with bars from the least to the most of them; a cross at
    ``limit`` says how many of how many failed.
    """
    problems = list(dict.fromkeys(group.problem for group in groups))
    variants = list(dict.fromkeys(group.variant for group in groups))
    lengths = sorted({group.length for group in groups})
    columns = min(4, max(1, len(problems)))
    rows = math.ceil(len(problems) / columns)
    figure = Figure(figsize=(2.6 * columns, 2.6 * rows + 0.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for i, problem in enumerate(problems):
        ax = figure.add_subplot(rows, columns, i + 1)
        ax.set_title(problem, fontsize=9)
        for j, variant in enumerate(variants):
            shift = 0.25 * (j - (len(variants) - 1) / 2)
            mine = [g for g in groups if (g.problem, g.variant) == (problem, variant)]
            _plot_variant(ax, mine, lengths, limit, shift, f"C{j}", variant if i == 0 else None)
        ax.axhline(limit, color="gray", linewidth=0.8, linestyle="--")
        ax.set_yscale("log")
        ax.set_ylim(100, 2.2 * limit)
        ax.set_xticks(range(len(lengths)), [str(T) for T in lengths])
        ax.set_xlim(-0.5, len(lengths) - 0.5)
        ax.grid(alpha=0.3)
        ax.tick_params(labelsize="small")
    figure.supxlabel("T", fontsize=9)
    figure.supylabel("minibatches until success", fontsize=9)
    if figure.axes:
        figure.legend(loc="outside upper center", ncols=len(variants), fontsize="small")
    save_figure(figure, path)


def _plot_variant(
    ax: Axes,
    groups: Sequence[Group],
    lengths: Sequence[int],
    limit: float,
    shift: float,
    color: str,
    label: str | None,
) -> None:
    """One damping of one problem."""
    ax.errorbar([], [], yerr=[], fmt="o", markersize=4, capsize=3, color=color, label=label)
    for group in groups:
        x, solved = lengths.index(group.length) + shift, group.solved
        if solved:
            mean = sum(solved) / len(solved)
            span = [[mean - min(solved)], [max(solved) - mean]]
            ax.errorbar([x], [mean], yerr=span, fmt="o", markersize=4, capsize=3, color=color)
        if group.failed:
            ax.plot([x], [limit], "x", color=color, markersize=6)
            text = f"{group.failed}/{group.failed + len(solved)}"
            ax.annotate(
                text, (x, limit), (0, 4), textcoords="offset points", ha="center", fontsize=6,
                color=color,
            )  # fmt: skip
