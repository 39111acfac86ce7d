"""Loss ops: checks of arguments, choice of implementation (``forms/loss``).

Shapes: ``s [G,T,B,k]``; ``targets [G,T,B,k]``, for ``"softmax"`` int64 classes ``[G,T,B]``;
``mask [G,T,B]`` bool, or weights ≥ 0 in s's dtype (0/1 among them), or None. A group axis of length
1 is shared among the group. ``delta``: up to where Huber's error is quadratic. Formulas:
``kernels/loss/reference.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hfcore.bindings.checks import (
    check_choice,
    check_group,
    check_out,
    check_positive,
    check_tensor,
)
from hfcore.bindings.dispatch import choose
from hfcore.bindings.forms.loss import form
from hfcore.bindings.forms.loss.values import check_values
from hfcore.kernels.loss import reference
from hfcore.kernels.loss.reference import KINDS, RANK_ONE, RankOne

__all__ = [
    "KINDS",
    "NET_KINDS",
    "RANK_ONE",
    "RankOne",
    "check_values",
    "loss_curvature",
    "loss_gradient",
    "loss_hessian_product",
    "loss_value",
]

# Those that the ops on whole nets know.
NET_KINDS = KINDS[:3]


def loss_value(
    kind: str,
    s: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    *,
    scale: float = 1.0,
    delta: float = 1.0,
) -> Tensor:
    """scale·Σ loss over outputs by their weights, ``[G]`` float64, summed in float64.

    Raises ValueError for a class that is not one of the k outputs or a weight that is negative or
    not finite.
    """
    _check(kind, s, mask, delta)
    G = _check_targets(kind, s, targets, mask)
    serving = form(choose("loss.loss_value", s))
    return serving.loss_value(kind, s, targets, mask, scale, delta, G)


def loss_gradient(
    kind: str,
    s: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    *,
    scale: float = 1.0,
    delta: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """∂L/∂s, for matching losses scale·mask·(ŷ − y), ``[G,T,B,k]`` in s's dtype.

    ``out`` may be ``s`` itself. Raises ValueError as :func:`loss_value`.
    """
    _check(kind, s, mask, delta)
    G = _check_targets(kind, s, targets, mask)
    if out is not None:
        check_out(out, (G, *s.shape[1:]), s)
    serving = form(choose("loss.loss_gradient", s))
    return serving.loss_gradient(kind, s, targets, mask, scale, delta, G, out)


def loss_curvature(
    kind: str,
    s: Tensor,
    targets: Tensor | None,
    mask: Tensor | None,
    *,
    delta: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """Diagonal c ``[G,T,B,k]`` of the unscaled L''; what softmax subtracts beside it is told by
    ``rank_one`` of :func:`loss_hessian_product`.

    ``targets`` are read for ``"huber"`` alone, whose L'' depends on them. ``out`` may be ``s``
    itself. Raises ValueError for a weight that is negative or not finite.
    """
    G = _check(kind, s, mask, delta)
    if kind == reference.HUBER:
        if targets is None:
            raise ValueError("targets: got None, need those of the outputs for 'huber'")
        G = _check_targets(kind, s, targets, mask)
    if out is not None:
        check_out(out, (G, *s.shape[1:]), s)
    read = targets if kind == reference.HUBER else None
    serving = form(choose("loss.loss_curvature", s))
    return serving.loss_curvature(kind, s, read, mask, delta, G, out)


def loss_hessian_product(
    c: Tensor,
    Rs: Tensor,
    *,
    rank_one: RankOne = False,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """scale·L''Rs ``[G,T,B,k]`` from the curvature diagonal ``c`` and ``Rs``, both ``[G,T,B,k]``.

    ``rank_one``: L'' is diag(c), with True diag(c) − c cᵀ (softmax, where Σc = 1), with
    ``"weighted"`` diag(c) − c cᵀ / Σc. ``out`` may be ``c`` or ``Rs`` itself.
    """
    if rank_one not in RANK_ONE:
        raise ValueError(f"rank_one: got {rank_one!r}, need False, True or 'weighted'")
    check_tensor("c", c, ["G", "T", "B", "k"])
    _, T, B, k = c.shape
    check_positive(T=T, B=B, k=k)
    check_tensor("Rs", Rs, ["G", T, B, k], like=c)
    G = check_group(c=c, Rs=Rs)
    if out is not None:
        check_out(out, (G, T, B, k), c)
    serving = form(choose("loss.loss_hessian_product", c))
    return serving.loss_hessian_product(c, Rs, rank_one, scale, G, out)


def _check(kind: str, s: Tensor, mask: Tensor | None, delta: float) -> int:
    """Check the kind, shapes and dtypes of s and mask; gives their group size."""
    check_choice("kind", kind, KINDS)
    if not 0.0 < delta < math.inf:
        raise ValueError(f"delta: got {delta}, need a finite number above 0")
    check_tensor("s", s, ["G", "T", "B", "k"])
    _, T, B, k = s.shape
    check_positive(T=T, B=B, k=k)
    if mask is not None:
        check_tensor("mask", mask, ["G", T, B])
        if mask.dtype not in (torch.bool, s.dtype):
            raise TypeError(f"mask: got {mask.dtype}, need torch.bool or {s.dtype}")
        _check_device("mask", mask, s)
    return check_group(s=s, mask=mask)


def _check_targets(kind: str, s: Tensor, targets: Tensor, mask: Tensor | None) -> int:
    """Check the targets against s and mask; gives the group size of all three."""
    _, T, B, k = s.shape
    if kind == reference.SOFTMAX:
        check_tensor("targets", targets, ["G", T, B], dtype=torch.int64)
    else:
        check_tensor("targets", targets, ["G", T, B, k], like=s)
    _check_device("targets", targets, s)
    return check_group(s=s, mask=mask, targets=targets)


def _check_device(name: str, tensor: Tensor, s: Tensor) -> None:
    if tensor.device != s.device:
        raise ValueError(f"{name}: is on {tensor.device}, need {s.device} like s")
