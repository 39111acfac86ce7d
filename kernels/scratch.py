"""Buffers that stay where they are between the calls of an op."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Scratch:
    """Buffers by name, kept from call to call: from the second call of a shape on nothing is
    allocated. Not for two streams at once.

    A buffer that was taken while a CUDA graph was recorded stays after a larger one has its name:
    the graph has its address.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._recorded: dict[int, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """A tensor ``[*shape]`` on like's device, of its dtype; holds whatever it held."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        fits = kept is not None and kept.numel() >= size
        if kept is None or not fits or (kept.device, kept.dtype) != (like.device, like.dtype):
            kept = self._kept[name] = like.new_empty(size)
        if kept.is_cuda and torch.cuda.is_current_stream_capturing():
            self._recorded[kept.data_ptr()] = kept
        return kept[:size].view(shape)
