"""The figures of the README and of "Concepts", drawn from runs of hfcore itself.

    python docs/figures.py [NAME ...] [--out docs/assets]

Every figure takes seconds, ``addition`` about a minute.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import hfcore as hf

GRADIENT, HESSIAN_FREE, MOMENTUM, GREY = "tab:orange", "tab:blue", "tab:green", "0.6"
MINIBATCHES = 330  # what the Hessian-free run of "addition" takes and a little more


def axes(width: float = 6.0, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.add_subplot()
    ax.grid(alpha=0.3)
    return figure, ax


def addition() -> Figure:
    """Share of wrong answers against work: HF, and the best of three rates of Adam and SGD."""
    figure, ax = axes(7.0, 3.4)
    for name, colour, rates in (
        ("Hessian-free", HESSIAN_FREE, [1.0]),
        ("Adam", GRADIENT, [1e-2, 3e-3, 1e-3]),
        ("SGD", MOMENTUM, [1e-1, 3e-2, 1e-2]),
    ):
        work, wrong = min((_train(name, rate) for rate in rates), key=lambda run: run[1][-1])
        ax.plot(work, wrong, color=colour, label=name)
    ax.axhline(0.846, color=GREY, linestyle="--", label="best constant answer")
    ax.set_xlabel("work: gradients and curvature products, each over 1000 sequences")
    ax.set_ylabel("share of wrong answers")
    ax.set_title("Adding two numbers seen up to 30 steps ago, 20 hidden units", fontsize="medium")
    ax.legend(fontsize="small", loc="center right")
    return figure


def _train(name: str, rate: float) -> tuple[list[float], list[float]]:
    """Minibatches and test errors of one run."""
    task = hf.problems.Addition(length=30, mixed_lengths=True)  # as `hfcore train` has it
    model = hf.RNN(2, 20, 1)
    hf.init.sparse_(model, torch.Generator().manual_seed(0))
    optimizer: torch.optim.Optimizer
    if name == "Hessian-free":
        optimizer = hf.HessianFree(model, task.loss, **hf.presets.rnn2011)
    elif name == "Adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with tempfile.TemporaryDirectory() as folder:
        hf.train(
            model,
            task,
            optimizer,
            batch_size=100,
            minibatches=MINIBATCHES,
            test_untrained=True,
            test_size=2000,
            run_dir=Path(folder) / "run",
            progress=False,
        )
        lines = hf.training.read_metrics(Path(folder) / "run" / "metrics.jsonl")
    tested = [line for line in lines if line.get("test_error") is not None]
    return [m["minibatches"] for m in tested], [m["test_error"] for m in tested]


class Valley(hf.Objective):
    """f(θ) = ½ (θ₁² + 50 (θ₂ − 0.2 θ₁²)²): a narrow bent valley with its minimum at 0."""

    @staticmethod
    def residuals(theta: torch.Tensor) -> torch.Tensor:
        return torch.stack([theta[0], 50**0.5 * (theta[1] - 0.2 * theta[0] ** 2)])

    def loss(self, data: object, theta: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.residuals(theta).square().sum()

    def gradient(self, data: object, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.loss(data, theta), torch.func.grad(lambda t: self.loss(data, t))(theta)

    def curvature(self, data: object, theta: torch.Tensor) -> Products:
        J = torch.func.jacrev(self.residuals)(theta)
        return Products(J.mT @ J)


class Products:
    def __init__(self, G: torch.Tensor) -> None:
        self.G = G

    def product(self, v: torch.Tensor) -> torch.Tensor:
        return self.G @ v


START = torch.tensor([-2.5, 2.2], dtype=torch.float64)


def _contours(ax: Axes) -> None:
    x, y = np.meshgrid(np.linspace(-3, 1, 200), np.linspace(-0.6, 2.6, 200))
    f = 0.5 * (x**2 + 50 * (y - 0.2 * x**2) ** 2)
    ax.contour(x, y, f, levels=np.geomspace(0.02, 120, 14), colors=GREY, linewidths=0.6)
    ax.set_xlabel("θ₁")
    ax.set_ylabel("θ₂")


def valley() -> Figure:
    """Twenty steps of gradient descent and of Hessian-free optimisation in a narrow valley."""
    figure, ax = axes()
    _contours(ax)
    f, point = Valley(), torch.nn.Parameter(START.clone())
    opt = hf.HessianFree([point], objective=f, damping=0.1)
    path = [START.numpy()]
    for _ in range(20):
        opt.step("no data")
        path.append(point.detach().numpy().copy())
    theta, descent = START.clone(), [START.numpy()]
    for _ in range(20):
        theta = theta - 0.012 * f.gradient(None, theta)[1]
        descent.append(theta.numpy())
    for points, colour, name in (
        (descent, GRADIENT, "gradient descent"),
        (path, HESSIAN_FREE, "Hessian-free"),
    ):
        ax.plot(*np.array(points).T, "o-", color=colour, markersize=3, label=name)
    ax.set_title("Twenty steps each in a narrow valley", fontsize="medium")
    ax.legend(fontsize="small")
    return figure


def damping() -> Figure:
    """Where the step from one point leads as λ goes from 1000 to 0."""
    figure, ax = axes()
    _contours(ax)
    f = Valley()
    g = f.gradient(None, START)[1]
    G = f.curvature(None, START).G
    eye = torch.eye(2, dtype=torch.float64)
    at = [START - torch.linalg.solve(G + lam * eye, g) for lam in np.geomspace(1e3, 1e-4, 200)]
    ax.plot(*torch.stack(at).numpy().T, color=HESSIAN_FREE, label="end of the step, by λ")
    for lam in (100.0, 10.0, 1.0, 0.1):
        end = START - torch.linalg.solve(G + lam * eye, g)
        ax.plot(*end.numpy(), "o", color=HESSIAN_FREE, markersize=4)
        ax.annotate(f"λ = {lam:g}", end.tolist(), textcoords="offset points", xytext=(5, -10))
    ax.plot(*START.numpy(), "ko", label="start")
    ax.set_xlim(-3, 1)
    ax.set_ylim(-0.6, 2.6)
    ax.set_title("Damping: large λ gives a short step along the slope", fontsize="medium")
    ax.legend(fontsize="small")
    return figure


def ggn() -> Figure:
    """A loss in one dimension, its second-order model and the Gauss-Newton model."""
    figure, ax = axes()
    t = np.linspace(-1.2, 1.6, 300)
    at = -0.6
    s, d = np.tanh(1.5 * at), 1.5 * (1 - np.tanh(1.5 * at) ** 2)
    second = -2 * 1.5 * np.tanh(1.5 * at) * d
    f = 0.5 * (np.tanh(1.5 * t) - 0.9) ** 2
    slope, gauss_newton = (s - 0.9) * d, d * d
    line = 0.5 * (s - 0.9) ** 2 + slope * (t - at)
    ax.plot(t, f, "k", label="loss")
    hessian = gauss_newton + (s - 0.9) * second
    for curvature, colour, name in (
        (hessian, GRADIENT, "quadratic with the Hessian"),
        (gauss_newton, HESSIAN_FREE, "quadratic with Gauss-Newton"),
    ):
        ax.plot(t, line + 0.5 * curvature * (t - at) ** 2, color=colour, label=name)
    ax.plot(at, 0.5 * (s - 0.9) ** 2, "ko")
    ax.set_ylim(-1.2, 2.2)
    ax.set_xlabel("θ")
    ax.set_title("Gauss-Newton always has a minimum to go to", fontsize="medium")
    ax.legend(fontsize="small")
    return figure


def _rnn() -> tuple[hf.RNN, hf.problems.Addition, hf.Batch]:
    task = hf.problems.Addition(length=30)
    model = hf.RNN(2, 40, 1)
    hf.init.sparse_(model, torch.Generator().manual_seed(0))
    return model, task, task.batch(200, np.random.default_rng(0))


def cg() -> Figure:
    """The quadratic model against conjugate-gradient iterations, for four λ."""
    figure, ax = axes()
    generator = torch.Generator().manual_seed(0)
    model = hf.MLP([30, 40, 30], ["tanh", "linear"], generator=generator)
    scale = torch.logspace(0, -1.5, 30)
    x = torch.randn(500, 30, generator=generator) * scale
    error = model(x) - x
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(0.5 * error.square().sum(1).mean(), parameters)
    g = torch.nn.utils.parameters_to_vector(gradient)
    for lam, shade in ((1.0, 0.3), (0.1, 0.5), (0.01, 0.75), (0.001, 1.0)):
        G = hf.GaussNewton(model, hf.losses.SquaredError(), x, x, damping=lam)
        phi = []
        for count in range(1, 61):
            p, _ = hf.cg(G, -g, rtol=1e-12, max_iter=count)
            phi.append(float(g @ p + 0.5 * p @ (G @ p)))
        ax.plot(range(1, 61), phi, color=HESSIAN_FREE, alpha=shade, label=f"λ = {lam:g}")
    ax.set_xlabel("iterations of conjugate gradients")
    ax.set_ylabel("quadratic model φ")
    ax.set_title("Progress per iteration fades; the smaller λ, the later", fontsize="medium")
    ax.legend(fontsize="small")
    return figure


def structural() -> Figure:
    """How far one step moves the hidden states, without and with structural damping."""
    figure, ax = axes()
    for mu, colour in ((0.0, GRADIENT), (0.3, HESSIAN_FREE)):
        model, task, batch = _rnn()
        x, y, mask = batch
        G = hf.GaussNewton(model, task.loss, x, y, mask=mask, damping=0.01, structural=mu)
        p, _ = hf.cg(G, -_gradient(model, batch), max_iter=100)
        before = _hidden(model, batch.inputs)
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(model.parameters()) + p, model.parameters()
        )
        moved = (_hidden(model, batch.inputs) - before).square().mean((1, 2)).sqrt()
        ax.plot(range(1, len(moved) + 1), moved, color=colour, label=f"μ = {mu:g}")
    ax.set_xlabel("time step")
    ax.set_ylabel("change of the hidden states (r.m.s.)")
    ax.set_title("Structural damping keeps a step's hidden states near", fontsize="medium")
    ax.legend(fontsize="small")
    return figure


def _gradient(model: hf.RNN, batch: hf.Batch) -> torch.Tensor:
    """∇ of the mean of ½(s − t)² ``[N]``; the problem scores the last step alone."""
    error = model(batch.inputs)[-1] - batch.targets[-1]
    gradient = torch.autograd.grad(0.5 * error.square().mean(), list(model.parameters()))
    return torch.nn.utils.parameters_to_vector(gradient)


@torch.no_grad()
def _hidden(model: hf.RNN, x: torch.Tensor) -> torch.Tensor:
    """Hidden states ``[T,B,H]`` of the recurrence written out."""
    states: list[torch.Tensor] = []
    for step in x:
        from_before = states[-1] @ model.W_hh.mT if states else model.b_init
        states.append(torch.tanh(step @ model.W_hx.mT + from_before + model.b_h))
    return torch.stack(states)


def momentum() -> Figure:
    """Gradient descent, Nesterov's momentum and CG on one badly scaled quadratic."""
    figure, ax = axes()
    scale = torch.logspace(-3, 0, 100, dtype=torch.float64)
    b = torch.ones(100, dtype=torch.float64)

    def above(x: torch.Tensor) -> float:
        return float(0.5 * (scale * (x - b / scale).square()).sum())

    steps = range(1, 151)
    for mu, colour, name in (
        (0.0, GRADIENT, "gradient descent"),
        (0.95, MOMENTUM, "NAG, μ = 0.95"),
    ):
        x, v, values = torch.zeros_like(b), torch.zeros_like(b), []
        for _ in steps:
            v = mu * v - (scale * (x + mu * v) - b)
            x = x + v
            values.append(above(x))
        ax.plot(steps, values, color=colour, label=name)
    values = [above(hf.cg(lambda v: scale * v, b, rtol=1e-12, max_iter=n)[0]) for n in steps]
    ax.plot(steps, values, color=HESSIAN_FREE, label="conjugate gradients")
    ax.set_yscale("log")
    ax.set_xlabel("gradients or products")
    ax.set_ylabel("above the minimum")
    ax.set_title("One quadratic: momentum lies between gradient descent and CG", fontsize="medium")
    ax.legend(fontsize="small")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    f.__name__: f for f in (addition, valley, ggn, damping, cg, structural, momentum)
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*FIGURES, []], metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "assets")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or FIGURES:
        path = options.out / f"{name}.svg"
        FIGURES[name]().savefig(path, metadata={"Date": None})
        print(path)


if __name__ == "__main__":
    main()
