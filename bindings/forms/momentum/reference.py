"""The momentum ops in plain torch: any device, any floating dtype.

Signatures and shapes: ``MomentumForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.kernels.momentum import reference
from hfcore.kernels.momentum.reference import lookahead_point

__all__ = ["lookahead_point", "momentum_update"]


def momentum_update(
    theta: Tensor, velocity: Tensor, gradient: Tensor, learning_rate: Tensor, momentum: Tensor,
    lookahead: Tensor, l2: Tensor | None, ahead: Tensor | None, active: Tensor | None,
) -> None:  # fmt: skip
    rates = learning_rate, momentum, lookahead, l2
    reference.momentum_update(theta, velocity, gradient.detach(), *rates, ahead, active)
