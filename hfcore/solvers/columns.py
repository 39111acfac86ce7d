"""One right-hand side of A d = r being solved by conjugate gradients, product by product."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from hfcore.bindings import conjugate_gradient as ops
from hfcore.solvers.conjugate_gradient import (
    MAX_ITERATIONS,
    NONFINITE,
    NONPOSITIVE,
    RESIDUAL,
    applied,
)
from hfcore.solvers.preconditioners import DiagonalPreconditioner, Preconditioner


class Column(Protocol):
    """A solve of A d = r from d = 0 that waits for its next product; ``x, direction [N]``."""

    x: Tensor  # d [N], as far as it has come
    direction: Tensor  # what A is to be multiplied by next
    iterations: int

    def advance(self, image: Tensor) -> str | None:
        """Take A·direction ``[N]`` and go one iteration on; why it ends there, or None."""


class CgColumn:
    """Conjugate gradients (Hestenes & Stiefel 1952), preconditioned, for a right side ``r [N]``."""

    def __init__(self, r: Tensor, target: float, limit: int, M: Preconditioner | None) -> None:
        self.x = torch.zeros_like(r)
        self.iterations = 0
        self._b, self._r = r, r.clone()
        self._target, self._limit = target, limit
        self._diagonal = M.vector if isinstance(M, DiagonalPreconditioner) else None
        self._M = M
        self._z = self._r if M is None else applied(M, self._r, torch.empty_like(r))
        self._rz = self._product_rz()
        self.direction = self._z.clone()

    def advance(self, image: Tensor) -> str | None:
        z = self._z if self._diagonal is not None else self._r
        pAp, rz, _ = ops.cg_update(
            self.x, self._r, z, self.direction, image, self._b, self._rz, self._diagonal
        )
        if not math.isfinite(pAp):
            return NONFINITE
        if pAp <= 0.0:
            return NONPOSITIVE
        self.iterations += 1
        if not math.isfinite(rz):
            return NONFINITE
        norm = math.sqrt(rz if self._M is None else ops.dot(self._r, self._r))
        if norm <= self._target:
            return RESIDUAL
        if self.iterations >= self._limit:
            return MAX_ITERATIONS
        if self._M is not None and self._diagonal is None:
            applied(self._M, self._r, self._z)
            rz = self._product_rz()
        ops.cg_direction(self.direction, self._z, rz / self._rz)
        self._rz = rz
        return None

    def _product_rz(self) -> float:
        """rᵀM⁻¹r; ValueError where M cannot be positive definite."""
        return positive(ops.dot(self._r, self._z))


def positive(rz: float) -> float:
    """rᵀM⁻¹r of a residual that is not zero; ValueError where M is not positive definite."""
    if not (math.isfinite(rz) and rz > 0):
        raise ValueError(f"preconditioner.apply: rᵀM⁻¹r is {rz:g}, need a positive definite M")
    return rz
