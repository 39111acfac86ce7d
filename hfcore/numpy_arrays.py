"""NumPy arrays as tensors of a model's dtype."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Bytes of the floats that torch has too.
SHARED = (2, 4, 8)


def check_unmasked(name: str, array: object) -> None:
    """Raise TypeError for a NumPy array of which some entries are masked.

    What lies under the mask would be taken as data.
    """
    if np.ma.is_masked(array):
        raise TypeError(
            f"{name}: got a NumPy array with masked entries, whose values would count; need an "
            "array without, and a mask of its own where some outputs are not to count"
        )


def floats(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """A copy of floats ``[…]``, of any size, order of bytes and strides, in ``dtype``.

    The dtype may be one that NumPy does not have, such as torch.bfloat16.
    """
    own = array.dtype.newbyteorder("=") if array.dtype.itemsize in SHARED else np.dtype(np.float64)
    return torch.from_numpy(array.astype(own, order="C")).to(dtype)
