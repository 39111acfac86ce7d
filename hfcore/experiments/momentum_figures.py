"""Sutskever et al. (2013), figures 1 and 2: how the two momenta differ.

1. Figure 1 is one update of each from the same θ and v: classical momentum takes its gradient at θ,
   Nesterov's at θ + μv. Figure 2 is a path of each, and of gradient descent at the same ε, on a
   quadratic whose minimum is at 0.
2. The paper does not give the quadratic, ε, μ and the start of figure 2: those here are chosen so
   that ελ of the steep direction is near 1, where classical momentum oscillates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import hfcore as hf
from hfcore.cli.tables import markdown, number
from hfcore.experiments.plots import save_figure
from hfcore.experiments.report import write_results

EIGENVALUES = (1.0, 30.0)
START = (-6.0, 2.5)
LEARNING_RATE, MOMENTUM = 0.03, 0.9
UPDATES = 60
Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
METHODS: dict[str, Make] = {
    "SGD": lambda p: hf.SGD(p, lr=LEARNING_RATE),
    "NAG": lambda p: hf.NAG(p, lr=LEARNING_RATE, momentum=MOMENTUM),
    "CM": lambda p: hf.ClassicalMomentum(p, lr=LEARNING_RATE, momentum=MOMENTUM),
}
COLOURS = {"SGD": "C3", "NAG": "C0", "CM": "C2"}  # the paper's red, blue and green
SHOWN = (5, 10, 20, 40, 60)


def path(make: Make, updates: int = UPDATES) -> np.ndarray:
    """θ ``[updates + 1, 2]`` of a method on ½ Σ λ_i θ_i², float64."""
    theta = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    curvature = torch.tensor(EIGENVALUES, dtype=torch.float64)
    optimizer = make([theta])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (curvature * theta.square()).sum()
        loss.backward()
        return loss

    seen = [theta.detach().clone()]
    for _ in range(updates):
        optimizer.step(closure)  # type: ignore[arg-type]
        seen.append(theta.detach().clone())
    return torch.stack(seen).numpy()


def travel(theta: np.ndarray) -> float:
    """How far θ ``[m+1, 2]`` goes to and fro across the valley, along the steep direction."""
    return float(np.abs(np.diff(theta[:, 1])).sum())


def figures_report(folder: Path) -> tuple[str, list[Path]]:
    """The table as markdown, and the paths of table, numbers and plots written to ``folder``."""
    paths = {name: path(make) for name, make in METHODS.items()}
    rows = [
        [name, *(number(float(np.linalg.norm(p[i]))) for i in SHOWN), number(travel(p))]
        for name, p in paths.items()
    ]
    header = ["", *(f"‖θ‖ after {i}" for i in SHOWN), "way across the valley"]
    text = "\n\n".join(
        [
            f"½ Σ λ θ² with λ = {EIGENVALUES[0]:g}, {EIGENVALUES[1]:g}, from {START}, ε = "
            f"{LEARNING_RATE:g}, μ = {MOMENTUM:g} (gradient descent: 0). The paper's figure 2 "
            "prints no numbers; classical momentum oscillates along the steep direction there and "
            "Nesterov's does not.",
            markdown(header, rows),
        ]
    )
    data = {
        "eigenvalues": EIGENVALUES,
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "paths": {name: p.tolist() for name, p in paths.items()},
    }
    written = write_results(folder, "fig1_2013", text, data)
    plots = [folder / "fig1_2013.png", folder / "fig2_2013.png"]
    draw_updates(plots[0])
    draw_paths(paths, plots[1])
    return text, [*written, *plots]


def draw_updates(to: Path) -> None:
    """Figure 1: the parts of one update, classical above, Nesterov's below."""
    figure = _figure((5.0, 4.5))
    theta, v = np.array(START), np.array([2.5, -0.6])
    for i, (name, ahead) in enumerate((("CM", 0.0), ("NAG", MOMENTUM))):
        ax = figure.add_subplot(2, 1, i + 1)
        at = theta + ahead * v
        gradient = LEARNING_RATE * np.array(EIGENVALUES) * at
        end = theta + MOMENTUM * v - gradient
        _arrow(ax, theta, theta + MOMENTUM * v, "C2", "μv")
        if ahead:
            _arrow(ax, at, end, "C3", "−ε∇f(θ + μv)")
        else:
            _arrow(ax, theta, theta - gradient, "C3", "−ε∇f(θ)")
        _arrow(ax, theta, end, "C0", "the new v")
        ax.set_title(name, fontsize=9)
        ax.margins(0.2)
        ax.set_axis_off()
        ax.legend(fontsize="small", loc="upper right")
    save_figure(figure, to)


def draw_paths(paths: Mapping[str, np.ndarray], to: Path) -> None:
    """Figure 2: the paths ``[m+1, 2]`` over the contours."""
    figure = _figure((6.0, 4.0))
    ax = figure.add_subplot(1, 1, 1)
    x, y = np.meshgrid(np.linspace(-7, 4, 200), np.linspace(-3, 3, 200))
    f = 0.5 * (EIGENVALUES[0] * x**2 + EIGENVALUES[1] * y**2)
    ax.contour(x, y, f, levels=np.geomspace(0.3, f.max(), 9), colors="lightgray", linewidths=0.7)
    for name, p in paths.items():
        ax.plot(*p.T, ".-", color=COLOURS[name], linewidth=0.9, markersize=3, label=name)
    ax.plot(0, 0, "+", color="black")
    ax.legend(fontsize="small")
    save_figure(figure, to)


def _figure(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _arrow(ax: Axes, start: np.ndarray, end: np.ndarray, colour: str, label: str) -> None:
    ax.annotate("", tuple(end), tuple(start), arrowprops={"arrowstyle": "->", "color": colour})
    ax.plot(*np.stack([start, end]).T, color=colour, linewidth=0.8, label=label)
