"""Minibatches that are counted out: which cases are in which, without a state, alike everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings.draws import shuffled


class CountedBatches:
    """Batches of ``size`` of ``cases`` cases, pass after pass, each in an order of its own.

    Batch t is in pass t div ⌊cases/size⌋; the order of pass p is that of the words of the
    counter-based stream (seed, p), the same on every device. A rest smaller than ``size`` is left
    out of its pass. Raises ValueError for a size that is not 1 to ``cases``.
    """

    def __init__(self, cases: int, size: int, seed: int, device: torch.device) -> None:
        if not 1 <= size <= cases:
            raise ValueError(f"size: got {size}, need 1 to {cases} cases")
        self.cases, self.size, self.device = cases, size, device
        self._seed = seed
        self._orders: dict[int, Tensor] = {}

    @property
    def per_pass(self) -> int:
        """Batches of a pass."""
        return self.cases // self.size

    def most(self, first: int, most: int) -> int:
        """Batches that there are at once from ``first`` on, of ``most``: all of them."""
        return most

    def __call__(self, first: int, count: int) -> Tensor:
        """The cases of the ``count`` batches from ``first`` on, int64 ``[count,size]``."""
        rows = []
        while count:
            number, at = divmod(first, self.per_pass)
            here = min(count, self.per_pass - at)
            order = self._order(number)
            rows.append(order[at * self.size : (at + here) * self.size].view(here, self.size))
            first, count = first + here, count - here
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _order(self, number: int) -> Tensor:
        """Of a pass; the last one is kept."""
        if number not in self._orders:
            self._orders = {number: shuffled(self._seed, number, self.cases, self.device)}
        return self._orders[number]
