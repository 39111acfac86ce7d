"""The ops on whole nets of the compiled module: CPU, float32 and float64, one call each.

Signatures and shapes: ``NetForm``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hfcore.bindings import _native
from hfcore.bindings.checks import dense
from hfcore.bindings.momentum import Rates, Step
from hfcore.bindings.native_calls import call
from hfcore.bindings.threads import kernel_threads

if TYPE_CHECKING:
    from hfcore.bindings.net import Net


def net_gradient(
    net: Net, x: Tensor, targets: Tensor, theta: Tensor, scale: float, out: Tensor
) -> Tensor:
    losses = torch.empty(len(out), dtype=torch.float64, device="cpu")
    call(
        _native.net_gradient,
        net.kind_code,
        dense(x),
        dense(targets),
        dense(theta),
        net.sizes,
        net.activation_codes,
        scale,
        out,
        losses,
        kernel_threads(),
    )
    return losses


def net_update(
    net: Net, x: Tensor, targets: Tensor, theta: Tensor, velocity: Tensor, step: Step,
    rates: Rates, scale: float, active: Tensor | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    losses = torch.empty(len(theta), dtype=torch.float64, device="cpu")
    call(
        _native.net_update,
        net.kind_code,
        dense(x),
        dense(targets),
        theta,
        velocity,
        net.sizes,
        net.activation_codes,
        scale,
        *rates,
        active,
        out,
        losses,
        kernel_threads(),
    )
    return losses
