"""Contrastive divergence of the compiled module: CPU, float32 and float64, one call.

Signatures and shapes: ``ContrastiveForm``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings import _native
from hfcore.bindings.checks import dense
from hfcore.bindings.native_calls import call
from hfcore.bindings.threads import kernel_threads


def contrastive_gradient(
    v: Tensor, noise: Tensor, theta: Tensor, visible: str, hidden: str, out: Tensor
) -> Tensor:
    return _step(v, noise, dense(theta), None, out, visible, hidden, 0.0, 0.0, 0.0)


def contrastive_update(
    v: Tensor, noise: Tensor, theta: Tensor, velocity: Tensor, visible: str, hidden: str,
    learning_rate: float, momentum: float, weight_cost: float,
) -> Tensor:  # fmt: skip
    rates = learning_rate, momentum, weight_cost
    return _step(v, noise, theta, velocity, None, visible, hidden, *rates)


def _step(
    v: Tensor, noise: Tensor, theta: Tensor, velocity: Tensor | None, out: Tensor | None,
    visible: str, hidden: str, *rates: float,
) -> Tensor:  # fmt: skip
    G = max(len(v), len(noise), len(theta if out is None else out))
    errors = torch.empty(G, dtype=torch.float64, device="cpu")
    call(
        _native.contrastive_step,
        dense(v),
        dense(noise),
        theta,
        velocity,
        out,
        visible == "linear",
        hidden == "linear",
        *rates,
        errors,
        kernel_threads(),
    )
    return errors
