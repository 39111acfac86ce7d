"""Sums of vectors over shards and processes, after which all ranks have the same bits.

``"exact"``: every rank hands out the sums of its subtrees of :class:`Order` and all add them up in
the tree's order, so that the bits do not depend on the number of ranks. ``"fast"``: one all-reduce
of one vector a rank; the ranks agree with one another, whose number shows in the last bits.

Two more numbers travel with every vector: whether a rank was asked to leave the step, and whether
its part of the work failed. So all leave, and all fail, at the same place.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hfcore.distributed.order import Leaf, Order, TreeSums
from hfcore.distributed.ranks import Ranks
from hfcore.step_interrupt import asked_to_leave, leave_now

Reduction = Literal["exact", "fast"]
REDUCTIONS = ("exact", "fast")

# Behind a vector: asked to leave, failed.
FLAGS = 2
# Vectors begin at multiples of so many numbers, where torch's own would: products of torch's
# have other bits in other places.
ALIGNED = 16


class Sums:
    """Makes sums over the shards of an order; one thread at a time."""

    def __init__(self, ranks: Ranks, reduction: Reduction) -> None:
        self.ranks = ranks
        self.reduction = reduction
        self._tree = TreeSums()
        self._mine = torch.empty(0, device="cpu")

    @property
    def recordable(self) -> bool:
        """Whether sums may be recorded in a CUDA graph: they wait for nothing."""
        return self.ranks.size == 1 or (self.reduction == "fast" and self.ranks.backend == "nccl")

    def __call__(self, order: Order, leaf: Leaf, out: Tensor) -> Tensor:
        """Σ over the shards of what ``leaf`` writes, in ``out […]``, on every rank.

        Raises the error of a leaf on its rank, :class:`RankFailed` on the others, and
        :class:`StepInterrupted` on all where one was asked to leave.
        """
        flat = out.view(-1)
        if self.ranks.size == 1:
            self._tree.below((0, order.shards), leaf, flat)
            if asked_to_leave():
                leave_now()
            return out
        exact = self.reduction == "exact"
        mine, error = self._own(order, leaf, flat, order.most_nodes if exact else 1)
        self._add_up(order, mine, flat, error) if exact else self._reduce(mine, flat, error)
        return out

    def recorded(self, order: Order, leaf: Leaf, out: Tensor) -> Tensor:
        """The same without a word beside the vectors ``[…]``, for a CUDA graph."""
        if self.ranks.size == 1:
            self._tree.below((0, order.shards), leaf, out.view(-1))
            return out
        self._below(order, leaf, out.view(-1))
        self.ranks.all_reduce(out)
        return out

    # ---- this rank's part

    def _own(
        self, order: Order, leaf: Leaf, out: Tensor, rows: int
    ) -> tuple[Tensor, Exception | None]:
        """This rank's sums ``[rows, N + …]`` with its flags behind the first, and its error."""
        mine = self._buffer(rows, len(out), out)
        error: Exception | None = None
        try:
            if self.reduction == "exact":
                for row, node in zip(mine, order.nodes(self.ranks.rank), strict=False):
                    self._tree.below(node, leaf, row[: len(out)])
            else:
                self._below(order, leaf, mine[0, : len(out)])
        except Exception as failure:
            error = failure
        flags = [float(asked_to_leave()), float(error is not None)]
        mine[0, len(out) : len(out) + FLAGS] = torch.tensor(flags, dtype=mine.dtype, device="cpu")
        return mine.to(self.ranks.device), error

    def _below(self, order: Order, leaf: Leaf, out: Tensor) -> None:
        """The sum of this rank's shards in their order, 0 where it has none."""
        nodes = order.nodes(self.ranks.rank)
        if not nodes:
            out.zero_()
        for i, node in enumerate(nodes):
            into = out if i == 0 else torch.empty_like(out)
            self._tree.below(node, leaf, into)
            if i:
                out.add_(into)

    def _buffer(self, rows: int, numel: int, like: Tensor) -> Tensor:
        width = -(-(numel + FLAGS) // ALIGNED) * ALIGNED
        held = self._mine
        if held.numel() < rows * width or held.dtype != like.dtype or held.device != like.device:
            held = torch.empty(rows * width, dtype=like.dtype, device=like.device)
            self._mine = held
        return held[: rows * width].view(rows, width)

    # ---- all ranks

    def _add_up(self, order: Order, mine: Tensor, out: Tensor, error: Exception | None) -> None:
        every = self.ranks.all_gather(mine)  # [size, rows, width]
        numel = len(out)
        self._act(every[:, 0, numel : numel + FLAGS].sum(0), error)
        known = {
            node: every[rank, row, :numel]
            for rank in range(order.size)
            for row, node in enumerate(order.nodes(rank))
        }
        out.copy_(self._tree.above((0, order.shards), known))

    def _reduce(self, mine: Tensor, out: Tensor, error: Exception | None) -> None:
        (vector,) = mine
        if error is not None:
            vector[: len(out)] = 0
        self.ranks.all_reduce(vector)
        self._act(vector[len(out) : len(out) + FLAGS], error)
        out.copy_(vector[: len(out)])

    def _act(self, flags: Tensor, error: Exception | None) -> None:
        """Fail or leave where some rank does; ``flags [2]`` are sums over the ranks."""
        leaving, failed = flags.tolist()
        if failed:
            self.ranks.fail(error)
        if leaving:
            leave_now()
