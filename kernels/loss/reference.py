"""Plain torch forms of the loss ops.

Shapes: outputs ``s [G,T,B,k]``; targets ``[G,T,B,k]``, or class indices ``[G,T,B]`` for softmax;
``mask [G,T,B]`` of 0/1 or None. Every loss is a sum over unmasked outputs times ``scale``.
Masked targets never count, whatever they hold.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

SQUARED, LOGISTIC, SOFTMAX = "squared", "logistic", "softmax"


def _one_hot(targets: Tensor, s: Tensor, mask: Tensor | None) -> Tensor:
    classes = targets.long()
    if mask is not None:
        classes = torch.where(mask.bool(), classes, 0)
    return torch.nn.functional.one_hot(classes, s.shape[-1]).to(s.dtype)


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """Zero where masked, NaN in masked places included."""
    if mask is None:
        return values
    keep = mask.bool().reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return torch.where(keep, values, torch.zeros((), dtype=values.dtype, device=values.device))


def loss_value(kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Loss of each net of the group, ``[G]`` float64."""
    wide = s.double()
    if kind == SQUARED:
        per = 0.5 * ((wide - targets.double()) ** 2).sum(-1)
    elif kind == LOGISTIC:
        # softplus(s) − y s = −y log p − (1−y) log(1−p), p = logistic(s); torch drops the tail
        # log1p(exp(−s)) beyond its threshold, and 2e-9 with it at the default of 20
        per = (softplus(wide, threshold=40) - targets.double() * wide).sum(-1)
    else:
        picked = (_one_hot(targets, wide, mask) * wide).sum(-1)
        per = torch.logsumexp(wide, -1) - picked
    return scale * _masked(per, mask).sum((1, 2))


def loss_gradient(
    kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """∂L/∂s = scale·mask·(ŷ − y), of s's shape and dtype."""
    if kind == SQUARED:
        g = s - targets.to(s.dtype)
    elif kind == LOGISTIC:
        g = torch.sigmoid(s) - targets.to(s.dtype)
    else:
        g = torch.softmax(s, -1) - _one_hot(targets, s, mask)
    return scale * _masked(g, mask)


def loss_curvature(kind: str, s: Tensor, mask: Tensor | None) -> Tensor:
    """The diagonal c of L'' (unscaled): L''v = c ⊙ v − [softmax] c (cᵀ v), of s's shape."""
    if kind == SQUARED:
        c = torch.ones_like(s)
    elif kind == LOGISTIC:
        p = torch.sigmoid(s)
        c = p * (1 - p)
    else:
        c = torch.softmax(s, -1)
    return _masked(c, mask)


def loss_hessian_product(c: Tensor, Rs: Tensor, rank_one: bool, scale: float) -> Tensor:
    """scale·L''Rs from the curvature diagonal c, of Rs's shape."""
    g = c * Rs
    if rank_one:
        g = g - c * g.sum(-1, keepdim=True)
    return scale * g
