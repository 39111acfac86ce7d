"""What every family of CUDA C++ kernels shares: how kernels start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
