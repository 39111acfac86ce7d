"""Output buffers whose surroundings are watched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

GUARD = 1024
SENTINEL = -12345.0


@contextmanager
def guarded(shape: Sequence[int], dtype: torch.dtype) -> Iterator[Tensor]:
    """A buffer full of NaN; fails if what lies before or after it was written to."""
    size = int(torch.Size(shape).numel())
    whole = torch.full((size + 2 * GUARD,), SENTINEL, dtype=dtype)
    out = whole[GUARD : GUARD + size].view(*shape)
    out.fill_(float("nan"))
    yield out
    outside = torch.cat([whole[:GUARD], whole[GUARD + size :]])
    assert bool((outside == SENTINEL).all()), "wrote outside of out"
