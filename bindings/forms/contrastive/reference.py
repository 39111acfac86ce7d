"""Contrastive divergence in plain torch: any device, any floating dtype.

Signatures and shapes: ``ContrastiveForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings.forms.contrastive import form
from hfcore.bindings.forms.contrastive.update import update_by
from hfcore.kernels.dense import reference


def contrastive_gradient(
    v: Tensor, noise: Tensor, theta: Tensor, visible: str, hidden: str, out: Tensor
) -> Tensor:
    v, noise, theta = v.detach(), noise.detach(), theta.detach()
    errors, gradient = reference.contrastive_gradient(v, noise, theta, visible, hidden)
    out.copy_(gradient)
    return errors.expand(len(out))


def contrastive_update(
    v: Tensor, noise: Tensor, theta: Tensor, velocity: Tensor, visible: str, hidden: str,
    learning_rate: float, momentum: float, weight_cost: float,
) -> Tensor:  # fmt: skip
    rates = learning_rate, momentum, weight_cost
    return update_by(form("reference"), v, noise, theta, velocity, visible, hidden, *rates)
