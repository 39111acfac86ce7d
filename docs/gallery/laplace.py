"""A Laplace approximation of what a net does not know.

At a minimum the posterior of the weights is close to a Gaussian with covariance (G/σ² + αI)⁻¹, and
the variance of a prediction is a row of the Jacobian on both sides of it (MacKay 1992; Immer et al.
2021 for the linearised form). The solves for all points of the plot share their passes over the
data. Beside it, the dense matrix of ``torch.func``, and an ensemble of nets. σ is that of the noise
in the data; α, which rules the width of the band where there are none, was chosen by eye, so the
picture shows that a solve gives what the formula says and not how well it is calibrated.
"""

import argparse
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import hfcore as hf

NOISE, PRIOR = 0.1, 1e-1  # σ of the targets, α of the weights' prior


def net(hidden: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(),
                         nn.Linear(hidden, 1)).double()  # fmt: skip


def fit(model: nn.Module, x: Tensor, y: Tensor, iterations: int) -> nn.Module:
    """The most probable weights, by torch's L-BFGS."""
    opt = torch.optim.LBFGS(
        model.parameters(), max_iter=iterations, history_size=50, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        opt.zero_grad()
        prior = sum(p.square().sum() for p in model.parameters())
        value = 0.5 * ((model(x) - y) / NOISE).square().sum() + 0.5 * PRIOR * prior
        value.backward()
        return value

    opt.step(closure)
    return model


def deviation(model: nn.Module, x: Tensor, at: Tensor) -> Tensor:
    """σ of the predictions at ``at [M,1]``, from products and solves."""
    J = hf.Jacobian(model, x)
    A = (J.mT @ J * NOISE**-2).shifted(PRIOR)
    K = hf.Jacobian(model, at)
    rows = K.mT @ torch.eye(len(at), dtype=x.dtype)  # [N,M]
    solved, _ = A.solve(rows, rtol=1e-6, preconditioner="nystrom")
    return (rows * solved).sum(0).sqrt()


def dense_deviation(model: nn.Module, x: Tensor, at: Tensor) -> Tensor:
    named = {name: p.detach() for name, p in model.named_parameters()}

    def jacobian(at: Tensor) -> Tensor:
        J = jacrev(lambda named: functional_call(model, named, (at,)))(named)
        return torch.cat([j.reshape(len(at), -1) for j in J.values()], 1)

    J, K = jacobian(x), jacobian(at)
    A = J.mT @ J / NOISE**2 + PRIOR * torch.eye(J.shape[1], dtype=x.dtype)
    return (K * torch.linalg.solve(A, K.mT).mT).sum(1).sqrt()


def main(out: Path, quick: bool = False) -> None:
    hidden, steps, members, points = (4, 3, 2, 7) if quick else (60, 500, 10, 100)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 1, generator=generator, dtype=torch.float64) * 2 - 1
    x = x[(x[:, 0] < -0.1) | (x[:, 0] > 0.5)] * 2  # a gap, of which the net knows nothing
    y = torch.sin(3 * x) + NOISE * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    at = torch.linspace(-3, 3, points, dtype=x.dtype).unsqueeze(1)
    model = fit(net(hidden, 0), x, y, steps)
    began = time.perf_counter()
    sigma = deviation(model, x, at)
    ours = time.perf_counter() - began
    began = time.perf_counter()
    dense = dense_deviation(model, x, at)
    theirs = time.perf_counter() - began
    began = time.perf_counter()
    ensemble = torch.stack(
        [fit(net(hidden, 1 + i), x, y, steps)(at).detach() for i in range(members)]
    )
    seconds = time.perf_counter() - began
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {points} points")
    print(f"hfcore, {points} solves: {ours:.2f} s; dense matrix of torch.func: {theirs:.2f} s")
    print(f"largest difference, relative: {float((sigma / dense - 1).abs().max()):.1e}")
    print(f"ensemble of {members} nets: {seconds:.1f} s")
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    mean = model(at).detach()[:, 0]
    for ax, centre, width, title in (
        (left, mean, sigma, "Laplace"),
        (right, ensemble.mean(0)[:, 0], ensemble.std(0)[:, 0], f"ensemble of {members}"),
    ):
        ax.fill_between(at[:, 0], centre - 2 * width, centre + 2 * width, alpha=0.3)
        ax.plot(at, centre)
        ax.plot(x, y, "k.", markersize=4)
        ax.set(title=title, ylim=(-4, 4))
        ax.grid(alpha=0.3)
    figure.savefig(out / "laplace.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    main(**vars(parser.parse_args()))
