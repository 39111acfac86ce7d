"""Errors against iterations and against seconds, a quadratic against iterations, as PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import hfcore as hf
from hfcore.experiments.published import CURVES_LOG, CURVES_LOG_DAMPING
from hfcore.experiments.training import Line, Trained

LABEL = 36  # characters beside an axis before the next line


def plot_log(lines: Sequence[Line], path: Path, facts: str) -> None:
    """Train error and λ against the iteration, here and in the published log."""
    figure, (error, damping) = panels(2, facts)
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
    figure, (ax,) = panels(1, facts)
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
    figure, (ax,) = panels(1, facts)
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


def panels(rows: int, facts: str) -> tuple[Figure, list[Axes]]:
    """A figure of ``rows`` panels, one below the other, with ``facts`` above them."""
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
