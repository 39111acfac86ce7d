"""Physics-informed nets: least squares beside Adam and L-BFGS.

A net u(x) is to satisfy a differential equation: Poisson's −u'' = f, whose solution has two
frequencies, sin 4πx among them, and the convection u_t + u_x = 0 of a sine over one period. The
loss is a sum of squares of residuals that is to fall by many orders of magnitude. All optimisers
start at the same net and have the same seconds of one processor core.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import hfcore as hf

Residuals = Callable[[nn.Module], dict[str, Tensor]]
F64 = torch.float64


def derivative(u: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def poisson(points: int) -> tuple[int, Residuals, Tensor, Tensor]:
    """Inputs of the net, residuals, points of the test and the solution there."""
    x = torch.linspace(0, 1, points, dtype=F64).unsqueeze(1).requires_grad_()
    f = math.pi**2 * (torch.sin(math.pi * x) + 16 * torch.sin(4 * math.pi * x)).detach()
    ends = torch.tensor([[0.0], [1.0]], dtype=F64)

    def residuals(net: nn.Module) -> dict[str, Tensor]:
        second = derivative(derivative(net(x), x), x)
        return {"equation": (second + f) / points**0.5, "boundary": 10 * net(ends)}

    at = torch.linspace(0, 1, 501, dtype=F64).unsqueeze(1)
    return 1, residuals, at, torch.sin(math.pi * at) + torch.sin(4 * math.pi * at)


def convection(points: int) -> tuple[int, Residuals, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(points, 2, generator=generator, dtype=F64).requires_grad_()  # x, t
    along = torch.linspace(0, 1, points // 5, dtype=F64)
    start = torch.stack([along, torch.zeros_like(along)], 1)
    sides = [torch.stack([torch.full_like(along, x), along], 1) for x in (0.0, 1.0)]
    first = torch.sin(2 * math.pi * along).unsqueeze(1)

    def residuals(net: nn.Module) -> dict[str, Tensor]:
        u = derivative(net(inside), inside)
        return {
            "equation": (u[:, 1] + u[:, 0]) / points**0.5,
            "start": 3 * (net(start) - first) / len(along) ** 0.5,
            "period": 3 * (net(sides[0]) - net(sides[1])) / len(along) ** 0.5,
        }

    at = torch.cartesian_prod(*[torch.linspace(0, 1, 51, dtype=F64)] * 2)
    return 2, residuals, at, torch.sin(2 * math.pi * (at[:, :1] - at[:, 1:]))


def make(name: str, net: nn.Module, residuals: Residuals) -> Callable[[], object]:
    """One step, or some, of an optimiser."""

    def loss() -> Tensor:
        opt.zero_grad()
        value = sum(0.5 * r.square().sum() for r in residuals(net).values())
        value.backward()
        return value

    if name == "LeastSquares":
        opt = hf.LeastSquares(net)
        return lambda: opt.step(lambda: residuals(net))
    if name == "HessianFree":
        opt = hf.HessianFree(net, damping=1e-2, cg_max_iter=100, cg_tolerance=1e-6)

        def closure() -> tuple[Tensor, Tensor]:
            r = torch.cat([r.reshape(-1) for r in residuals(net).values()])
            return 0.5 * r.square().sum(), r

        return lambda: opt.step(closure)
    if name == "L-BFGS":
        opt = torch.optim.LBFGS(net.parameters(), line_search_fn="strong_wolfe", history_size=50)
    else:
        opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    return lambda: [opt.step(loss) for _ in range(1 if name == "L-BFGS" else 20)]


def main(out: Path, quick: bool = False) -> None:
    hidden, points, seconds = (4, 10, 0.2) if quick else (20, 100, 5.0)
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for ax, problem in zip(panels, (poisson, convection), strict=True):
        size, residuals, at, solution = problem(points)
        for name in ("LeastSquares", "HessianFree", "L-BFGS", "Adam"):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, hidden),
                                nn.Tanh(), nn.Linear(hidden, 1)).double()  # fmt: skip
            step, times, errors, began = make(name, net, residuals), [], [], time.thread_time()
            while not times or times[-1] < seconds:
                step()
                times.append(time.thread_time() - began)
                errors.append(float((net(at).detach() - solution).norm() / solution.norm()))
            ax.semilogy(times, errors, label=name)
            what = f"{problem.__name__}, {name}"
            print(f"{what}: relative error {errors[-1]:.1e} in {times[-1]:.1f} s")
        ax.set(title=problem.__name__, xlabel="seconds of one core")
    panels[0].set_ylabel("relative error of u")
    panels[1].legend(fontsize="small")
    figure.savefig(out / "pinn.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    torch.set_num_threads(1)  # small nets are none the slower, and others on the machine count less
    main(**vars(parser.parse_args()))
