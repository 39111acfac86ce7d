"""An update of whole nets by a gradient that is formed whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from hfcore.bindings.momentum import Step, update_through

if TYPE_CHECKING:
    from hfcore.bindings.forms.net import NetForm
    from hfcore.bindings.net import Net


def update_by(
    form: NetForm, net: Net, x: Tensor, targets: Tensor, theta: Tensor, velocity: Tensor,
    step: Step, scale: float, active: Tensor | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    """``net_update`` by the ``net_gradient`` of a form: losses ``[G]``, shapes as there."""

    def gradient(point: Tensor, to: Tensor) -> Tensor:
        return form.net_gradient(net, x, targets, point, scale, to)

    return update_through(gradient, theta, velocity, step, active=active, out=out)
