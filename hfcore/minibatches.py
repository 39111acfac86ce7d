"""Which cases play which part in each Hessian-free step: policies over a fixed data set.

A policy maps the number of a step, from 0, to :class:`hfcore.Batches`. It holds no state, so a
resumed run sees the batches it would have seen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hfcore.batches import Batch, Batches
from hfcore.schedules import Phase


class FullGradient:
    """Gradient, backtracking and line search on everything; curvature on one batch, in turns.

    The data is permuted once; batch i of ``curvature_batches`` equal ones serves the steps i,
    i + curvature_batches, … (Martens 2010: 4 for CURVES, 8 for MNIST, 20 for FACES). With
    ``growth`` > 1 the batch grows by that factor every step, up to everything, and a batch starts
    where the one before it ended (M&S 2012, section 20.12).

    Parameters
    ----------
    inputs, targets : tensors with the cases along their first axis
    curvature_batches : at least 1, at most the number of cases
    growth : at least 1
    seed : of the permutation; None keeps the order

    Raises ValueError naming what is wrong.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        curvature_batches: int,
        growth: float = 1.0,
        seed: int | None = 0,
    ) -> None:
        cases = _check_cases(inputs, targets)
        if not 1 <= curvature_batches <= cases:
            raise ValueError(f"curvature_batches: got {curvature_batches}, need 1 to {cases} cases")
        if not growth >= 1:
            raise ValueError(f"growth: got {growth}, need at least 1")
        inputs, targets = _permuted(inputs, targets, seed)
        self.everything = Batch(inputs, targets)
        self.curvature_batches = curvature_batches
        self.growth = growth
        self.cases = cases

    def __call__(self, step: int) -> Batches:
        """The batches of step number ``step``."""
        everything = self.everything
        return Batches(everything, self._curvature(step), everything, everything)

    def _curvature(self, step: int) -> Batch:
        if self._size(step) == self.cases:
            return self.everything
        if self.growth == 1.0:
            i = step % self.curvature_batches
            edges = [self.cases * j // self.curvature_batches for j in (i, i + 1)]
            return _part(self.everything, edges[0], edges[1])
        start = sum(self._size(before) for before in range(step)) % self.cases
        return _part(self.everything, start, start + self._size(step))

    def _size(self, step: int) -> int:
        # Compared as logarithms: growth**step overflows after a few thousand steps.
        first = self.cases / self.curvature_batches
        if self.growth == 1.0:
            return math.ceil(first)
        if step * math.log(self.growth) >= math.log(self.curvature_batches):
            return self.cases
        return min(self.cases, round(first * self.growth**step))


class PhaseBatches:
    """The batches of a :class:`hfcore.schedules.Phase`, by its shares of the data.

    >>> batches = hf.minibatches.PhaseBatches(images, images)
    >>> stats = opt.step(batches(phases.present, phases.t))

    Equal shares below 1 are :class:`SmallBatches`, a share of the curvature alone is
    :class:`FullGradient`. Parameters as there. Raises ValueError naming what is wrong, also for a
    phase whose gradient sees other cases than its curvature but not all.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, *, seed: int = 0) -> None:
        self.cases = _check_cases(inputs, targets)
        self.inputs, self.targets = inputs, targets
        self.seed = seed
        self._policy: tuple[tuple[float, float], FullGradient | SmallBatches] | None = None

    def __call__(self, phase: Phase, step: int) -> Batches:
        """The batches of step number ``step``, which is in ``phase``."""
        shares = phase.gradient, phase.curvature
        if self._policy is None or self._policy[0] != shares:
            self._policy = shares, self._made(phase)
        return self._policy[1](step)

    def _made(self, phase: Phase) -> FullGradient | SmallBatches:
        if not 0 < phase.curvature <= 1 or phase.gradient not in (1.0, phase.curvature):
            raise ValueError(
                f"phase {phase.name!r}: got gradient {phase.gradient}, curvature "
                f"{phase.curvature}, need shares up to 1, the gradient's 1 or the curvature's"
            )
        data = self.inputs, self.targets
        if phase.gradient < 1:
            size = max(1, round(self.cases * phase.gradient))
            return SmallBatches(*data, size=size, seed=self.seed)
        count = min(self.cases, round(1 / phase.curvature))
        return FullGradient(*data, curvature_batches=count, seed=self.seed)


class SmallBatches:
    """The same small batch for gradient, curvature and search, in turns (Sutskever et al. 2013).

    Every pass over the data is a new permutation. A rest smaller than ``size`` is left out of its
    pass. Parameters as for :class:`FullGradient`. Raises ValueError naming what is wrong.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, *, size: int, seed: int = 0) -> None:
        cases = _check_cases(inputs, targets)
        if not 1 <= size <= cases:
            raise ValueError(f"size: got {size}, need 1 to {cases} cases")
        self.inputs, self.targets = inputs, targets
        self.size = size
        self.seed = seed
        self.per_pass = cases // size
        self._order: tuple[int, Tensor] | None = None

    def __call__(self, step: int) -> Batches:
        """The batches of step number ``step``."""
        number, at = divmod(step, self.per_pass)
        if self._order is None or self._order[0] != number:
            generator = torch.Generator().manual_seed(self.seed * 2**32 + number)
            self._order = number, torch.randperm(len(self.inputs), generator=generator)
        chosen = self._order[1][at * self.size : (at + 1) * self.size].to(self.inputs.device)
        batch = Batch(self.inputs[chosen], self.targets[chosen])
        return Batches(batch, batch, batch, batch)


def _check_cases(inputs: Tensor, targets: Tensor) -> int:
    if len(inputs) != len(targets):
        raise ValueError(f"targets: got {len(targets)} cases, need {len(inputs)} like the inputs")
    if len(inputs) == 0:
        raise ValueError("inputs: got no cases, need at least 1")
    return len(inputs)


def _permuted(inputs: Tensor, targets: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
    """Both in the same new order; one tensor that is both, as in an autoencoder, stays one."""
    if seed is None:
        return inputs, targets
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    shuffled = inputs[order.to(inputs.device)]
    return shuffled, shuffled if targets is inputs else targets[order.to(targets.device)]


def _part(batch: Batch, start: int, end: int) -> Batch:
    """Cases start..end−1, around the end of the data where they pass it."""
    cases = len(batch.inputs)
    if end <= cases:
        return Batch(batch.inputs[start:end], batch.targets[start:end])
    return Batch(
        torch.cat([batch.inputs[start:], batch.inputs[: end - cases]]),
        torch.cat([batch.targets[start:], batch.targets[: end - cases]]),
    )
