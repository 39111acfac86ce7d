"""The counted random numbers by NumPy's own Philox, which is compiled.

Signatures and shapes: ``DrawsForm``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def philox(seed: int, number: int, count: int, device: torch.device) -> Tensor:
    # NumPy counts on before it makes the first words: its −1 is our 0.
    key = np.array([seed, number], dtype=np.uint64)
    counter = np.full(4, 2**64 - 1, dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(count)
    return torch.from_numpy((words >> np.uint64(1)).astype(np.int64)).to(device)
