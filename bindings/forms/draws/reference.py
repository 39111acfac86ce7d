"""The counted random numbers in plain NumPy: any device.

Signatures and shapes: ``DrawsForm``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.kernels.draws import reference


def philox(seed: int, number: int, count: int, device: torch.device) -> Tensor:
    return reference.philox(seed, number, count).to(device)


def uniform(seed: int, number: int, out: Tensor) -> None:
    reference.uniform(seed, number, out)
