"""Minibatches of fresh cases that are counted out: the same on every device, without a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.bindings.draws import philox
from hfcore.nets.data import Data
from hfcore.problems.base import CountedProblem

# Batches that are drawn together; any number would do, but it says which cases a batch has.
BLOCK = 64


class CountedDraws:
    """Batches of ``size`` fresh cases of a problem, a block of BLOCK of them at a time.

    Block p is made of the words of the counter-based stream (seed, p), wherever it is made. Its
    cases lie in :attr:`cases`, always in the same place; ``resident`` checks a batch and brings it
    to that form.
    """

    def __init__(
        self,
        problem: CountedProblem,
        size: int,
        seed: int,
        device: torch.device,
        resident: Callable[[Batch], Data],
    ) -> None:
        self.size, self.device = size, device
        self._problem, self._seed, self._block = problem, seed, 0
        batch = self._drawn()
        may_count = problem.counted_steps
        if may_count is not None:
            may_count = may_count.to(device).unsqueeze(1).expand(-1, BLOCK * size)
        # Outputs of every case at all steps that may count, whichever of them do in this block.
        cases = resident(batch._replace(mask=may_count))
        if batch.mask is not None and may_count is not None:
            mask = _at_outputs(batch.mask, cases)
            if not bool(mask.all()):
                cases = replace(cases, w=mask, outputs=float(mask.sum()))
        self.cases = cases
        self._index = torch.arange(BLOCK * size, device=device).view(BLOCK, size)

    def most(self, first: int, most: int) -> int:
        """Batches that there are at once from ``first`` on, of ``most``: to the block's end."""
        return min(most, BLOCK - first % BLOCK)

    def __call__(self, first: int, count: int) -> Tensor:
        """Where ``count`` batches from ``first`` on are in the cases, int64 ``[count,size]``."""
        block, at = divmod(first, BLOCK)
        if block != self._block:
            self._block = block
            self._fill(self._drawn())
        return self._index[at : at + count]

    def _drawn(self) -> Batch:
        """The batches of a block, one after the other."""
        words = self._problem.counted_words(self.size)
        stream = philox(self._seed, self._block, BLOCK * words, self.device)
        return self._problem.counted_batches(stream.view(BLOCK, words), self.size)

    def _fill(self, batch: Batch) -> None:
        cases = self.cases
        cases.x.copy_(batch.inputs.unsqueeze(0))
        cases.y.copy_(_at_outputs(batch.targets, cases))
        if cases.w is not None and batch.mask is not None:
            cases.w.copy_(_at_outputs(batch.mask, cases))


def _at_outputs(values: Tensor, cases: Data) -> Tensor:
    """Of ``values [T,B,…]`` those at the steps with outputs, ``[1,T_out,B,…]``."""
    steps = cases.steps
    return (values if steps is None else values.index_select(0, steps)).unsqueeze(0)
