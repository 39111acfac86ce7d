"""Plots of a run as PNG, drawn without touching matplotlib's global state."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hfcore.training.atomic import write_atomic

Metrics = Sequence[dict[str, Any]]

# A failed step has ρ = −∞: the plot shows the range where the rule decides, the rest at its edge.
RHO_RANGE = (-1.0, 2.0)

LOSS, DAMPING, CG = "loss_error.png", "damping_rho.png", "cg_iterations.png"


def draw_plots(metrics: Metrics, folder: Path, *, solved_below: float | None) -> tuple[Path, ...]:
    """Draw what ``metrics`` holds into ``folder``; returns the paths, none for an empty run.

    ``solved_below`` is None where errors are no shares of wrong cases. Damping and CG are drawn
    for Hessian-free runs only. Raises :class:`RunFolderError` if the folder cannot be written.
    """
    if not metrics:
        return ()
    figures = {LOSS: _loss_and_error(metrics, solved_below)}
    if any("damping" in line for line in metrics):
        figures[DAMPING] = _damping_and_rho(metrics)
        figures[CG] = _cg_iterations(metrics)
    for name, figure in figures.items():
        png = io.BytesIO()
        figure.savefig(png, format="png")
        write_atomic(folder / name, png.getvalue())
    return tuple(folder / name for name in figures)


def _figure(rows: int, title: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(7.0, 2.8 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium")
    axes = [figure.add_subplot(rows, 1, i + 1) for i in range(rows)]
    for ax in axes:
        ax.grid(alpha=0.3)
    axes[-1].set_xlabel("minibatches (gradients + curvature products, 1000 cases each)")
    return figure, axes


def _series(metrics: Metrics, key: str) -> tuple[list[float], list[float]]:
    """Minibatches and values of ``key`` where it is there and finite."""
    points = [(m["minibatches"], m[key]) for m in metrics if m.get(key) is not None]
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]


def _draw(ax: Axes, metrics: Metrics, key: str, label: str, *, log: bool = False) -> None:
    x, y = _series(metrics, key)
    ax.plot(x, y, linewidth=1.2, marker="." if len(x) < 50 else None)
    ax.set_ylabel(label)
    if log:
        scale(ax, y)


def scale(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis of y, where the positive ones of ``values`` span a factor of ten."""
    positive = [v for v in values if 0 < v < math.inf]
    if positive and max(positive) >= 10 * min(positive):
        ax.set_yscale("log", nonpositive="clip")


def _loss_and_error(metrics: Metrics, solved_below: float | None) -> Figure:
    figure, (loss, error) = _figure(2, "Training loss and test error after each step")
    lines = [{**m, "loss": m.get("loss_after", m.get("loss"))} for m in metrics]
    _draw(loss, lines, "loss", "loss (training data)", log=True)
    if solved_below is None:
        _draw(error, metrics, "test_error", "test error", log=True)
        return figure
    _draw(error, metrics, "test_error", "test error (share wrong)")
    error.set_ylim(-0.02, 1.02)
    error.axhline(solved_below, color="tab:red", linewidth=0.8, linestyle="--")
    return figure


def _damping_and_rho(metrics: Metrics) -> Figure:
    figure, (damping, rho) = _figure(2, "How far the quadratic is trusted: λ and ρ")
    _draw(damping, metrics, "damping", "damping λ", log=True)
    low, high = RHO_RANGE
    steps = [m for m in metrics if "rho" in m]  # the untrained model has a line without
    clipped = [{**m, "rho": min(max(m["rho"], low), high)} for m in steps]
    _draw(rho, clipped, "rho", f"ρ, clipped to [{low:g}, {high:g}]")
    for threshold in (0.25, 0.75):  # where the Levenberg-Marquardt rule acts
        rho.axhline(threshold, color="gray", linewidth=0.8, linestyle="--")
    rho.set_ylim(low - 0.1, high + 0.1)
    return figure


def _cg_iterations(metrics: Metrics) -> Figure:
    figure, (ax,) = _figure(1, "Iterations of conjugate gradients in each step")
    _draw(ax, metrics, "cg_iterations", "CG iterations")
    _draw(ax, metrics, "cg_kept", "CG iterations")
    ax.legend(["run", "kept"], loc="best", fontsize="small")
    ax.set_ylim(bottom=0)
    return figure
