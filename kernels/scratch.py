"""Buffers that stay where they are between the calls of an op."""

from __future__ import annotations

import math

from torch import Tensor


class Scratch:
    """Buffers by name, kept from call to call: from the second call of a shape on nothing is
    allocated. Not for two streams at once.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """A tensor ``[*shape]`` on like's device, of its dtype; holds whatever it held."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        fits = kept is not None and kept.numel() >= size
        if kept is None or not fits or (kept.device, kept.dtype) != (like.device, like.dtype):
            kept = self._kept[name] = like.new_empty(size)
        return kept[:size].view(shape)
