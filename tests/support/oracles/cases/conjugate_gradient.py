"""Vectors of a CG iteration, and systems with a known spectrum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Vectors(NamedTuple):
    """What ``cg_update`` reads and writes, each ``[N]``."""

    x: Tensor
    r: Tensor
    z: Tensor
    p: Tensor
    Ap: Tensor
    b: Tensor

    def copy(self) -> Vectors:
        return Vectors(*(v.clone() for v in self))


def spd(N: int, condition: float = 100.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(A, b) in float64: eigenvalues of A spread evenly in their logarithms, a random b."""
    g = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(N, N, generator=g, dtype=torch.float64))
    A = Q @ torch.diag(torch.logspace(0, math.log10(condition), N, dtype=torch.float64)) @ Q.T
    return A, torch.randn(N, generator=g, dtype=torch.float64)


def assert_first_to_stop(phi: Sequence[float], iterations: int, tolerance: float) -> None:
    """Martens 2010, section 4.4: the first i > k with φ_{i−k} < 0, (φ_i − φ_{i−k})/φ_i < k·ε."""

    def done(i: int) -> bool:
        k = max(10, math.ceil(0.1 * i))
        return i > k and phi[i - k] < 0 and (phi[i] - phi[i - k]) / phi[i] < k * tolerance

    assert done(iterations)
    assert not any(done(i) for i in range(1, iterations))
