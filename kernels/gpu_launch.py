"""What every family of CUDA C++ kernels shares: how kernels start, and buffers that are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

Dim3 = tuple[int, int, int]
Argument = Tensor | int | float | None
Launch = Callable[[str, Dim3, Dim3, int, Sequence[Argument]], None]

# Nets in a group: the grid's second axis.
MOST_NETS = 65_535


class Scratch:
    """Buffers by name, kept from call to call: from the second call of a shape on nothing is
    allocated. Not for two streams at once.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """A tensor of ``shape`` on like's device, of its dtype; holds whatever it held."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        fits = kept is not None and kept.numel() >= size
        if kept is None or not fits or (kept.device, kept.dtype) != (like.device, like.dtype):
            kept = self._kept[name] = like.new_empty(size)
        return kept[:size].view(shape)


def round_up(size: int, to: int) -> int:
    return -(-size // to) * to


def grid(blocks: int, G: int) -> Dim3:
    """``blocks`` for each of G nets."""
    if G > MOST_NETS:
        raise ValueError(f"the group has {G} nets or tangents, need at most {MOST_NETS}")
    return blocks, G, 1
