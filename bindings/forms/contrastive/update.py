"""An update of Boltzmann machines by a gradient that is formed whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hfcore.bindings.momentum import momentum_update

if TYPE_CHECKING:
    from hfcore.bindings.forms.contrastive import ContrastiveForm


def update_by(
    form: ContrastiveForm, v: Tensor, noise: Tensor, theta: Tensor, velocity: Tensor,
    visible: str, hidden: str, learning_rate: float, momentum: float, weight_cost: float,
) -> Tensor:  # fmt: skip
    """``contrastive_update`` by the ``contrastive_gradient`` of a form: errors ``[G]``."""
    gradient = torch.empty_like(theta)
    errors = form.contrastive_gradient(v, noise, theta, visible, hidden, gradient)
    # One machine at a time: its weights, which have a cost, and its biases lie in one piece each.
    weights = v.shape[2] * noise.shape[2]
    for g in range(len(theta)):
        for part, l2 in ((slice(weights), weight_cost), (slice(weights, None), None)):
            momentum_update(
                theta[g, None, part],
                velocity[g, None, part],
                gradient[g, None, part],
                learning_rate=learning_rate,
                momentum=momentum,
                l2=l2,
            )
    return errors
