"""Eigenvalues and spectral density of a transformer.

The Hessian of a small transformer's loss has a few large eigenvalues and a bulk around zero, some
of them negative. The largest come from Lanczos iterations with restarts, the density from
stochastic Lanczos quadrature, both on products alone: the matrix would have hundreds of millions of
entries. Beside it, the same five eigenvalues from SciPy's ``eigsh`` on a linear operator of
curvlinops.
"""

import argparse
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import hfcore as hf


class Counter(nn.Module):
    """Scores ``[B,S]`` for the most frequent symbol of ``[B,T]``."""

    def __init__(self, symbols: int, width: int, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
        self.scores = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.encoder(self.embed(x)).mean(1))


def trained(model: nn.Module, x: Tensor, y: Tensor, updates: int) -> nn.Module:
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(updates):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    return model


def by_curvlinops(model: nn.Module, x: Tensor, y: Tensor, k: int) -> list[float] | None:
    """The same eigenvalues, or None where curvlinops is not installed."""
    try:
        from curvlinops import HessianLinearOperator
    except ImportError:
        return None
    from scipy.sparse.linalg import eigsh

    parameters = list(model.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, [(x, y)])
        values = eigsh(operator.to_scipy(), k, which="LA", return_eigenvectors=False, tol=1e-4)
    return sorted(map(float, values), reverse=True)


def main(out: Path, quick: bool = False) -> None:
    torch.manual_seed(0)
    symbols, width, blocks, cases = (3, 8, 1, 10) if quick else (5, 40, 2, 200)
    x = torch.randint(symbols, (cases, 9))
    y = nn.functional.one_hot(x, symbols).sum(1).argmax(1)
    model = trained(Counter(symbols, width, blocks), x, y, 5 if quick else 100)
    began = time.perf_counter()
    H = hf.Hessian(model, nn.CrossEntropyLoss(), x, y)
    values = H.eigenvalues(5, tolerance=1e-4)
    ours = time.perf_counter() - began
    print(f"{H.shape[0]:,} parameters; largest eigenvalues", *(f"{v:.4g}" for v in values))
    print(f"hfcore: five eigenvalues in {ours:.1f} s, tracing included")
    began = time.perf_counter()
    theirs = by_curvlinops(model, x, y, 5)
    if theirs is None:
        print("curvlinops is not installed: pip install curvlinops-for-pytorch")
    else:
        print(f"curvlinops and SciPy: {time.perf_counter() - began:.1f} s")
        print(f"largest difference: {(values - torch.tensor(theirs)).abs().max():.1e}")
    began = time.perf_counter()
    probes, steps = (2, 10) if quick else (4, 60)
    density = H.spectral_density(
        probes=probes, steps=steps, generator=torch.Generator().manual_seed(0)
    )
    print(f"density from {probes * steps} products in {time.perf_counter() - began:.1f} s")
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.add_subplot(xlabel="eigenvalue", ylabel="density", yscale="log")
    ax.plot(density.grid, density.density.clamp_min(1e-9), label="density of the Hessian")
    for i, value in enumerate(values):
        ax.axvline(value, color="tab:orange", linewidth=1, label="five largest" if not i else None)
    ax.set_ylim(1e-6, None)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    figure.savefig(out / "spectrum.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    main(**vars(parser.parse_args()))
