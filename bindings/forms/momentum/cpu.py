"""The momentum ops of the compiled module: CPU, float32 and float64.

Signatures and shapes: ``MomentumForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings import _native
from hfcore.bindings.checks import dense
from hfcore.bindings.native_calls import call
from hfcore.bindings.threads import kernel_threads


def momentum_update(
    theta: Tensor, velocity: Tensor, gradient: Tensor, learning_rate: Tensor, momentum: Tensor,
    lookahead: Tensor, l2: Tensor | None, ahead: Tensor | None, active: Tensor | None,
) -> None:  # fmt: skip
    call(
        _native.momentum_update,
        theta,
        velocity,
        dense(gradient),
        learning_rate,
        momentum,
        lookahead,
        l2,
        ahead,
        active,
        kernel_threads(),
    )


def lookahead_point(
    theta: Tensor, velocity: Tensor, momentum: Tensor, out: Tensor, active: Tensor | None
) -> None:
    call(
        _native.lookahead_point,
        theta,
        velocity,
        momentum,
        out,
        active,
        kernel_threads(),
    )
