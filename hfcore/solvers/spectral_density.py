"""The density of a symmetric matrix's eigenvalues, and traces of its functions, from products.

Stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017; Lin, Saad & Yang 2016, section 3.2): for a
random probe z with ‖z‖ = 1, zᵀf(A)z ≈ Σᵢ wᵢ f(θᵢ) with the eigenvalues θᵢ of the Lanczos matrix and
the squared first components wᵢ of its eigenvectors; exact for polynomials of degree below 2·steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfcore import arguments
from hfcore.bindings.checks import check_tensor
from hfcore.probes import random_signs
from hfcore.solvers.lanczos import NOTHING

# Bytes of Lanczos vectors that probes worked on together may fill.
BASIS_BYTES = 256 << 20
# The Gaussians' width where none is given, of the range of the nodes; and grid points.
WIDTH, POINTS, MOST_POINTS = 0.01, 1000, 10_000_000
MOST_PROBES = 100_000
# The grid goes on beyond the nodes by this many widths.
MARGIN = 4.0


@dataclass(frozen=True)
class SpectralDensity:
    """Density of the eigenvalues of A ``[N,N]``, of integral 1, smoothed by a Gaussian.

    ``density [g]`` at ``grid [g]`` is the mean over probes, ``error [g]`` its standard error. Every
    probe's quadrature is ``nodes [p,s]`` with ``weights [p,s]``, whose rows sum to 1; ``width`` is
    the Gaussian's standard deviation and ``size`` N. All float64, on the CPU.
    """

    grid: Tensor
    density: Tensor
    error: Tensor
    nodes: Tensor
    weights: Tensor
    width: float
    size: int

    def trace(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """tr f(A) = Σ f(eigenvalues) and its standard error, for an elementwise ``function``.

        ``torch.log`` gives log det A of a positive definite A. Raises ValueError for a function
        that is not finite at the nodes.
        """
        if not callable(function):
            raise TypeError(f"function: got {type(function).__name__}, need a function of a tensor")
        values = function(self.nodes)
        if not isinstance(values, Tensor) or values.shape != self.nodes.shape:
            raise ValueError(f"function: need a tensor {list(self.nodes.shape)} for one like it")
        # A node of no weight is none.
        values = torch.where(self.weights > 0, values, 0.0)
        if not bool(torch.isfinite(values).all()):
            raise ValueError("function: is not finite at the nodes")
        mean, error = _mean((self.weights * values).sum(1))
        return self.size * float(mean), self.size * float(error)


def spectral_density(
    A: Any,
    probes: int,
    steps: int,
    grid: int | Tensor | None,
    width: float | None,
    generator: torch.Generator | None,
) -> SpectralDensity:
    """The density of the eigenvalues of A ``[N,N]`` at ``grid [g]``, or a grid of so many points.

    See :meth:`hfcore.curvature.linear_operator.LinearOperator.spectral_density`. Raises ValueError
    or TypeError naming an argument.
    """
    probes = arguments.count("probes", probes, 2, MOST_PROBES)  # one has no standard error
    steps = arguments.count("steps", steps)
    if A.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"A: products are {A.dtype}, need torch.float32 or torch.float64")
    if width is not None:
        width = arguments.positive("width", width)
    _check_grid(grid)
    arguments.generator(generator)
    N = A.shape[0]
    steps = min(steps, N)
    together = max(1, BASIS_BYTES // (steps * N * A.dtype.itemsize))
    parts = []
    for at in range(0, probes, together):
        signs = random_signs((min(together, probes - at), N), A, generator)
        parts.append(_quadrature(*_tridiagonal(A, signs / math.sqrt(N), steps)))
    nodes, weights = (torch.cat(part) for part in zip(*parts, strict=True))
    low, high = float(nodes[weights > 0].min()), float(nodes[weights > 0].max())
    if width is None:
        width = WIDTH * ((high - low) or abs(high) or 1.0)
    if not isinstance(grid, Tensor):
        low, high = low - MARGIN * width, high + MARGIN * width
        grid = torch.linspace(low, high, grid or POINTS, dtype=torch.float64, device="cpu")
    grid = grid.detach().cpu().double()
    density, error = _mean(_smoothed(grid, nodes, weights, width))
    return SpectralDensity(grid, density, error, nodes, weights, width, N)


def _check_grid(grid: int | Tensor | None) -> None:
    if isinstance(grid, Tensor):
        check_tensor("grid", grid, ["g"])
        if not grid.is_floating_point():
            raise TypeError(f"grid: got {grid.dtype}, need real floating point")
        if grid.is_meta or not bool(torch.isfinite(grid).all()):
            raise ValueError("grid: holds NaN or Inf, need finite values")
    elif grid is not None:
        arguments.count("grid", grid, most=MOST_POINTS)


def _tridiagonal(A: Any, v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Diagonals ``[p,s]`` and subdiagonals ``[p,s-1]`` of the Lanczos matrices from ``v [p,N]``.

    Reorthogonalised twice, so that no node comes up again. Where an invariant space ends, zeros
    follow. Raises ValueError for products that are not finite.
    """
    p, N = v.shape
    V = v.new_empty(p, steps, N)
    diagonal = v.new_zeros(p, steps, dtype=torch.float64)
    beside = v.new_zeros(p, steps, dtype=torch.float64)
    nothing = NOTHING * torch.finfo(v.dtype).eps
    scale = v.new_zeros(p, dtype=torch.float64)
    for j in range(steps):
        V[:, j] = v
        w = A.products(v)
        basis = V[:, : j + 1]
        for _ in range(2):
            h = torch.matmul(basis, w.unsqueeze(2))  # [p,j+1,1]
            w = w - torch.matmul(basis.mT, h).squeeze(2)
            diagonal[:, j] += h[:, j, 0].double()
        beta = w.norm(dim=1).double()
        scale = torch.maximum(scale, torch.maximum(beta, diagonal[:, j].abs()))
        ended = beta <= nothing * scale
        beside[:, j] = beta.masked_fill(ended, 0.0)
        v = (w / beta.masked_fill(ended, 1.0).unsqueeze(1).to(w.dtype)).masked_fill(
            ended.unsqueeze(1), 0.0
        )
    diagonal, beside = diagonal.cpu(), beside[:, : steps - 1].cpu()
    if not bool(torch.isfinite(diagonal).all() and torch.isfinite(beside).all()):
        raise ValueError("A: a product is not finite")
    return diagonal, beside


def _quadrature(diagonal: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights ``[p,s]``."""
    T = torch.diag_embed(diagonal)
    T = T + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    nodes, vectors = torch.linalg.eigh(T)
    weights = vectors[:, 0].square()
    # The zeros behind an invariant space have none but rounding's.
    return nodes, weights.masked_fill(weights < torch.finfo(weights.dtype).eps ** 2, 0.0)


def _smoothed(grid: Tensor, nodes: Tensor, weights: Tensor, width: float) -> Tensor:
    """Every probe's density ``[p,g]``."""
    rows = []
    for theta, weight in zip(nodes, weights, strict=True):
        z = (grid.unsqueeze(1) - theta) / width
        rows.append(torch.exp(-0.5 * z.square()) @ weight)
    return torch.stack(rows) / (width * math.sqrt(2 * math.pi))


def _mean(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over probes, the first axis, and its standard error."""
    return samples.mean(0), samples.std(0) / math.sqrt(len(samples))
