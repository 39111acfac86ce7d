"""The counted random numbers by a Triton kernel.

Signatures and shapes: ``DrawsForm``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings.triton_backend import serving
from hfcore.kernels.draws.reference import uniform_of, words_for


def philox(seed: int, number: int, count: int, device: torch.device) -> Tensor:
    from hfcore.kernels.draws import gpu_triton

    out = torch.empty(count, dtype=torch.int64, device=device)
    with serving("draws.philox", device):
        return gpu_triton.philox(seed, number, out)


def uniform(seed: int, number: int, out: Tensor) -> None:
    uniform_of(philox(seed, number, words_for(out), out.device), out)
