"""The loss ops of the compiled module: CPU, float32 and float64.

Signatures and shapes: ``LossForm``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings import _native
from hfcore.bindings.checks import dense
from hfcore.bindings.native_calls import call
from hfcore.bindings.threads import kernel_threads
from hfcore.kernels.loss.reference import KINDS, RANK_ONE, RankOne


def loss_value(
    kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float, delta: float,
    G: int,
) -> Tensor:  # fmt: skip
    value = torch.empty(G, dtype=torch.float64, device="cpu")
    call(
        _native.loss_value,
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
    kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float, delta: float,
    G: int, out: Tensor | None,
) -> Tensor:  # fmt: skip
    g = s.new_empty(G, *s.shape[1:]) if out is None else out
    call(
        _native.loss_gradient,
        KINDS.index(kind),
        dense(s),
        dense(targets),
        None if mask is None else dense(mask),
        scale,
        g,
        kernel_threads(),
        delta,
    )
    return g


def loss_curvature(
    kind: str, s: Tensor, targets: Tensor | None, mask: Tensor | None, delta: float, G: int,
    out: Tensor | None,
) -> Tensor:  # fmt: skip
    c = s.new_empty(G, *s.shape[1:]) if out is None else out
    call(
        _native.loss_curvature,
        KINDS.index(kind),
        dense(s),
        None if mask is None else dense(mask),
        c,
        kernel_threads(),
        None if targets is None else dense(targets),
        delta,
    )
    return c


def loss_hessian_product(
    c: Tensor, Rs: Tensor, rank_one: RankOne, scale: float, G: int, out: Tensor | None
) -> Tensor:
    g = c.new_empty(G, *c.shape[1:]) if out is None else out
    form = RANK_ONE.index(rank_one)
    call(_native.loss_hessian_product, dense(c), dense(Rs), form, scale, g, kernel_threads())
    return g
