"""Hessian products by finite differences of any objective's gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hfcore.bindings.conjugate_gradient import dot
from hfcore.objective import Objective, UnstoppableCurvature


class FiniteDifferenceHessian(UnstoppableCurvature):
    """H v ≈ [∇f(θ + εv) − ∇f(θ − εv)] / 2ε (Martens 2010, sections 3 and 4.2, with both
    sides).

    The truncation error is O(ε²) and rounding O(eps/ε), so that ε‖v‖ = eps^⅓ (1 + ‖θ‖) leaves
    about two thirds of the digits. No structural damping; one objective serves any model.
    """

    def __init__(self, objective: Objective, data: Any, theta: Tensor) -> None:
        self._objective = objective
        self._data = data
        self._theta = theta.clone()
        self._step = torch.finfo(theta.dtype).eps ** (1 / 3) * (1 + math.sqrt(dot(theta, theta)))
        self.loss = objective.loss(data, theta)

    def _product(self, v: Tensor, damping: float, structural: float) -> Tensor:
        """(∇²f + damping·I) v for ``v [N]``; the L2 term is in f."""
        if structural:
            raise ValueError("structural: finite differences of the gradient do not serve it")
        norm = math.sqrt(dot(v, v))
        result = torch.zeros_like(v)
        if norm > 0:
            epsilon = self._step / norm
            ahead = self._objective.gradient(self._data, self._theta.add(v, alpha=epsilon))[1]
            behind = self._objective.gradient(self._data, self._theta.sub(v, alpha=epsilon))[1]
            result = (ahead - behind).div_(2 * epsilon).add_(v, alpha=damping)
        return result

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag(G) of the Gauss-Newton matrix, as in :class:`hfcore.objective.Curvature`."""
        curvature = self._objective.curvature(self._data, self._theta)
        return curvature.diagonal(probes, generator)
