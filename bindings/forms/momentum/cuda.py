"""The momentum ops on Triton kernels, float32 and float64.

Signatures and shapes: ``MomentumForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings.checks import dense
from hfcore.bindings.triton_backend import serving
from hfcore.kernels.momentum import gpu_triton


def momentum_update(
    theta: Tensor, velocity: Tensor, gradient: Tensor, learning_rate: Tensor, momentum: Tensor,
    lookahead: Tensor, l2: Tensor | None, ahead: Tensor | None, active: Tensor | None,
) -> None:  # fmt: skip
    rates = learning_rate, momentum, lookahead, l2
    gradient = dense(gradient)
    with serving("momentum.momentum_update", theta.device):
        gpu_triton.momentum_update(theta, velocity, gradient, *rates, ahead, active)


def lookahead_point(
    theta: Tensor, velocity: Tensor, momentum: Tensor, out: Tensor, active: Tensor | None
) -> None:
    with serving("momentum.lookahead_point", theta.device):
        gpu_triton.lookahead_point(theta, velocity, momentum, out, active)
