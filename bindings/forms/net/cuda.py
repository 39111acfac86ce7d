"""The ops on whole nets as the dense, loss and momentum ops, which are CUDA kernels.

Signatures and shapes: ``NetForm``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from hfcore.bindings.dense import (
    activation_derivative,
    dense_backward,
    dense_forward,
    dense_gradient,
    split_layers,
)
from hfcore.bindings.forms.net import form
from hfcore.bindings.forms.net.update import update_by
from hfcore.bindings.loss import loss_gradient, loss_value
from hfcore.bindings.momentum import Rates, Step

if TYPE_CHECKING:
    from hfcore.bindings.net import Net


def net_gradient(
    net: Net, x: Tensor, targets: Tensor, theta: Tensor, scale: float, out: Tensor
) -> Tensor:
    losses = layer_by_layer(net, x.detach(), targets, theta.detach(), scale=scale, out=out)
    return losses.expand(len(out))


def net_update(
    net: Net, x: Tensor, targets: Tensor, theta: Tensor, velocity: Tensor, step: Step,
    rates: Rates, scale: float, active: Tensor | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    return update_by(form("cuda"), net, x, targets, theta, velocity, step, scale, active, out)


def layer_by_layer(
    net: Net, x: Tensor, targets: Tensor, theta: Tensor, *, scale: float, out: Tensor,
) -> Tensor:  # fmt: skip
    """Losses ``[1 or G]`` float64 by the dense and loss ops; the gradient goes to ``out [G,N]``."""
    layers, gradients = split_layers(theta, net.sizes), split_layers(out, net.sizes)
    ys = [x]
    for (W, b), activation in zip(layers, net.activations, strict=True):
        ys.append(dense_forward(ys[-1], W, b, activation=activation))
    s, y = ys[-1].unsqueeze(1), targets.unsqueeze(1)
    losses = loss_value(net.kind, s, y, None, scale=scale)
    delta = loss_gradient(net.kind, s, y, None)[:, 0]
    if net.activations[-1] != "linear":
        delta = delta * activation_derivative(net.activations[-1], ys[-1])
    for l in reversed(range(len(layers))):
        dense_gradient(delta, ys[l], scale=scale, out=gradients[l])
        if l:
            delta = dense_backward(delta, layers[l][0], ys[l], activation=net.activations[l - 1])
    return losses
