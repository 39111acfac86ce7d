"""The loss ops on Triton kernels, float32 and float64.

Signatures and shapes: ``LossForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings.forms.loss.values import check_values
from hfcore.bindings.forms.results import filled, whole
from hfcore.bindings.triton_backend import serving
from hfcore.kernels.loss import gpu_triton
from hfcore.kernels.loss.reference import RankOne


def loss_value(
    kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float, delta: float,
    G: int,
) -> Tensor:  # fmt: skip
    check_values(kind, s.shape[-1], targets, mask)
    with serving("loss.loss_value", s.device):
        return gpu_triton.loss_value(kind, s, targets, mask, scale, delta).expand(G)


def loss_gradient(
    kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float, delta: float,
    G: int, out: Tensor | None,
) -> Tensor:  # fmt: skip
    check_values(kind, s.shape[-1], targets, mask)
    out = s.new_empty(G, *s.shape[1:]) if out is None else out
    buffer = whole(out, G, s, targets, mask)
    with serving("loss.loss_gradient", s.device):
        g = gpu_triton.loss_gradient(kind, s, targets, mask, scale, delta, buffer)
        return filled(out, g, G)


def loss_curvature(
    kind: str, s: Tensor, targets: Tensor | None, mask: Tensor | None, delta: float, G: int,
    out: Tensor | None,
) -> Tensor:  # fmt: skip
    check_values(kind, s.shape[-1], None, mask)
    out = s.new_empty(G, *s.shape[1:]) if out is None else out
    buffer = whole(out, G, s, targets, mask)
    with serving("loss.loss_curvature", s.device):
        return filled(out, gpu_triton.loss_curvature(kind, s, targets, mask, delta, buffer), G)


def loss_hessian_product(
    c: Tensor, Rs: Tensor, rank_one: RankOne, scale: float, G: int, out: Tensor | None
) -> Tensor:
    out = c.new_empty(G, *c.shape[1:]) if out is None else out
    buffer = whole(out, G, c, Rs)
    with serving("loss.loss_hessian_product", c.device):
        return filled(out, gpu_triton.loss_hessian_product(c, Rs, rank_one, scale, buffer), G)
