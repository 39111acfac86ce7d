"""p with (JᵀJ + λI) p = −Jᵀr, by a dense factorisation or by conjugate gradients, on either side.

With as many residuals as there are (M) and N parameters, the same p is −Jᵀy with
(JJᵀ + λI) y = r, a system in the space of the samples: the smaller one where M < N (the dual of
Gauss-Newton).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Space = Literal["parameters", "samples"]

# A dense J of more numbers than this (½ GiB in float64), or a system with more rows, is left to CG.
DENSE_NUMBERS, DENSE_ROWS = 1 << 26, 4096


class Solved(NamedTuple):
    """``step [N]``, None where the system is not positive definite in this arithmetic."""

    step: Tensor | None
    iterations: int


class DampedSolver(Protocol):
    """The solves of one J and r at several λ."""

    def solve(self, damping: float) -> Solved:
        """p ``[N]`` at λ = ``damping``."""


def smaller_space(M: int, N: int) -> Space:
    """The side of J ``[M,N]`` on which the system is smaller."""
    return "samples" if M < N else "parameters"


def fits_dense(M: int, N: int, space: Space) -> bool:
    """Whether J ``[M,N]`` and the system of that side are small enough for a factorisation."""
    return M * N <= DENSE_NUMBERS and (N if space == "parameters" else M) <= DENSE_ROWS


class DenseSolver:
    """By Cholesky factors of JᵀJ or JJᵀ in float64, formed once from all rows of ``J [M,N]``.

    ``r [M]`` are the residuals, ``g [N]`` is Jᵀr.
    """

    def __init__(self, J: Any, r: Tensor, g: Tensor, space: Space) -> None:
        M = J.shape[0]
        eye = torch.eye(M, dtype=r.dtype, device=r.device)
        self._rows = J.mT.products(eye).double()
        self._dual = space == "samples"
        rows = self._rows
        self._gram = rows @ rows.mT if self._dual else rows.mT @ rows
        self._right = -(r if self._dual else g).double()
        self._dtype = r.dtype

    def solve(self, damping: float) -> Solved:
        matrix = self._gram.clone()
        matrix.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            return Solved(None, 0)
        solution = torch.cholesky_solve(self._right.unsqueeze(1), factor).squeeze(1)
        if self._dual:
            solution = self._rows.mT @ solution
        return Solved(solution.to(self._dtype), 0)


class IterativeSolver:
    """By conjugate gradients on products with ``J [M,N]`` and Jᵀ, ‖residual‖ ≤ rtol·‖right side‖.

    ``r [M]`` are the residuals, ``g [N]`` is Jᵀr.
    """

    def __init__(
        self,
        J: Any,
        r: Tensor,
        g: Tensor,
        space: Space,
        *,
        rtol: float,
        max_iter: int,
        preconditioner: Literal["nystrom"] | None,
    ) -> None:
        self._J, self._dual = J, space == "samples"
        self._right = -(r if self._dual else g)
        self._options = {"rtol": rtol, "max_iter": max_iter, "preconditioner": preconditioner}

    def solve(self, damping: float) -> Solved:
        J = self._J
        matrix = (J @ J.mT if self._dual else J.mT @ J).shifted(damping)
        solution, info = matrix.solve(self._right, method="cg", **self._options)
        step = J.mT @ solution if self._dual else solution
        if not bool(torch.isfinite(step).all()):
            return Solved(None, info.iterations[0])
        return Solved(step, info.iterations[0])
