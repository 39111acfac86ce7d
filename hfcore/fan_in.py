"""Which units a unit hears, where each hears a fixed number of others."""

from __future__ import annotations

import torch
from torch import Tensor


def distinct_columns(m: int, n: int, K: int, generator: torch.Generator | None) -> Tensor:
    """int64 ``[m,K]``: K distinct columns of n for each of m rows, ascending, all sets as likely.

    Time and memory grow with m·K. On the generator's device, the CPU for None.
    """
    device = torch.device("cpu") if generator is None else generator.device
    index = torch.empty(m, 0, dtype=torch.int64, device=device)
    for k in range(K):
        # The r-th column that a row has not taken yet lies behind all taken c_i with c_i − i ≤ r.
        r = torch.randint(n - k, (m, 1), generator=generator, device=device)
        passed = (index - torch.arange(k, device=device) <= r).sum(1, keepdim=True)
        index = torch.cat([index, r + passed], 1).sort(dim=1).values
    return index
