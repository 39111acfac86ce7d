"""What every CUDA op of the recurrence shares: how kernels start, and where results are put."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hfcore.kernels.recurrence.layout import RnnWeights

Dim3 = tuple[int, int, int]
Argument = Tensor | int | float | None
Launch = Callable[[str, Dim3, Dim3, int, Sequence[Argument]], None]

ELEMENTWISE_THREADS = 256
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


class Run(NamedTuple):
    """How one op runs: what starts a kernel, the stop flag, a block's shared memory, buffers."""

    launch: Launch
    stop: Tensor | None
    shared_limit: int
    scratch: Scratch


def round_up(size: int, to: int) -> int:
    return -(-size // to) * to


def grid(blocks: int, G: int) -> Dim3:
    """``blocks`` for each of G nets."""
    if G > MOST_NETS:
        raise ValueError(f"the group has {G} nets or tangents, need at most {MOST_NETS}")
    return blocks, G, 1


def distinct(
    *,
    carry: Tensor | None = None,
    hidden: Tensor | None = None,
    input_weights: Tensor | None = None,
    bias: Tensor | None = None,
    initial_bias: Tensor | None = None,
    input: Tensor | None = None,
    added: Tensor | None = None,
    factor: Tensor | None = None,
    structural: Tensor | None = None,
) -> int:
    """Bit mask of the arrays that have a group axis of their own, in the order of gpu_scan.cuh."""
    order = (carry, hidden, input_weights, bias, initial_bias, input, added, factor, structural)
    return sum(1 << bit for bit, a in enumerate(order) if a is not None and a.shape[0] > 1)


def group_of(*arrays: Tensor | None) -> int:
    """Nets in the group: the longest first axis."""
    return max(a.shape[0] for a in arrays if a is not None)


def dense(a: Tensor) -> Tensor:
    """Detached, C-contiguous, float32; an axis expanded from one net is cut back to length 1."""
    if a.dtype not in (torch.float32, torch.int64):
        raise TypeError(f"the CUDA recurrence kernels got {a.dtype}, need torch.float32")
    a = a.detach()
    if a.ndim > 1 and a.shape[0] > 1 and a.stride(0) == 0:
        a = a[:1]
    return a.contiguous().resolve_neg()


def optional(a: Tensor | None) -> Tensor | None:
    return None if a is None else dense(a)


def dense_weights(w: RnnWeights) -> RnnWeights:
    return RnnWeights(*map(dense, w))


def at_steps(steps: Tensor | None, y: Tensor) -> Tensor:
    """The chosen steps of ``y [G,T,B,i]``."""
    return y if steps is None else y.index_select(1, steps)
