"""Errors against iterations and against seconds, a quadratic against iterations, as PNG."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import hfcore as hf
from hfcore.experiments.ablation import Outcome
from hfcore.experiments.fig3_rows import Group
from hfcore.experiments.published import CURVES_LOG, CURVES_LOG_DAMPING
from hfcore.experiments.training import Line, Trained

LABEL = 36  # characters beside an axis before the next line


def plot_log(lines: Sequence[Line], path: Path, facts: str) -> None:
    """Train error and λ against the iteration, here and in the published log."""
    figure, (error, damping) = _figure(2, facts)
    trained = [line for line in lines if line["iteration"] > 0]
    for ax, field, log, label in (
        (error, "train_error", CURVES_LOG, "train error (Σ squared, per image)"),
        (damping, "damping", CURVES_LOG_DAMPING, "damping λ"),
    ):
        at = [line["iteration"] for line in trained]
        ax.plot(at, [line[field] for line in trained], linewidth=1.2, label="here")
        ax.plot(list(log), list(log.values()), "o", markersize=4, label="published")
        ax.set_yscale("log")
        ax.set_ylabel(label)
        ax.legend(fontsize="small")
    damping.set_xlabel("iteration")
    save_figure(figure, path)


def plot_seconds(
    results: Mapping[str, Trained],
    levels: Mapping[str, float],
    path: Path,
    facts: str,
    *,
    error: str = "train_error",
    label: str = "train error (Σ squared, per image)",
) -> None:
    """An error of every method against seconds of training (Martens 2010, figure 2).

    ``levels`` are errors of predictors that are not trained so; ``error`` is the column of the
    lines, ``label`` what it is called.
    """
    figure, (ax,) = _figure(1, facts)
    for name, result in results.items():
        at = [result.before + line["training_seconds"] for line in result.lines]
        errors = [line[error] for line in result.lines]
        ax.plot(at, errors, linewidth=1.2, marker="." if len(at) < 50 else None, label=name)
    for name, level in levels.items():
        ax.axhline(level, color="gray", linewidth=0.8, linestyle="--")
        ax.annotate(name, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    ax.set_yscale("log")
    before = any(result.before for result in results.values())
    ax.set_xlabel("seconds of training" + (", pre-training included" if before else ""))
    ax.set_ylabel(textwrap.fill(label, LABEL))
    ax.legend(fontsize="small")
    save_figure(figure, path)


def plot_quadratic(
    cg: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray], path: Path, facts: str
) -> None:
    """φ ``[m+1]`` after 0, 1, … m iterations of CG by arithmetic, and of the other methods by name.

    The axis goes as far down as any CG.
    """
    figure, (ax,) = _figure(1, facts)
    for (name, phi), style in zip(cg.items(), ("-", "--", ":"), strict=True):
        ax.plot(phi, style, color="black", linewidth=1.6, label=f"CG, {name}")
    for name, phi in others.items():
        ax.plot(phi, linewidth=1.0, label=name)
    lowest = min(float(phi.min()) for phi in cg.values())
    ax.set_ylim(1.08 * lowest, -0.05 * lowest)
    ax.set_xlabel("iterations (products)")
    ax.set_ylabel("φ")
    ax.legend(fontsize="small")
    save_figure(figure, path)


def plot_ablations(found: Mapping[str, Sequence[Outcome]], path: Path) -> None:
    """Errors of the variants against the work until then, one panel a comparison."""
    figure, axes = _figure(len(found), "")
    for ax, (title, outcomes) in zip(axes, found.items(), strict=True):
        ax.set_title(title, fontsize=9)
        for outcome in outcomes:
            ax.plot(outcome.work, outcome.errors, linewidth=1.0, label=outcome.variant)
        ax.set_yscale("log")
        ax.set_ylabel("error")
        ax.legend(fontsize="small")
    axes[-1].set_xlabel("minibatches of 1000 cases, or updates of momentum")
    save_figure(figure, path)


def _figure(rows: int, facts: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(7.0, 3.2 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(facts, fontsize=7, wrap=True)
    axes = [figure.add_subplot(rows, 1, i + 1) for i in range(rows)]
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    hf.training.write_atomic(path, png.getvalue())


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
