"""Loss ops: shape checks, allocation, choice of implementation.

Shapes: ``s [G,T,B,k]``; ``targets [G,T,B,k]``, for ``"softmax"`` int64 classes ``[G,T,B]``;
``mask [G,T,B]`` bool, or weights ≥ 0 in s's dtype (0/1 among them), or None. A group axis of length
1 is shared among the group. ``delta``: up to where Huber's error is quadratic. Formulas:
``kernels/loss/reference.py``.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from hfcore.bindings.checks import (
    check_choice,
    check_group,
    check_out,
    check_positive,
    check_tensor,
    dense,
)
from hfcore.bindings.dispatch import choose, native
from hfcore.bindings.graphs import recording
from hfcore.bindings.threads import kernel_threads
from hfcore.bindings.triton_backend import serving
from hfcore.kernels.loss import reference
from hfcore.kernels.loss.reference import RANK_ONE, RankOne

KINDS = (
    reference.SQUARED,
    reference.LOGISTIC,
    reference.SOFTMAX,
    reference.HUBER,
    reference.POISSON,
)
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
    backend = choose("loss.loss_value", s)
    if backend != "cpu":
        check_values(kind, s.shape[-1], targets, mask)
    if backend == "reference":
        return reference.loss_value(kind, s, targets, mask, scale, delta).expand(G)
    if backend == "cuda":
        with serving("loss.loss_value", s.device):
            return _triton().loss_value(kind, s, targets, mask, scale, delta).expand(G)  # type: ignore[no-any-return]
    value = torch.empty(G, dtype=torch.float64)
    native().loss_value(
        KINDS.index(kind),
        dense(s),
        dense(targets),
        None if mask is None else dense(mask),
        scale,
        value,
        kernel_threads(),
        delta,
    )
    return value


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
    shape = (G, *s.shape[1:])
    backend = choose("loss.loss_gradient", s)
    if backend != "cpu":
        check_values(kind, s.shape[-1], targets, mask)
    if backend == "reference":
        g = reference.loss_gradient(kind, s, targets, mask, scale, delta)
        return g if out is None else check_out(out, shape, s).copy_(g)
    out = check_out(out, shape, s)
    if backend == "cuda":
        with serving("loss.loss_gradient", s.device):
            g = _triton().loss_gradient(
                kind, s, targets, mask, scale, delta, _buffer(out, s, targets, mask)
            )
            return _filled(out, g)
    native().loss_gradient(
        KINDS.index(kind),
        dense(s),
        dense(targets),
        None if mask is None else dense(mask),
        scale,
        out,
        kernel_threads(),
        delta,
    )
    return out


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
    shape = (G, *s.shape[1:])
    backend = choose("loss.loss_curvature", s)
    if backend != "cpu":
        check_values(kind, s.shape[-1], None, mask)
    if backend == "reference":
        c = reference.loss_curvature(kind, s, targets, mask, delta)
        return c if out is None else check_out(out, shape, s).copy_(c)
    out = check_out(out, shape, s)
    read = targets if kind == reference.HUBER else None
    if backend == "cuda":
        with serving("loss.loss_curvature", s.device):
            c = _triton().loss_curvature(kind, s, read, mask, delta, _buffer(out, s, read, mask))
            return _filled(out, c)
    native().loss_curvature(
        KINDS.index(kind),
        dense(s),
        None if mask is None else dense(mask),
        out,
        kernel_threads(),
        None if read is None else dense(read),
        delta,
    )
    return out


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
    shape = (check_group(c=c, Rs=Rs), T, B, k)
    backend = choose("loss.loss_hessian_product", c)
    if backend == "reference":
        g = reference.loss_hessian_product(c, Rs, rank_one, scale)
        return g if out is None else check_out(out, shape, c).copy_(g)
    out = check_out(out, shape, c)
    if backend == "cuda":
        with serving("loss.loss_hessian_product", c.device):
            g = _triton().loss_hessian_product(c, Rs, rank_one, scale, _buffer(out, c, Rs))
            return _filled(out, g)
    form = RANK_ONE.index(rank_one)
    native().loss_hessian_product(dense(c), dense(Rs), form, scale, out, kernel_threads())
    return out


def _triton() -> ModuleType:
    from hfcore.kernels.loss import gpu_triton  # needs Triton, which only CUDA data asks for

    return gpu_triton


def _buffer(out: Tensor, *arrays: Tensor | None) -> Tensor | None:
    """``out`` if a kernel can fill it: not where one net is expanded to G and computed once."""
    distinct = max(1 if a.stride(0) == 0 else a.shape[0] for a in arrays if a is not None)
    return out if distinct == out.shape[0] else None


def _filled(out: Tensor, value: Tensor) -> Tensor:
    return out if value is out else out.copy_(value)


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


def check_values(kind: str, k: int, targets: Tensor | None, mask: Tensor | None) -> None:
    """What the compiled module checks while it reads: weights, classes below k where they count.

    Whoever records a CUDA graph looks before: while it is recorded there are no values.
    """
    given = targets if mask is None else mask
    if given is None or recording(given):
        return
    if mask is not None and mask.dtype != torch.bool:
        strange = mask[~((mask >= 0) & mask.isfinite())]
        if strange.numel() > 0:
            raise ValueError(f"mask: got {float(strange[0]):f}, need finite weights of at least 0")
    if kind == reference.SOFTMAX and targets is not None:
        counted = targets if mask is None else torch.where(mask.bool(), targets, 0)
        strange = counted[(counted < 0) | (counted >= k)]
        if strange.numel() > 0:
            raise ValueError(f"targets: got class {int(strange[0])}, need 0..{k - 1}")
