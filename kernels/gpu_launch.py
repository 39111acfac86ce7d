"""What every family of CUDA C++ kernels shares: how kernels start, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Dim3 = tuple[int, int, int]
Argument = Tensor | int | float | None
Launch = Callable[[str, Dim3, Dim3, int, Sequence[Argument]], None]

# Nets in a group: the grid's second axis.
MOST_NETS = 65_535


def round_up(size: int, to: int) -> int:
    return -(-size // to) * to


def grid(blocks: int, G: int) -> Dim3:
    """``blocks`` for each of G nets."""
    if G > MOST_NETS:
        raise ValueError(f"the group has {G} nets or tangents, need at most {MOST_NETS}")
    return blocks, G, 1


def dense(a: Tensor) -> Tensor:
    """``a [G,...]`` float32, detached, C-contiguous; one expanded from one net is ``[1,...]``."""
    if a.dtype not in (torch.float32, torch.int64):
        raise TypeError(f"these CUDA kernels got {a.dtype}, need torch.float32")
    a = a.detach()
    if a.ndim > 1 and a.shape[0] > 1 and a.stride(0) == 0:
        a = a[:1]
    return a.contiguous().resolve_neg()


def optional(a: Tensor | None) -> Tensor | None:
    """:func:`dense` of an array ``[G,...]`` that may be absent."""
    return None if a is None else dense(a)
