"""Conjugate gradients on A x = b with the stop rules of Hessian-free optimisation.

Minimises φ(x) = ½xᵀAx − bᵀx. Martens (2010), section 4.4; Martens & Sutskever (2012), section 20.4;
for the trust region Steihaug (1983), with the recurrences of Conn, Gould & Toint (2000), section
7.5.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfcore.bindings import conjugate_gradient as ops
from hfcore.solvers.preconditioners import Preconditioner
from hfcore.step_interrupt import check_interrupt

Product = Callable[[Tensor, Tensor], Tensor]  # (v, out) -> out = A v
Observer = Callable[[int, Tensor, float], bool]  # (iteration, x, φ) -> True to stop

MAX_ITERATIONS = "maximum of iterations"
PROGRESS = "relative progress below tolerance"
RESIDUAL = "residual below tolerance"
NONPOSITIVE = "pᵀAp ≤ 0: no positive curvature along the direction"
NONFINITE = "curvature product not finite"
OBSERVER = "true objective got worse"
BOUNDARY = "trust region's boundary reached"


def applied(inverse: Preconditioner, r: Tensor, out: Tensor) -> Tensor:
    """M⁻¹ r ``[N]`` in ``out [N]``, also where ``apply`` gives another tensor, or nothing.

    Raises ValueError where it gives something else.
    """
    result: Any = inverse.apply(r, out)
    if result is None or result is out:
        return out
    if not isinstance(result, Tensor) or result.shape != r.shape or result.dtype != r.dtype:
        what = type(result).__name__
        if isinstance(result, Tensor):
            what = f"a {result.dtype} of shape {list(result.shape)}"
        raise ValueError(
            f"preconditioner.apply: gave {what}, need a {r.dtype} of shape {list(r.shape)}"
        )
    return out.copy_(result)


def check_definite(rz: float) -> None:
    """Raise ValueError for rᵀM⁻¹r < 0."""
    if rz < 0:
        raise ValueError(f"preconditioner.apply: rᵀM⁻¹r is {rz:g}, need a positive definite M")


@dataclass(frozen=True)
class StopRule:
    """When CG has done enough.

    Progress (Martens 2010, section 4.4): stop at i if i > k, φ_{i−k} < 0 and
    (φ_{i−k} − φ_i)/|φ_i| < k·tolerance, with k = max(lookback, ⌈lookback_fraction·i⌉). Residual
    (the RNN release of 2011): stop if ‖r‖ < residual.
    """

    max_iterations: int = 300
    min_iterations: int = 1
    tolerance: float = 5e-4
    lookback: int = 10
    lookback_fraction: float = 0.1
    residual: float = 1e-10

    def __post_init__(self) -> None:
        if self.max_iterations < 1:
            raise ValueError(f"cg_max_iter: got {self.max_iterations}, need at least 1")
        if self.lookback < 1:
            raise ValueError(f"cg_lookback: got {self.lookback}, need at least 1")
        for name in ("tolerance", "residual"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"cg_{name}: got {getattr(self, name)}, need at least 0")

    def reason(self, history: list[float], residual_norm: float) -> str | None:
        """Why to stop after the iterations whose φ is in ``history`` (φ_0 first), or None."""
        i = len(history) - 1
        if residual_norm < self.residual:
            return RESIDUAL
        if i >= self.min_iterations:
            k = max(self.lookback, math.ceil(self.lookback_fraction * i))
            if i > k and history[i - k] < 0:
                now, then = history[i], history[i - k]
                if now < 0 and (now - then) / now < k * self.tolerance:
                    return PROGRESS
        return MAX_ITERATIONS if i >= self.max_iterations else None


@dataclass
class Solution:
    """Where CG ended: ``x [N]``, why, after how many iterations, and φ after each (φ_0 first).

    ``norms``: within a trust region ‖x‖_M after each. ``direction [N]`` is the one whose curvature
    was not positive, where that ended the solve.
    """

    x: Tensor
    stop: str
    iterations: int
    history: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    direction: Tensor | None = None


def conjugate_gradient(
    product: Product,
    b: Tensor,
    x0: Tensor,
    *,
    rule: StopRule,
    observer: Observer | None = None,
    preconditioner: Tensor | Preconditioner | None = None,
    radius: float = math.inf,
) -> Solution:
    """Solve A x = b from ``x0`` (``[N]``, not changed).

    ``preconditioner``: a positive diagonal M ``[N]``, or an object whose ``apply(r, out)`` is
    M⁻¹ r.

    With a ``radius`` the solve ends where its path leaves the ball ‖x‖_M ≤ radius, on the boundary,
    also along a direction of negative curvature: ‖x‖_M² = xᵀMx grows from iterate to iterate, which
    the Euclidean norm does not under a preconditioner. ``x0`` must be zero then (ValueError).

    ``observer(i, x, φ)`` sees the iterate after every iteration and may end the solve. x is reused
    between calls: an observer that wants to keep it copies it. pᵀAp that is not positive or not
    finite ends the solve at the iterate before it.
    """
    x, p_image = x0.clone(), x0.new_empty(x0.shape)
    # φ(x0) and the residual cost one product, unless the start is zero.
    r = b.clone()
    if bool(x0.any()):
        if not math.isinf(radius):
            raise ValueError("x0: is not zero, need zero with a radius")
        r.sub_(product(x, p_image))
    M = preconditioner if isinstance(preconditioner, Tensor) else None
    inverse = None if isinstance(preconditioner, Tensor) else preconditioner
    z = r if M is None else r / M
    if inverse is not None:
        z = applied(inverse, r, torch.empty_like(r))
    direction = z.clone()
    rz = ops.dot(r, z)
    check_definite(rz)
    history = [-0.5 * (ops.dot(x, r) + ops.dot(x, b))]
    ball = None if math.isinf(radius) else _Ball(radius, rz)
    norms = [] if ball is None else ball.norms
    if not math.isfinite(rz):
        return Solution(x0.clone(), NONFINITE, 0, history, norms)
    if rz == 0.0:
        return Solution(x, RESIDUAL, 0, history, norms)
    while True:
        check_interrupt()
        product(direction, p_image)
        given = r if inverse is not None else z
        curvature, rz_new, phi = ops.cg_update(x, r, given, direction, p_image, b, rz, M)
        if not math.isfinite(curvature):
            return Solution(x, NONFINITE, len(history) - 1, history, norms)
        if curvature <= 0.0 and ball is None:
            return Solution(x, NONPOSITIVE, len(history) - 1, history, direction=direction)
        if ball is not None and (curvature <= 0.0 or not ball.holds(rz / curvature)):
            if curvature > 0.0:  # back to where this iteration began
                x.add_(direction, alpha=-rz / curvature)
            tau = ball.to_boundary()
            history.append(history[-1] - tau * rz + 0.5 * tau * tau * curvature)
            return Solution(
                x.add_(direction, alpha=tau), BOUNDARY, len(history) - 1, history, norms
            )
        history.append(phi)
        if not (math.isfinite(phi) and math.isfinite(rz_new)):
            return Solution(x, NONFINITE, len(history) - 1, history, norms)
        if observer is not None and observer(len(history) - 1, x, phi):
            return Solution(x, OBSERVER, len(history) - 1, history, norms)
        norm = math.sqrt(rz_new if M is None else ops.dot(r, r))
        stop = rule.reason(history, norm)
        if stop is not None:
            return Solution(x, stop, len(history) - 1, history, norms)
        if inverse is not None:
            rz_new = ops.dot(r, applied(inverse, r, z))
            check_definite(rz_new)
            if not math.isfinite(rz_new):
                return Solution(x, NONFINITE, len(history) - 1, history, norms)
        if ball is not None:
            ball.turn(rz_new, rz_new / rz)
        ops.cg_direction(direction, z, rz_new / rz)
        rz = rz_new


class _Ball:
    """The ball ‖x‖_M ≤ radius on CG's path from 0: xᵀMx, xᵀMp and pᵀMp of iterate and direction.

    They follow from CG's own scalars, since M-products of an iterate are not to be had where M is
    known by its inverse. ``norms`` holds ‖x‖_M of every iterate.
    """

    def __init__(self, radius: float, rz: float) -> None:
        self._radius, self._xx, self._xp, self._pp = radius, 0.0, 0.0, rz
        self.norms = [0.0]

    def holds(self, alpha: float) -> bool:
        """Whether x + αp is inside; the iterate then is that, else it stays."""
        xx = self._xx + alpha * (2.0 * self._xp + alpha * self._pp)
        if not xx < self._radius * self._radius:  # NaN is outside
            return False
        self._xp += alpha * self._pp
        self._xx = xx
        self.norms.append(math.sqrt(max(xx, 0.0)))
        return True

    def turn(self, rz: float, beta: float) -> None:
        """The direction becomes z + βp; zᵀMp = rᵀp and zᵀMx = rᵀx are zero."""
        self._pp = rz + beta * beta * self._pp
        self._xp *= beta

    def to_boundary(self) -> float:
        """τ ≥ 0 with ‖x + τp‖_M = radius; the last of the norms."""
        inside = max(self._radius * self._radius - self._xx, 0.0)
        root = math.sqrt(self._xp * self._xp + self._pp * inside)
        self.norms.append(self._radius)
        # The form without cancellation.
        return inside / (self._xp + root) if self._xp > 0 else (root - self._xp) / self._pp
