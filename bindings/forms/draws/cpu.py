"""The counted random numbers of the compiled module.

Signatures and shapes: ``DrawsForm``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings import _native
from hfcore.bindings.native_calls import call
from hfcore.bindings.threads import kernel_threads


def philox(seed: int, number: int, count: int, device: torch.device) -> Tensor:
    out = torch.empty(count, dtype=torch.int64, device="cpu")
    call(_native.philox, seed, number, out, kernel_threads())
    return out.to(device)


def uniform(seed: int, number: int, out: Tensor) -> None:
    call(_native.uniform, seed, number, out, kernel_threads())
