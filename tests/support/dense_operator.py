"""Matrices with known spectra, and a dense matrix as an operator that counts its products."""

from __future__ import annotations

import torch
from torch import Tensor

import hfcore as hf


class Dense(hf.LinearOperator):
    """A dense matrix ``[M,N]``; ``counted`` is how many vectors it has been multiplied by."""

    def __init__(self, matrix: Tensor, names: dict[str, slice] | None = None) -> None:
        self.matrix = matrix
        self.symmetric = matrix.shape[0] == matrix.shape[1] and bool(torch.equal(matrix, matrix.mT))
        self.parameter_slices = names
        self.counted = 0
        self.calls = 0

    @property
    def shape(self) -> tuple[int, int]:
        return (self.matrix.shape[0], self.matrix.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    @property
    def mT(self) -> hf.LinearOperator:
        return self if self.symmetric else Dense(self.matrix.mT)

    def _is_transpose_of(self, other: hf.LinearOperator) -> bool:
        return isinstance(other, Dense) and torch.equal(self.matrix, other.matrix.mT)

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        self.counted += 1
        self.calls += 1
        return torch.mv(self.matrix, v) if out is None else torch.mv(self.matrix, v, out=out)

    def _products(self, V: Tensor) -> Tensor:
        self.counted += len(V)
        self.calls += 1
        return V @ self.matrix.mT


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def with_spectrum(values: Tensor, seed: int = 0) -> Tensor:
    """A symmetric float64 matrix with these eigenvalues and random eigenvectors."""
    Q = torch.linalg.qr(normal(len(values), len(values), seed=seed))[0]
    A = (Q * values.double()) @ Q.mT
    return (A + A.mT) / 2
