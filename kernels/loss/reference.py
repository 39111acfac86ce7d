"""Plain torch forms of the loss ops.

Shapes: outputs ``s [G,T,B,k]``; targets ``[G,T,B,k]``, or class indices ``[G,T,B]`` for softmax;
``mask [G,T,B]``, which says what outputs count: bool, or weights ≥ 0 in s's dtype, or None for all.
Every loss is a weighted sum over outputs times ``scale``. Outputs of weight 0 never count, whatever
they and their targets hold. ``delta`` is up to where Huber's error is quadratic.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, softplus

SQUARED, LOGISTIC, SOFTMAX, HUBER, POISSON = "squared", "logistic", "softmax", "huber", "poisson"
# In the order of loss/elementwise.h.
KINDS = (SQUARED, LOGISTIC, SOFTMAX, HUBER, POISSON)

# What is subtracted of diag(c): nothing, c cᵀ, or c cᵀ / Σc (that of weighted distributions).
RankOne = bool | Literal["weighted"]
RANK_ONE: tuple[RankOne, ...] = (False, True, "weighted")


def _one_hot(targets: Tensor, s: Tensor, mask: Tensor | None) -> Tensor:
    classes = targets.long()
    if mask is not None:
        classes = torch.where(mask.bool(), classes, 0)
    return torch.nn.functional.one_hot(classes, s.shape[-1]).to(s.dtype)


def _weighted(values: Tensor, mask: Tensor | None) -> Tensor:
    """Times the weights; zero where they are, NaN in masked places included."""
    if mask is None:
        return values
    mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    if mask.dtype != torch.bool:
        values, mask = values * mask, mask != 0
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def loss_value(
    kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float, delta: float = 1.0
) -> Tensor:
    """Loss of each net of the group, ``[G]`` float64."""
    wide = s.double()
    if kind == SQUARED:
        per = 0.5 * ((wide - targets.double()) ** 2).sum(-1)
    elif kind == LOGISTIC:
        # softplus(s) − y s = −y log p − (1−y) log(1−p), p = logistic(s); torch drops the tail
        # log1p(exp(−s)) beyond its threshold, and 2e-9 with it at the default of 20
        per = (softplus(wide, threshold=40) - targets.double() * wide).sum(-1)
    elif kind == HUBER:
        s, y = torch.broadcast_tensors(wide, targets.double())
        per = huber_loss(s, y, reduction="none", delta=delta).sum(-1)
    elif kind == POISSON:
        per = (wide.exp() - targets.double() * wide).sum(-1)
    else:
        picked = (_one_hot(targets, wide, mask) * wide).sum(-1)
        per = torch.logsumexp(wide, -1) - picked
    return scale * _weighted(per, mask).sum((1, 2))


def loss_gradient(
    kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float, delta: float = 1.0
) -> Tensor:
    """∂L/∂s = scale·mask·(ŷ − y) ``[G,T,B,k]``, Huber's cut at ±delta, in s's dtype."""
    if kind == SQUARED:
        g = s - targets.to(s.dtype)
    elif kind == LOGISTIC:
        g = torch.sigmoid(s) - targets.to(s.dtype)
    elif kind == HUBER:
        g = (s - targets.to(s.dtype)).clamp(-delta, delta)
    elif kind == POISSON:
        g = s.exp() - targets.to(s.dtype)
    else:
        g = torch.softmax(s, -1) - _one_hot(targets, s, mask)
    return scale * _weighted(g, mask)


def loss_curvature(
    kind: str, s: Tensor, targets: Tensor | None, mask: Tensor | None, delta: float = 1.0
) -> Tensor:
    """The diagonal c ``[G,T,B,k]`` of L'' (unscaled); Huber's alone depends on the targets.

    L''v = c ⊙ v, for softmax c ⊙ v − c (cᵀv), or with weights c ⊙ v − c (cᵀv) / Σc.
    """
    if kind == SQUARED:
        c = torch.ones_like(s)
    elif kind == LOGISTIC:
        p = torch.sigmoid(s)
        c = p * (1 - p)
    elif kind == HUBER:
        assert targets is not None
        d = s - targets.to(s.dtype)
        c = torch.where(d.isnan(), d, (d.abs() <= delta).to(s.dtype))
    elif kind == POISSON:
        c = s.exp()
    else:
        c = torch.softmax(s, -1)
    return _weighted(c, mask)


def loss_hessian_product(c: Tensor, Rs: Tensor, rank_one: RankOne, scale: float) -> Tensor:
    """scale·L''Rs from the curvature diagonal c, all ``[G,T,B,k]``."""
    g = c * Rs
    if rank_one:
        dot = g.sum(-1, keepdim=True)
        if rank_one == "weighted":
            total = c.sum(-1, keepdim=True)
            dot = torch.where(total == 0, 0, dot / total)
        g = g - c * dot
    return scale * g
