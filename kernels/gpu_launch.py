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


def unexpanded(a: Tensor) -> Tensor:
    """``a [G,...]`` detached, ``[1,...]`` where it is expanded from one net; TypeError if not
    float32 (steps: int64)."""
    if a.dtype not in (torch.float32, torch.int64):
        raise TypeError(f"these CUDA kernels got {a.dtype}, need torch.float32")
    a = a.detach().resolve_neg()
    return a[:1] if a.ndim > 1 and a.shape[0] > 1 and a.stride(0) == 0 else a


def dense(a: Tensor) -> Tensor:
    """``a [G,...]`` float32, detached, C-contiguous; one expanded from one net is ``[1,...]``."""
    return unexpanded(a).contiguous()


def in_rows(*parameters: Tensor) -> tuple[list[Tensor], int]:
    """Parameters ``[1 or G,...]`` as :func:`dense` gives them, but those of G nets in rows.

    With the elements from net to net, one number for all, 0 where none is of a net of its own.
    Parts of the rows of one ``[G,N]`` stay where they are; others are copied into such rows.
    """
    found = [a if _nets_are_dense(a) else a.contiguous() for a in map(unexpanded, parameters)]
    own = [a for a in found if a.shape[0] > 1]
    strides = {a.stride(0) for a in own}
    if len(strides) > 1:
        rows = torch.cat([a.flatten(1) for a in own], dim=1)
        parts = iter(rows.split([a[0].numel() for a in own], dim=1))
        found = [next(parts).view(a.shape) if a.shape[0] > 1 else a for a in found]
        strides = {rows.stride(0)}
    return found, max(strides, default=0)


def _nets_are_dense(a: Tensor) -> bool:
    """Whether each net of ``a [G,...]`` is C-contiguous."""
    return a.is_contiguous() or a[0].is_contiguous()


def optional(a: Tensor | None) -> Tensor | None:
    """:func:`dense` of an array ``[G,...]`` that may be absent."""
    return None if a is None else dense(a)
