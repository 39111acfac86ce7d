"""What the formula of a loss gives, checked, and differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def checked_values(loss: object, values: Any, s: Tensor) -> Tensor:
    """``values […]`` that a ``per_output`` gave for the outputs ``s […,k]``.

    Raises TypeError for what is no tensor, ValueError for another shape than one value an output.
    """
    name = f"{type(loss).__name__}.per_output"
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: gave {type(values).__name__}, need a tensor")
    if values.shape != s.shape[:-1]:
        raise ValueError(
            f"{name}: gave shape {list(values.shape)} for outputs {list(s.shape)}, need "
            f"{list(s.shape[:-1])}, the loss of each output summed over its {s.shape[-1]} numbers"
        )
    return values


def gradient_of(loss: object, total: Tensor, s: Tensor, *, again: bool = False) -> Tensor:
    """The derivative ``[…,k]`` of ``total []`` by ``s […,k]``, ``again`` with its own graph.

    Raises ValueError where autograd has recorded nothing of the formula.
    """
    if not total.requires_grad:
        why = "it leaves torch, detaches or runs under torch.no_grad"
        if torch.is_inference_mode_enabled():
            why = "torch.inference_mode is on"
        raise ValueError(
            f"{type(loss).__name__}.per_output: gave values that cannot be differentiated by the "
            f"outputs, since {why}"
        )
    (g,) = torch.autograd.grad(total, s, create_graph=again)
    return g
