"""Losses with kernels of their own, on every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings import loss as ops
from hfcore.losses.base import Loss
from hfcore.losses.hessian import (
    DiagonalHessian,
    IdentityHessian,
    OutputHessian,
    SoftmaxHessian,
)


class KernelLoss(Loss):
    """A loss of ``hfcore.bindings.loss``; ``kind`` is its name there."""

    convex = True
    # Up to where Huber's error is quadratic.
    delta: float = 1.0

    def prepared(
        self, s: Tensor, targets: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """s, targets and weights ``[G,T,B,·]`` as the ops take them, the loss's own weights in."""
        return s, targets, mask

    @property
    def net_kind(self) -> str | None:
        """None as well where the loss has weights or a mean of its own."""
        plain = self.means_cases and not self.has_weights
        return self.kind if plain and self.kind in ops.NET_KINDS else None

    @property
    def is_recordable(self) -> bool:
        return self.mean in ("cases", "sum")

    def check_ops(self, outputs: int, targets: Tensor, mask: Tensor | None) -> None:
        ops.check_values(self.kind, outputs, targets, mask)

    def values(
        self, s: Tensor, targets: Tensor, mask: Tensor | None = None, *, scale: float = 1.0
    ) -> Tensor:
        x, y, w = self.prepared(s, targets, mask)
        return ops.loss_value(self.kind, x, y, w, scale=scale, delta=self.delta)

    def gradient(
        self,
        s: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        *,
        scale: float = 1.0,
        out: Tensor | None = None,
    ) -> Tensor:
        x, y, w = self.prepared(*self.grouped(s, targets, mask))
        buffer = None if out is None else out.view(-1, *x.shape[1:])
        g = ops.loss_gradient(self.kind, x, y, w, scale=scale, delta=self.delta, out=buffer)
        result = _like(g, s) if out is None else out
        linear = self._linear_gradient(result, targets, mask)
        return result if linear is None else result.add_(linear, alpha=scale)

    def _linear_gradient(self, like: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor | None:
        """The unscaled gradient of what the loss has beside the op's: a part linear in s."""
        return None

    def hessian(
        self, s: Tensor, targets: Tensor, mask: Tensor | None = None, *, exact: bool = False
    ) -> OutputHessian:
        x, y, w = self.prepared(*self.grouped(s, targets, mask))
        if self.kind == "squared" and w is None:
            return IdentityHessian()
        c = ops.loss_curvature(self.kind, x, y, w, delta=self.delta)
        c = _like(c, s)
        if self.kind == "softmax":
            return SoftmaxHessian(c, weighted=w is not None and w.dtype != torch.bool)
        return DiagonalHessian(c)


def _like(grouped: Tensor, s: Tensor) -> Tensor:
    """What ops gave in s's own axes, a group axis as long as theirs."""
    return grouped.reshape(-1, *s.shape[1:]) if s.ndim == 4 else grouped.view(s.shape)
