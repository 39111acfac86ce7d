"""One step of least squares: tries of λ until the sum of squares falls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfcore.optimisers.damping import DampingBounds, LevenbergMarquardt, Nielsen, reduction_ratio
from hfcore.optimisers.residuals import ResidualJacobian, Residuals, half_square
from hfcore.solvers.damped_least_squares import (
    DampedSolver,
    DenseSolver,
    IterativeSolver,
    Space,
    fits_dense,
    smaller_space,
)

# λ₀ of "auto", of the curvature along the gradient (Madsen et al. 2004, τ in equation 3.14).
FROM_CURVATURE = 1e-3

STATIONARY = "the gradient is zero: the step is zero"
NO_DECREASE = "no λ that was tried gave a decrease: the step is zero"


@dataclass(frozen=True)
class LeastSquaresStats:
    """One step of :class:`LeastSquares` in numbers; ``dataclasses.asdict`` of it is JSON but for
    inf and nan."""

    loss: float  # ½‖r‖² before the step
    loss_after: float  # ½‖r‖² after the step
    losses: dict[str, float]  # of the residuals of each name, after
    rho: float  # of the last try: the decrease over the one that the linear model foretold
    damping: float  # λ of the last try
    damping_next: float  # λ that the next step begins with
    gradient_norm: float  # ‖Jᵀr‖ before
    step_norm: float  # 0: nothing was accepted
    residuals: int  # M, of all names together
    space: str  # "parameters" or "samples"
    solver: str  # "dense" or "cg"
    tries: int  # values of λ that were tried
    cg_iterations: int  # of all tries
    evaluations: int  # of the closure
    accepted: bool  # the parameters have moved
    converged: bool  # the parameters have not moved, and no λ moves them
    seconds: float  # of the whole step
    messages: tuple[str, ...]  # sentences on what was out of the ordinary


class LeastSquaresStep:
    """A step from ``theta [N]``, which it has moved where it is ``accepted``."""

    def __init__(
        self, residuals: Residuals, theta: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> None:
        self._residuals, self._group, self.theta = residuals, group, theta
        self.r, self._J = residuals.linearised()
        self._g = self._J.mT @ self.r
        self._gradient_norm = float(self._g.double().norm())
        if not math.isfinite(self._gradient_norm):
            raise ValueError("closure: the derivatives of its residuals are not finite")
        self.loss = self._loss_after = half_square(self.r)
        self._space: Space = group["space"]
        if group["space"] == "auto":
            self._space = smaller_space(*self._J.shape)
        self.growth: float = state.get("growth", Nielsen().growth)
        self._bounds = DampingBounds(self._curvature(), torch.finfo(torch.float64).eps)
        given = state.get("damping", group["damping"])
        self.damping: float = FROM_CURVATURE * self._bounds.scale if given == "auto" else given
        self._tried, self._rho = self.damping, math.nan
        self.accepted, self._tries, self._iterations, self._step_norm = False, 0, 0, 0.0
        self._messages: list[str] = []
        self._solver = ""

    def _curvature(self) -> float:
        """gᵀJᵀJg/gᵀg."""
        if self._gradient_norm == 0.0:
            return 0.0
        direction = self._g / self._gradient_norm
        return 2 * half_square(self._J @ direction)

    def run(self) -> None:
        """Try λ until one is accepted, or there have been enough."""
        if self._gradient_norm == 0.0:
            self._messages.append(STATIONARY)
            return
        solver = self._made(self._J)
        while self._tries < self._group["max_tries"] and not self.accepted:
            self._try(solver)
        if not self.accepted:
            self._messages.append(NO_DECREASE)

    def _made(self, J: ResidualJacobian) -> DampedSolver:
        group, wanted = self._group, self._group["solver"]
        if wanted == "auto":
            dense = group["preconditioner"] is None and fits_dense(*J.shape, self._space)
            wanted = "dense" if dense else "cg"
        self._solver = wanted
        if wanted == "dense":
            return DenseSolver(J, self.r, self._g, self._space)
        return IterativeSolver(
            J, self.r, self._g, self._space,
            rtol=group["cg_tolerance"], max_iter=group["cg_max_iter"],
            preconditioner=group["preconditioner"],
        )  # fmt: skip

    def _try(self, solver: DampedSolver) -> None:
        """One λ: its step, ρ, and λ of the next."""
        self._tries, self._tried, self._rho = self._tries + 1, self.damping, -math.inf
        p, iterations = solver.solve(self.damping)
        self._iterations += iterations
        if p is not None:
            theta = self.theta + p
            r = self._residuals.value(theta)
            # ½‖r'‖² − ½‖r‖² without the cancellation of the two sums.
            difference, total = (r - self.r).double(), (r + self.r).double()
            change = 0.5 * float(difference @ total)
            model = float(self._g.double() @ p.double()) + half_square(self._J @ p)
            self._rho = reduction_ratio(change, model)
            self.accepted = self._rho > 0 and change < 0
            if self.accepted:
                self.theta, self._step_norm = theta, float(p.double().norm())
                self.r, self._loss_after = r, half_square(r)
        self._move()

    def _move(self) -> None:
        """λ by the rule, not below where it drowns in the rounding of JᵀJ."""
        damping, bounds = self.damping, self._bounds
        if self._group["damping_rule"] == "nielsen":
            rule = Nielsen(self.growth)
            following, rule = rule.next(damping, self._rho, accepted=self.accepted)
            self.growth = rule.growth
        else:
            failed = LevenbergMarquardt(failed=3 / 2)
            following = failed.next(damping, self._rho, accepted=self.accepted)
        self.damping = bounds.moved(damping, following / damping if damping else 2.0)

    def stats(self, seconds: float) -> LeastSquaresStats:
        return LeastSquaresStats(
            loss=self.loss,
            loss_after=self._loss_after,
            losses=self._residuals.losses(self.r),
            rho=self._rho,
            damping=self._tried,
            damping_next=self.damping,
            gradient_norm=self._gradient_norm,
            step_norm=self._step_norm,
            residuals=len(self.r),
            space=self._space,
            solver=self._solver,
            tries=self._tries,
            cg_iterations=self._iterations,
            evaluations=self._residuals.evaluations,
            accepted=self.accepted,
            converged=not self.accepted,
            seconds=seconds,
            messages=tuple(self._messages),
        )
