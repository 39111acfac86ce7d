"""Contrastive divergence as the dense and momentum ops, which are CUDA kernels.

Signatures and shapes: ``ContrastiveForm``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings.dense import dense_backward, dense_forward, dense_gradient
from hfcore.bindings.forms.contrastive import form
from hfcore.bindings.forms.contrastive.update import update_by
from hfcore.kernels.dense.reference import split_machine


def contrastive_gradient(
    v: Tensor, noise: Tensor, theta: Tensor, visible: str, hidden: str, out: Tensor
) -> Tensor:
    v, theta = v.detach(), theta.detach()
    (G, _), (_, B, n), m = out.shape, v.shape, noise.shape[2]
    W, b_h, b_v = split_machine(theta, n, m)
    v = v.expand(G, -1, -1)
    p = dense_forward(v, W, b_h, activation=hidden)
    h = p + noise if hidden == "linear" else (noise < p).to(v.dtype)
    v1 = dense_backward(h, W, v, activation="linear").add_(b_v.unsqueeze(1))
    if visible == "logistic":
        v1.sigmoid_()
    p1 = dense_forward(v1, W, b_h, activation=hidden)
    gW, gb_h, gb_v = split_machine(out, n, m)
    # Data and reconstruction one below the other: both phases of the gradient are one product.
    means, units = torch.cat((-p, p1), 1), torch.cat((v, v1), 1)
    dense_gradient(means, units, scale=1.0 / B, out=(gW, gb_h))
    missed = v1 - v
    torch.mean(missed, 1, out=gb_v)
    return missed.double().square_().sum((1, 2))


def contrastive_update(
    v: Tensor, noise: Tensor, theta: Tensor, velocity: Tensor, visible: str, hidden: str,
    learning_rate: float, momentum: float, weight_cost: float,
) -> Tensor:  # fmt: skip
    rates = learning_rate, momentum, weight_cost
    return update_by(form("cuda"), v, noise, theta, velocity, visible, hidden, *rates)
