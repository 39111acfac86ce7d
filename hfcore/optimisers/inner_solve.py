"""CG on the damped curvature of one step, on the host or on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hfcore.bindings.conjugate_gradient import dot
from hfcore.optimisers.backtracking import evaluation_points
from hfcore.optimisers.damped_curvature import DampedCurvature
from hfcore.optimisers.lasting_solves import LastingProduct
from hfcore.optimisers.preconditioner import update
from hfcore.optimisers.step_point import StepPoint
from hfcore.solvers import device_conjugate_gradient as device
from hfcore.solvers.conjugate_gradient import Observer, Solution, applied, conjugate_gradient
from hfcore.solvers.preconditioners import Preconditioner


class InnerSolve:
    """(B + λD + λμ G_S) p = −∇f at any λ, for the gradient and the curvature at one point."""

    def __init__(self, point: StepPoint) -> None:
        self._point = point
        self._minibatches = point.objective.minibatches(point.roles.curvature)
        norm = math.sqrt(dot(point.gradient, point.gradient))
        self._rule = point.options.cg.stop(norm)

    def points(self) -> Sequence[int]:
        """The iterations whose iterate may be chosen."""
        cg = self._point.options.cg
        if cg.cg_backtracking == "last":
            return []
        return evaluation_points(cg.cg_evaluate_every, cg.cg_max_iter)

    def matrix(self, damping: float, *, counting: bool = True) -> DampedCurvature:
        """A = B + λD + λμ G_S."""
        return DampedCurvature(
            self._point.curvature,
            self._point.ledger,
            self._minibatches,
            damping=damping,
            structural=damping * self._point.options.damping.mu,
            scale=self._point.scale,
            counting=counting,
        )

    def solve(self, damping: float, start: Tensor, *, observer: Observer) -> Solution:
        """From ``start [N]`` at λ = ``damping``; the observer sees the iterates."""
        with self._point.ledger.phase("preconditioner"):
            M = self._preconditioner(damping)
        radius = self._point.options.damping.radius
        with self._point.ledger.phase("cg"):
            if device.serves(self._point.gradient) and math.isinf(radius):
                return self._solve_on_device(damping, M, start, observer)
            return conjugate_gradient(
                self.matrix(damping),
                -self._point.gradient,
                start,
                rule=self._rule,
                observer=observer,
                preconditioner=M,
                radius=radius,
            )

    def first_direction(self, damping: float) -> Tensor:
        """M⁻¹ times −∇f ``[N]``, where CG goes from zero; an operator M is as last updated."""
        operator = self._point.options.preconditioning.operator
        if operator is not None:
            return applied(operator, -self._point.gradient, torch.empty_like(self._point.theta))
        M = self._preconditioner(damping)
        return -self._point.gradient if M is None else -self._point.gradient / M  # type: ignore[operator]

    def curvature_along(self, d: Tensor) -> float | None:
        """dᵀBd / dᵀDd along ``d [N]``; None where no float holds the square of d."""
        Bd = self.matrix(0.0)(d, torch.empty_like(d))
        size = dot(d, d) if self._point.scale is None else dot(d, self._point.scale * d)
        return None if size == 0 else dot(d, Bd) / size

    def _preconditioner(self, damping: float) -> Tensor | Preconditioner | None:
        options = self._point.options.preconditioning
        if options.operator is not None:
            update(
                options.operator,
                theta=self._point.theta,
                gradient=self._point.gradient,
                curvature=self._point.curvature,
                damping=damping,
            )
            return options.operator
        rule = options.diagonal
        if rule is None or self._point.diagonal is None:
            return None
        weight = damping if self._point.scale is None else damping * self._point.scale
        return rule.matrix(self._point.diagonal, weight, self._point.objective.l2)

    def _solve_on_device(
        self, damping: float, M: Tensor | Preconditioner | None, start: Tensor, observer: Observer
    ) -> Solution:
        """The same with CG's scalars on the device; iterates are evaluated when the host looks."""
        stops = self._point.objective.supports_stop
        recorded = stops and (M is None or isinstance(M, Tensor))
        matrix = self.matrix(damping, counting=False)
        product = matrix if stops else lambda v, out, stop: matrix(v, out)
        options: dict[str, Any] = {"recorded": recorded}
        lasting = self._lasting(damping) if recorded else None
        if lasting is not None:
            product, workspaces = lasting, self._point.lasting.workspaces
            options = {"solves": workspaces, "key": lasting.key}
        solution, products = device.device_conjugate_gradient(
            product,
            -self._point.gradient,
            start,
            rule=self._rule,
            observer=observer,
            observe_at=self.points(),
            preconditioner=M,
            # A product that cannot be stopped costs more than a look.
            look_every=device.LOOK_EVERY if stops else 1,
            **options,
        )
        self._point.ledger.products += products * self._minibatches
        return solution

    def _lasting(self, damping: float) -> LastingProduct | None:
        """A at a place that stays, where the curvature can be copied there."""
        point, mu = self._point, self._point.options.damping.mu
        return point.lasting.product(
            point.curvature,
            point.objective.l2,
            damping=damping,
            structural=damping * mu if mu else None,
            scale=point.scale,
        )
