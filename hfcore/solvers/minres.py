"""MINRES for symmetric A, indefinite or singular: the least ‖b − A x‖ over Krylov spaces.

Paige & Saunders (1975), sections 5 and 6, in the form of Choi, Paige & Saunders (2011).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hfcore.bindings import conjugate_gradient as ops
from hfcore.solvers.columns import positive
from hfcore.solvers.conjugate_gradient import MAX_ITERATIONS, NONFINITE, RESIDUAL, applied
from hfcore.solvers.preconditioners import Preconditioner

LEAST_SQUARES = "least residual reached: b is not in the range of A, as far as rounding tells"


class MinresColumn:
    """One right-hand side of A d = r ``[N]``, product by product, as a ``Column``.

    The residual itself is carried along, so that ``target`` is its Euclidean norm whatever M.
    """

    def __init__(self, r: Tensor, target: float, limit: int, M: Preconditioner | None) -> None:
        self.x = torch.zeros_like(r)
        self.iterations = 0
        self._target, self._limit, self._M = target, limit, M
        # Of ‖A r‖ / (‖A‖‖r‖): Lanczos vectors lose their orthogonality about here, and further
        # iterations on a b outside of the range make x large and nothing smaller. With a multiple
        # of ε there, they go on until the limit, or until x has grown by 1/ε.
        self._flat = math.sqrt(torch.finfo(r.dtype).eps)
        self._residual = r.clone()
        # Two Lanczos vectors, not normalised, and M⁻¹ of the second.
        self._u_before, self._u = r, r.clone()
        self._y = r if M is None else applied(M, r, torch.empty_like(r))
        self._beta = math.sqrt(positive(ops.dot(r, self._y)))
        self._beta_before = 0.0
        self._phi = self._beta  # norm of the residual in M⁻¹
        self._cos, self._sin = -1.0, 0.0
        self._epsilon, self._delta = 0.0, 0.0
        self._square = 0.0  # of the Frobenius norm of the tridiagonal matrix
        self._w, self._w_before = torch.zeros_like(r), torch.zeros_like(r)
        self.direction = self._y / self._beta

    def advance(self, image: Tensor) -> str | None:
        beta, v = self._beta, self.direction
        y = image.clone()
        if self._beta_before > 0.0:
            y.sub_(self._u_before, alpha=beta / self._beta_before)
        alpha = ops.dot(v, y)
        y.sub_(self._u, alpha=alpha / beta)
        self._u_before, self._u = self._u, y
        self._y = y if self._M is None else applied(self._M, y, torch.empty_like(y))
        square = ops.dot(y, self._y)
        if not (math.isfinite(alpha) and math.isfinite(square)):
            return NONFINITE
        following = math.sqrt(max(square, 0.0))
        self._square += alpha * alpha + following * following
        if self.iterations:
            self._square += beta * beta

        # The rotation before, then the one that takes ``following`` away.
        cos, sin, epsilon = self._cos, self._sin, self._epsilon
        delta = cos * self._delta + sin * alpha
        gamma_bar = sin * self._delta - cos * alpha
        self._epsilon = sin * following
        self._delta = -cos * following
        slope = math.hypot(gamma_bar, self._delta)  # ‖A r‖ / ‖r‖ before this iteration
        if slope <= self._flat * math.sqrt(self._square):
            return LEAST_SQUARES
        gamma = math.hypot(gamma_bar, following)
        self._cos, self._sin = gamma_bar / gamma, following / gamma
        step, self._phi = self._cos * self._phi, self._sin * self._phi

        w = (v - epsilon * self._w_before - delta * self._w).div_(gamma)
        self._w_before, self._w = self._w, w
        self.x.add_(w, alpha=step)
        self._residual.mul_(self._sin**2)
        if following > 0.0:
            self._residual.sub_(y, alpha=self._phi * self._cos / following)
        self.iterations += 1
        norm = math.sqrt(ops.dot(self._residual, self._residual))
        if not math.isfinite(norm):
            return NONFINITE
        if norm <= self._target or following == 0.0:
            return RESIDUAL
        if self.iterations >= self._limit:
            return MAX_ITERATIONS
        self._beta_before, self._beta = beta, following
        self.direction = self._y / following
        return None
