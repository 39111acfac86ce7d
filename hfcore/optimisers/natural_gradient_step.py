"""One step along the natural gradient: the solve, the radius, backtracking."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfcore.autograd.data import NO_GRADIENT, Closure, no_graph, said_of_graphs
from hfcore.autograd.evaluation import flatten
from hfcore.autograd.objective import ModuleObjective
from hfcore.curvature.gauss_newton import GaussNewton
from hfcore.optimisers.divergence import Divergence, MakesDistribution
from hfcore.optimisers.line_search import LineSearch

NO_OUTPUTS = (
    "closure: returned a scalar loss alone, need (loss, outputs): how far the distributions of the "
    "outputs move limits the step"
)
STATIONARY = "the gradient is zero: the step is zero"
NO_CURVATURE = "the divergence does not grow along the step: raise damping"
NO_DECREASE = "no step within the radius made the loss fall: the step is zero"


@dataclass(frozen=True)
class NaturalGradientStats:
    """One step of :class:`NaturalGradient` in numbers; ``dataclasses.asdict`` of it is JSON."""

    loss: float  # of the closure, before the step
    loss_after: float  # of the closure, after the step
    divergence: float  # mean KL(before ‖ after), at most max_kl
    predicted_change: float  # gᵀp of the step before backtracking
    gradient_norm: float  # ‖g‖ before the step
    step_norm: float  # 0: nothing was accepted
    alpha: float  # of backtracking, in units of the step to the radius; 0: nothing was accepted
    cg_iterations: int  # of the solve
    cg_residual: float  # ‖g − (F + λI) s‖ / ‖g‖ that CG ended with
    evaluations: int  # of the closure
    accepted: bool  # the parameters have moved
    seconds: float  # of the whole step
    messages: tuple[str, ...]  # sentences on what was out of the ordinary


class NaturalGradientStep:
    """A step from what the parameters hold; it has moved ``theta [N]`` where ``alpha`` is not 0."""

    def __init__(
        self,
        objective: ModuleObjective,
        closure: Closure,
        distribution: str | MakesDistribution,
        group: dict[str, Any],
    ) -> None:
        self._objective, self._closure, self._group = objective, closure, group
        self.theta = objective.parameters.read()
        with said_of_graphs():
            loss, outputs, _, _ = objective.evaluate(closure)
            if outputs is None:
                raise TypeError(NO_OUTPUTS)
            self.loss = self._loss_after = float(loss.detach())
            self._g = self._gradient(loss)
        self._divergence = Divergence(distribution, outputs)
        self.alpha, self._evaluations = 0.0, 1
        self._gradient_norm = float(self._g.double().norm())
        if not (math.isfinite(self.loss) and math.isfinite(self._gradient_norm)):
            raise ValueError("closure: loss or gradient is not finite at the present parameters")
        self._iterations, self._residual = 0, 0.0
        self._slope, self._step_norm, self._kl = 0.0, 0.0, 0.0
        self._messages: list[str] = []

    def _gradient(self, loss: Tensor) -> Tensor:
        if not loss.requires_grad:
            raise no_graph(NO_GRADIENT)
        leaves = self._objective.parameters.tensors
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        return flatten(grads, leaves)

    def run(self, search: LineSearch) -> None:
        """Solve, and go as far as the divergence allows and the loss wants."""
        if self._gradient_norm == 0.0:
            self._messages.append(STATIONARY)
            return
        p = self._to_radius()
        if p is None:
            self._messages.append(NO_CURVATURE)
            return
        start, self._slope = self.theta, float(self._g.double() @ p.double())
        self.alpha, self._loss_after = search.search(
            lambda alpha: self._loss_at(start + alpha * p), self.loss, self._slope
        )
        if self.alpha:
            self.theta = start + self.alpha * p
            self._step_norm = self.alpha * float(p.double().norm())
        else:
            self._kl = 0.0
            self._messages.append(NO_DECREASE)

    def _to_radius(self) -> Tensor | None:
        """p ``[N]``; None where no curvature limits it."""
        closure, divergence, group = self._closure, self._divergence, self._group

        def mean_divergence() -> tuple[Tensor, Tensor]:
            _, outputs = closure()
            return divergence.mean(outputs), outputs

        self._evaluations += 1
        A = GaussNewton(
            inputs=mean_divergence, objective=self._objective, theta=self.theta, local=True,
            damping=group["damping"],
        )  # fmt: skip
        s, info = A.solve(
            self._g, group["cg_tolerance"], max_iter=group["cg_max_iter"], method="cg"
        )
        self._iterations = info.iterations[0]
        self._residual = float(info.residual_norms[0]) / self._gradient_norm
        square = float(s.double() @ (A @ s).double())
        if not (math.isfinite(square) and square > 0):
            return None
        return s * -math.sqrt(2 * group["max_kl"] / square)

    def _loss_at(self, theta: Tensor) -> float:
        """The loss, infinite outside of the radius."""
        self._evaluations += 1
        with self._objective.parameters.holding(theta):
            loss, outputs, _, _ = self._objective.evaluate(self._closure)
        assert outputs is not None
        self._kl = self._divergence.value(outputs)
        return float(loss.detach()) if self._kl <= self._group["max_kl"] else math.inf

    def stats(self, seconds: float) -> NaturalGradientStats:
        return NaturalGradientStats(
            loss=self.loss,
            loss_after=self._loss_after,
            divergence=self._kl,
            predicted_change=self._slope,
            gradient_norm=self._gradient_norm,
            step_norm=self._step_norm,
            alpha=self.alpha,
            cg_iterations=self._iterations,
            cg_residual=self._residual,
            evaluations=self._evaluations,
            accepted=self.alpha > 0,
            seconds=seconds,
            messages=tuple(self._messages),
        )
