"""Loss ops: shape checks, allocation, choice of implementation.

Shapes: ``s [G,T,B,k]``; ``targets [G,T,B,k]``, for ``"softmax"`` int64 classes ``[G,T,B]``;
``mask [G,T,B]`` bool or 0/1 in s's dtype, or None. Formulas: ``kernels/loss/reference.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings.checks import check_choice, check_positive, check_tensor
from hfcore.kernels.loss import reference

KINDS = (reference.SQUARED, reference.LOGISTIC, reference.SOFTMAX)


def _check(kind: str, s: Tensor, targets: Tensor | None, mask: Tensor | None) -> None:
    check_choice("kind", kind, KINDS)
    check_tensor("s", s, ["G", "T", "B", "k"])
    G, T, B, k = s.shape
    check_positive(G=G, T=T, B=B, k=k)
    if targets is not None:
        if kind == reference.SOFTMAX:
            check_tensor("targets", targets, [G, T, B], dtype=torch.int64)
        else:
            check_tensor("targets", targets, [G, T, B, k], like=s)
    if mask is not None:
        check_tensor("mask", mask, [G, T, B])
        if mask.dtype not in (torch.bool, s.dtype):
            raise TypeError(f"mask: got {mask.dtype}, need torch.bool or {s.dtype}")


def loss_value(
    kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, *, scale: float = 1.0
) -> Tensor:
    """scale·Σ loss over unmasked outputs, ``[G]`` float64."""
    _check(kind, s, targets, mask)
    return reference.loss_value(kind, s, targets, mask, scale)


def loss_gradient(
    kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, *, scale: float = 1.0
) -> Tensor:
    """∂L/∂s = scale·mask·(ŷ − y), of s's shape and dtype."""
    _check(kind, s, targets, mask)
    return reference.loss_gradient(kind, s, targets, mask, scale)


def loss_curvature(kind: str, s: Tensor, mask: Tensor | None) -> Tensor:
    """Diagonal c of the unscaled L''; softmax subtracts the rank-one c cᵀ as well."""
    _check(kind, s, None, mask)
    return reference.loss_curvature(kind, s, mask)


def loss_hessian_product(
    c: Tensor, Rs: Tensor, *, rank_one: bool = False, scale: float = 1.0
) -> Tensor:
    """scale·L''Rs from the curvature diagonal ``c`` and ``Rs``, both ``[G,T,B,k]``."""
    check_tensor("c", c, ["G", "T", "B", "k"])
    check_tensor("Rs", Rs, c.shape, like=c)
    return reference.loss_hessian_product(c, Rs, rank_one, scale)
