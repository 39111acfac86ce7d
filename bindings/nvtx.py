"""NVTX ranges: named stretches in a profiler's timeline, nothing at all without CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def annotate(name: str) -> Iterator[None]:
    """A range ``name`` around what runs inside; ranges may nest.

    Does nothing until this process has used a CUDA device, and never starts one.
    """
    if not torch.cuda.is_initialized():
        yield
        return
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()
