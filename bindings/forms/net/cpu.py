"""The ops on whole nets of the compiled module: CPU, float32 and float64, one call each.

Arrays go in as capsules: importing a tensor through its __dlpack__ method costs nanobind 2 µs.

Signatures and shapes: ``NetForm``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # not in its __all__

from hfcore.bindings import _native
from hfcore.bindings.checks import dense
from hfcore.bindings.momentum import Rates, Step
from hfcore.bindings.threads import kernel_threads

if TYPE_CHECKING:
    from hfcore.bindings.net import Net


def net_gradient(
    net: Net, x: Tensor, targets: Tensor, theta: Tensor, scale: float, out: Tensor
) -> Tensor:
    losses = torch.empty(len(out), dtype=torch.float64)
    _native.net_gradient(
        net.kind_code,
        to_dlpack(dense(x)),
        to_dlpack(dense(targets)),
        to_dlpack(dense(theta)),
        net.sizes,
        net.activation_codes,
        scale,
        to_dlpack(out),
        to_dlpack(losses),
        kernel_threads(),
    )
    return losses


def net_update(
    net: Net, x: Tensor, targets: Tensor, theta: Tensor, velocity: Tensor, step: Step,
    rates: Rates, scale: float, active: Tensor | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    losses = torch.empty(len(theta), dtype=torch.float64)
    _native.net_update(
        net.kind_code,
        to_dlpack(dense(x)),
        to_dlpack(dense(targets)),
        to_dlpack(theta),
        to_dlpack(velocity),
        net.sizes,
        net.activation_codes,
        scale,
        *(None if rate is None else to_dlpack(rate) for rate in rates),
        None if active is None else to_dlpack(active),
        None if out is None else to_dlpack(out),
        to_dlpack(losses),
        kernel_threads(),
    )
    return losses
