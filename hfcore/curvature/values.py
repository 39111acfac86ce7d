"""The range of a batch's values, found without torch's threads where that is possible.

Behind an op of torch's on more than some ten thousand elements the threads of OpenMP go on spinning
for milliseconds, on the cores that the fused ops are given next: an update of the CURVES
autoencoder took twice as long behind a ``torch.aminmax`` of its batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def range_of(values: Tensor) -> tuple[float, float]:
    """Least and largest of at least one floating-point value; NaN reaches both."""
    if values.device.type == "cpu" and values.dtype != torch.bfloat16:  # NumPy has none
        seen = values.numpy(force=True)
        return float(seen.min()), float(seen.max())
    low, high = torch.aminmax(values.detach())
    return float(low), float(high)


def all_finite(values: Tensor) -> bool:
    """Whether none of at least one value is NaN or infinite."""
    return all(map(math.isfinite, range_of(values)))
