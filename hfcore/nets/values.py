"""The range of a batch's values, found between kernels (hfcore/bindings/threads.py)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hfcore.bindings.threads import torch_on_one_thread


def range_of(values: Tensor) -> tuple[float, float]:
    """Least and largest of values ``[…]``, floating-point and at least one; NaN reaches both."""
    with torch_on_one_thread():
        low, high = torch.aminmax(values.detach())
    return float(low), float(high)


def all_finite(values: Tensor) -> bool:
    """Whether none of the values ``[…]``, at least one, is NaN or infinite."""
    return all(map(math.isfinite, range_of(values)))
