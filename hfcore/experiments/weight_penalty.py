"""Weight decay of the connection weights alone: the starred runs of Martens (2010), table 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hfcore as hf


class WeightPenalty(hf.Objective):
    """Mean loss of a net over cases, + ½·l2·Σ of its squared connection weights, biases apart.

    The diagonal preconditioner of :class:`hfcore.HessianFree` adds l2 to all parameters alike.
    """

    def __init__(self, model: torch.nn.Module, loss: hf.losses.Loss, l2: float) -> None:
        self._plain = hf.objective_for(model, loss)
        self._weights = torch.cat(
            [torch.full_like(p, float(p.ndim > 1)).flatten() for p in model.parameters()]
        ).detach()
        self.l2 = l2
        self.supports_stop = self._plain.supports_stop

    def prepare(self, data: Any) -> Any:
        return self._plain.prepare(data)

    def minibatches(self, data: Any) -> int:
        return self._plain.minibatches(data)

    def damping_start(self, data: Any) -> float:
        return self._plain.damping_start(data)

    def loss(self, data: Any, theta: Tensor) -> float:
        return self._plain.loss(data, theta) + self.penalty(theta)

    def penalty(self, theta: Tensor) -> float:
        """½·l2·Σ of squares of the weights in ``theta [N]``."""
        return 0.5 * self.l2 * float((self._weights * theta).square_().sum(dtype=torch.float64))

    def gradient(self, data: Any, theta: Tensor) -> tuple[float, Tensor]:
        loss, gradient = self._plain.gradient(data, theta)
        return loss + self.penalty(theta), gradient.addcmul_(self._weights, theta, value=self.l2)

    def squared_gradients(self, data: Any, theta: Tensor) -> Tensor:
        return self._plain.squared_gradients(data, theta)

    def curvature(self, data: Any, theta: Tensor, kind: Any = "ggn") -> Any:
        return _PenalisedCurvature(self, self._plain.curvature(data, theta, kind), theta)

    def add_curvature(self, product: Tensor, v: Tensor) -> Tensor:
        """``product [N]`` with the penalty's part of a product with ``v [N]``, in place."""
        return product.addcmul_(self._weights, v, value=self.l2)


class _PenalisedCurvature:
    def __init__(self, objective: WeightPenalty, plain: Any, theta: Tensor) -> None:
        self._objective, self._plain = objective, plain
        self.loss = plain.loss + objective.penalty(theta)

    def product(self, v: Tensor, **terms: Any) -> Tensor:
        return self._objective.add_curvature(self._plain.product(v, **terms), v)

    def diagonal(self, probes: int | None = None, generator: Any = None) -> Tensor:
        found: Tensor = self._plain.diagonal(probes, generator)
        return found
