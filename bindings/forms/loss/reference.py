"""The loss ops in plain torch: any device, any floating dtype, differentiable.

Signatures and shapes: ``LossForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings.forms.loss.values import check_values
from hfcore.bindings.forms.results import filled
from hfcore.kernels.loss import reference
from hfcore.kernels.loss.reference import RankOne


def loss_value(
    kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float, delta: float,
    G: int,
) -> Tensor:  # fmt: skip
    check_values(kind, s.shape[-1], targets, mask)
    return reference.loss_value(kind, s, targets, mask, scale, delta).expand(G)


def loss_gradient(
    kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float, delta: float,
    G: int, out: Tensor | None,
) -> Tensor:  # fmt: skip
    check_values(kind, s.shape[-1], targets, mask)
    return filled(out, reference.loss_gradient(kind, s, targets, mask, scale, delta), G)


def loss_curvature(
    kind: str, s: Tensor, targets: Tensor | None, mask: Tensor | None, delta: float, G: int,
    out: Tensor | None,
) -> Tensor:  # fmt: skip
    check_values(kind, s.shape[-1], None, mask)
    return filled(out, reference.loss_curvature(kind, s, targets, mask, delta), G)


def loss_hessian_product(
    c: Tensor, Rs: Tensor, rank_one: RankOne, scale: float, G: int, out: Tensor | None
) -> Tensor:
    return filled(out, reference.loss_hessian_product(c, Rs, rank_one, scale), G)
