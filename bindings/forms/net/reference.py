"""The ops on whole nets in plain torch: any device, any floating dtype.

Signatures and shapes: ``NetForm``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from hfcore.bindings.forms.loss.values import check_values
from hfcore.bindings.forms.net import form
from hfcore.bindings.forms.net.update import update_by
from hfcore.bindings.momentum import Rates, Step
from hfcore.kernels.dense import reference

if TYPE_CHECKING:
    from hfcore.bindings.net import Net


def net_gradient(
    net: Net, x: Tensor, targets: Tensor, theta: Tensor, scale: float, out: Tensor
) -> Tensor:
    check_values(net.kind, net.sizes[-1], targets, None)
    losses, gradient = reference.net_gradient(
        net.kind, x.detach(), targets, theta.detach(), net.sizes, net.activations, scale
    )
    out.copy_(gradient)
    return losses.expand(len(out))


def net_update(
    net: Net, x: Tensor, targets: Tensor, theta: Tensor, velocity: Tensor, step: Step,
    rates: Rates, scale: float, active: Tensor | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    return update_by(form("reference"), net, x, targets, theta, velocity, step, scale, active, out)
