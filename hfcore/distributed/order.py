"""Which sums are made, and in which order: fixed by the data's shape, whoever makes them.

The cases are cut into shards, the leaves of a binary tree, and every sum is left + right. Neither
depends on the number of processes: a process makes the sums of the largest subtrees that lie
within its shards, hands them to all, and everybody makes the few sums above them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Cases from which on there are so many shards. 12 are equal shares for 1, 2, 3, 4, 6 processes.
SHARDS = ((16, 2), (64, 4), (384, 12))
# Larger data have twice as many as long as each then has at least so many cases.
CASES_OF_A_SHARD = 512
# Shards are whole multiples of so many cases, where that leaves them nearly equal: kernels walk so
# many sequences at a time, and half a walk takes more than half of the time.
WALKS = (16, 8)

Node = tuple[int, int]
"""A subtree: its first leaf and the one behind its last."""
Leaf = Callable[[int, Tensor], None]
"""Writes the vector of the shard of this number."""


def shard_count(cases: int) -> int:
    """Shards of so many cases."""
    shards = max((n for least, n in SHARDS if cases >= least), default=1)
    while cases >= 2 * shards * CASES_OF_A_SHARD:
        shards *= 2
    return shards


@dataclass(frozen=True)
class Order:
    """``shards`` leaves among ``size`` processes."""

    shards: int
    size: int

    def edges(self, cases: int) -> list[int]:
        """Where the shards of ``cases`` begin, and the last ends."""
        unit = next((walk for walk in WALKS if cases >= 4 * walk * self.shards), 1)
        inner = [round(cases * i / (self.shards * unit)) * unit for i in range(self.shards)]
        return [*inner, cases]

    def owned(self, rank: int) -> range:
        """The shards of a process."""
        return range(self.shards * rank // self.size, self.shards * (rank + 1) // self.size)

    def nodes(self, rank: int) -> list[Node]:
        """The largest subtrees within the shards of a process."""
        return list(_within((0, self.shards), self.owned(rank)))

    @property
    def most_nodes(self) -> int:
        """Of any process; at least 1."""
        return max(1, *(len(self.nodes(rank)) for rank in range(self.size)))


def _within(node: Node, owned: range) -> Iterator[Node]:
    first, end = node
    if owned.start <= first and end <= owned.stop:
        yield node
    elif first < owned.stop and owned.start < end:
        for half in _halves(node):
            yield from _within(half, owned)


def _halves(node: Node) -> tuple[Node, Node]:
    middle = (node[0] + node[1]) // 2
    return (node[0], middle), (middle, node[1])


class TreeSums:
    """Makes the sums; its buffers stay for the next ones, and serve one thread at a time."""

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}

    def below(self, node: Node, leaf: Leaf, out: Tensor, depth: int = 0) -> None:
        """The sum of a subtree's leaves, in ``out […]``."""
        if node[1] - node[0] == 1:
            leaf(node[0], out)
            return
        left, right = _halves(node)
        self.below(left, leaf, out, depth + 1)
        term = self._buffer(depth, out)
        self.below(right, leaf, term, depth + 1)
        out.add_(term)

    def above(self, node: Node, known: Mapping[Node, Tensor]) -> Tensor:
        """The sum of a subtree ``[…]`` from those within it; may write to ``known``."""
        if node in known:
            return known[node]
        left, right = _halves(node)
        return self.above(left, known).add_(self.above(right, known))

    def _buffer(self, depth: int, like: Tensor) -> Tensor:
        """A vector for each depth of the tree, the largest there was."""
        held = self._buffers.get(depth)
        fits = held is not None and held.dtype == like.dtype and held.device == like.device
        if held is None or not fits or held.numel() < like.numel():
            held = self._buffers[depth] = torch.empty(
                like.numel(), dtype=like.dtype, device=like.device
            )
        return held[: like.numel()].view(like.shape)
