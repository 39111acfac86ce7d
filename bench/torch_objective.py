"""The objective of an RNN computed by autograd and torch.func alone, for a whole HF iteration.

It takes the place of hfcore's own objective in the same optimiser, so that recipe, data and
stop rules are equal and only the way of computing differs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.peers import torch_outputs
from hfcore.kernels.recurrence import RnnShape, split_flat
from hfcore.nets import Data, FusedObjective
from hfcore.objective import UnstoppableCurvature

Weights = tuple[Tensor, ...]
LinearMap = Callable[[Weights], Tensor]


class TorchObjective(FusedObjective):
    """Squared error at the last step; ``cached`` keeps the linearisation between products."""

    cached = True

    def loss(self, data: list[Data], theta: Tensor) -> float:
        weights, scale = self._unflatten(theta), self.scale(data)
        return sum(float(_loss(part, weights, scale)) for part in data)

    def gradient(self, data: list[Data], theta: Tensor) -> tuple[float, Tensor]:
        scale, total, gradient = self.scale(data), 0.0, torch.zeros_like(theta)
        for part in data:
            with torch.enable_grad():
                weights = tuple(w.requires_grad_() for w in self._unflatten(theta.clone()))
                loss = _loss(part, weights, scale)
                gradient += _flat(torch.autograd.grad(loss, weights))
            total += float(loss.detach())
        return total, gradient

    def curvature(self, data: list[Data], theta: Tensor) -> TorchCurvature:  # type: ignore[override]
        (part,) = data
        return TorchCurvature(
            part,
            self._unflatten(theta.clone()),
            self.net.model.shape,
            self.scale(data),
            self.cached,
        )

    def _unflatten(self, theta: Tensor) -> Weights:
        return tuple(w[0].detach() for w in split_flat(theta.unsqueeze(0), self.net.model.shape))


class UncachedTorchObjective(TorchObjective):
    """The same with jvp and vjp from scratch at every product."""

    cached = False


class TorchCurvature(UnstoppableCurvature):
    """JᵀJ products through torch.func on one batch."""

    def __init__(
        self, part: Data, weights: Weights, shape: RnnShape, scale: float, cached: bool
    ) -> None:
        self.loss = float(_loss(part, weights, scale))
        self._shape, self._scale = shape, scale

        def outputs(weights: Weights) -> Tensor:
            return torch_outputs(weights, part.x[0], last=True)

        def linearize() -> tuple[LinearMap, Callable[[Tensor], tuple[Weights]]]:
            if cached:
                jvp: LinearMap = torch.func.linearize(outputs, weights)[1]
            else:

                def jvp(v: Weights) -> Tensor:
                    tangent: Tensor = torch.func.jvp(outputs, (weights,), (v,))[1]
                    return tangent

            vjp: Callable[[Tensor], tuple[Weights]] = torch.func.vjp(outputs, weights)[1]
            return jvp, vjp

        kept = linearize() if cached else None
        self._maps = lambda: linearize() if kept is None else kept

    def _product(self, v: Tensor, damping: float, structural: float) -> Tensor:
        """(scale·JᵀJ + damping·I) v for ``v [N]``."""
        if structural:
            raise ValueError("structural: torch.func has no structural damping")
        jvp, vjp = self._maps()
        tangents = tuple(t[0] for t in split_flat(v.unsqueeze(0), self._shape))
        (parts,) = vjp(jvp(tangents) * self._scale)
        return _flat(parts).add_(v, alpha=damping)


def _loss(part: Data, weights: Weights, scale: float) -> Tensor:
    s = torch_outputs(weights, part.x[0], last=True)
    return 0.5 * scale * (s - part.targets[0, -1]).square().sum()


def _flat(parts: Weights) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])
