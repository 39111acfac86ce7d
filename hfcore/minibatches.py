"""Which cases play which part in each iteration: policies over a fixed data set.

A policy maps the number of a step, from 0, to :class:`hfcore.Batches`. It holds no state, so a
resumed run sees the batches it would have seen. Made with data it stands alone; made without it is
handed to :func:`hfcore.train`, which puts it on the data of the run:

>>> policy = hf.minibatches.FullGradient(images, images, curvature_batches=4)
>>> stats = opt.step(policy(0))
>>> hf.train(model, (x, y, mask), opt, batches=hf.minibatches.FullGradient(curvature_batches=4))

The cases lie along ``batch_dim`` of the arrays: 0, or 1 for the sequences ``[T,B,n]`` of an hf.RNN.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor

from hfcore.arguments import choice, count, naming_fields, naming_options, number
from hfcore.batches import Batch, Batches
from hfcore.cases import MAX_AXIS, ArrayCases, Cases
from hfcore.counted_batches import CountedBatches
from hfcore.schedules import Phase
from hfcore.seeding import generator_of

MAX_SEED = 2**31 - 1
MAX_STEP = 2**32 - 1
# Of an iteration of DeviceBatches: all of them are one recording of a GPU.
MOST_UPDATES = 1000


@naming_fields
@dataclass(frozen=True)
class Fresh:
    """``count`` batches of ``size`` cases each, drawn anew from a problem or a DataLoader.

    What :func:`hfcore.train` does with them if no policy is given; a DataLoader's batches are of
    its own size.
    """

    count: int = 10
    size: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", count("count", self.count))
        object.__setattr__(self, "size", count("size", self.size))


class Policy:
    """What the policies over cases at hand share: the data they are on.

    ``inputs`` and ``targets`` have the cases along ``batch_dim``: ``[B,…]``, ``[T,B,…]`` for 1.
    ``mask`` has the leading axes of the targets. Raises ValueError naming what is missing.
    """

    def __init__(
        self,
        inputs: Tensor | None,
        targets: Tensor | None,
        mask: Tensor | None,
        batch_dim: int,
    ) -> None:
        self._cases: Cases | None = None
        if inputs is None and (targets is not None or mask is not None):
            raise ValueError("inputs: got None beside targets or mask, need all or none of them")
        if inputs is None:
            return
        if targets is None:
            raise ValueError("targets: got None beside inputs, need both or none of them")
        count("batch_dim", batch_dim, least=0, most=MAX_AXIS)
        self._put_on(ArrayCases(Batch(inputs, targets, mask), batch_dim, batch_dim))

    def on(self, cases: Cases) -> Self:
        """The same policy on these cases. Raises ValueError for more in a batch than there are."""
        new = copy.copy(self)
        new._put_on(cases)
        return new

    @property
    def has_data(self) -> bool:
        """Whether it is on data already."""
        return self._cases is not None

    @property
    def held(self) -> Cases | None:
        """The data that it is on already."""
        return self._cases

    @property
    def cases(self) -> int:
        """Number of cases."""
        return len(self._data)

    @property
    def _data(self) -> Cases:
        if self._cases is None:
            raise ValueError(
                f"{type(self).__name__}: has no data; make it with inputs and targets, or give it "
                "to hf.train"
            )
        return self._cases

    def _put_on(self, cases: Cases) -> None:
        """Check and take the cases."""
        self._cases = cases

    def config(self) -> dict[str, Any]:
        """JSON-able: what determines the batches, besides the data."""
        raise NotImplementedError


class FullGradient(Policy):
    """Gradient, backtracking and line search on everything; curvature on one batch, in turns.

    The data is permuted once; batch i of ``curvature_batches`` equal ones serves the steps i,
    i + curvature_batches, … (Martens 2010, section 4.3, with 4 for CURVES, 8 for MNIST, 20 for
    FACES). With ``growth`` > 1 the batch grows by that factor every step, up to everything, and a
    batch starts where the one before it ended (M&S 2012, section 20.12).

    Parameters
    ----------
    inputs, targets : ``[B,…]``, or with the cases along ``batch_dim``; None: see the module
    mask : of the outputs that count, over the leading axes of ``targets``; None: all
    batch_dim : axis of the cases
    curvature_batches : at least 1, at most the number of cases
    growth : at least 1
    rho : what ρ's objective is on: ``"curvature"``, the curvature's batch (the demo of Martens
        2010), or ``"gradient"``, everything (the paper, section 4.3)
    seed : of the permutation; None keeps the order

    Raises ValueError naming what is wrong.
    """

    @naming_options
    def __init__(
        self,
        inputs: Tensor | None = None,
        targets: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        curvature_batches: int,
        growth: float = 1.0,
        rho: Literal["curvature", "gradient"] = "curvature",
        seed: int | None = 0,
        batch_dim: int = 0,
    ) -> None:
        if not 1 <= number("growth", growth) < math.inf:
            raise ValueError(f"growth: got {growth}, need at least 1 and finite")
        self.curvature_batches = count("curvature_batches", curvature_batches)
        self.growth = float(growth)
        self.rho = choice("rho", rho, ("curvature", "gradient"))
        self.seed = None if seed is None else count("seed", seed, least=0, most=MAX_SEED)
        super().__init__(inputs, targets, mask, batch_dim)

    def _put_on(self, cases: Cases) -> None:
        found = len(cases)
        if self.curvature_batches > found:
            raise ValueError(
                f"curvature_batches: got {self.curvature_batches}, need 1 to {found} cases"
            )
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            cases = cases.permuted(torch.randperm(found, generator=generator, device="cpu"))
        self._cases = cases
        self.everything = cases.parts(0, found)

    def __call__(self, step: int) -> Batches:
        """The batches of step number ``step``."""
        count("step", step, least=0, most=MAX_STEP)
        curvature = self._curvature(step)
        everything = self.everything
        rho = everything if self.rho == "gradient" else None
        return Batches(everything, curvature, everything, everything, rho)

    def _curvature(self, step: int) -> Sequence[Batch] | Batch:
        cases = self._data
        if self._size(step) == self.cases:
            return self.everything
        if self.growth == 1.0:
            i = step % self.curvature_batches
            edges = [self.cases * j // self.curvature_batches for j in (i, i + 1)]
            return cases.parts(edges[0], edges[1])
        start = sum(self._size(before) for before in range(step)) % self.cases
        return cases.parts(start, start + self._size(step))

    def _size(self, step: int) -> int:
        # Compared as logarithms: growth**step overflows after a few thousand steps.
        first = self.cases / self.curvature_batches
        if self.growth == 1.0:
            return math.ceil(first)
        if step * math.log(self.growth) >= math.log(self.curvature_batches):
            return self.cases
        return min(self.cases, round(first * self.growth**step))

    def config(self) -> dict[str, Any]:
        return {
            "name": type(self).__name__,
            "curvature_batches": self.curvature_batches,
            "growth": self.growth,
            "seed": self.seed,
            # Runs from before there was a choice are those of the default.
            **({} if self.rho == "curvature" else {"rho": self.rho}),
        }


class SmallBatches(Policy):
    """The same small batch for gradient, curvature and search, in turns (Sutskever et al. 2013).

    Every pass over the data is a new permutation. A rest smaller than ``size`` is left out of its
    pass. Sequences of unequal length are batched with others of about their length. Inputs and
    targets ``[B,…]`` and further parameters are as for :class:`FullGradient`. Raises ValueError
    naming what is wrong.
    """

    @naming_options
    def __init__(
        self,
        inputs: Tensor | None = None,
        targets: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        size: int,
        seed: int = 0,
        batch_dim: int = 0,
    ) -> None:
        self.size = count("size", size)
        self.seed = count("seed", seed, least=0, most=MAX_SEED)
        super().__init__(inputs, targets, mask, batch_dim)

    def _put_on(self, cases: Cases) -> None:
        if self.size > len(cases):
            raise ValueError(f"size: got {self.size}, need 1 to {len(cases)} cases")
        self._cases = cases
        self._order: tuple[int, Tensor] | None = None

    @property
    def per_pass(self) -> int:
        """Batches of a pass over the data."""
        return self.cases // self.size

    def __call__(self, step: int) -> Batches:
        """The batches of step number ``step``."""
        count("step", step, least=0, most=MAX_STEP)
        cases = self._data
        number, at = divmod(step, self.per_pass)
        if self._order is None or self._order[0] != number:
            generator = generator_of(self.seed, number)
            order = torch.randperm(self.cases, generator=generator, device="cpu")
            self._order = number, cases.batched(order, self.size, generator)
        batch = cases.take(self._order[1][at * self.size : (at + 1) * self.size])
        return Batches(batch, batch, batch, batch)

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "size": self.size, "seed": self.seed}


class Epochs(SmallBatches):
    """A whole pass over the data in every iteration: a step on each of its small batches.

    The batches are those of :class:`SmallBatches`, whose parameters it takes.
    """

    def __call__(self, step: int) -> Sequence[Batches]:  # type: ignore[override]
        """The batches of the pass number ``step``, each made when it is asked for."""
        count("step", step, least=0, most=MAX_STEP // self.per_pass)
        return _Lazily(super().__call__, step * self.per_pass, self.per_pass)


class DeviceBatches(Policy):
    """Small batches made where the model is, ``updates`` of them in every iteration.

    The cases are moved to the model's device once. Every pass over them has an order of its own
    from a counter-based stream: which cases are in a batch depends on ``seed`` and the number of
    the update alone, alike on the CPU and on a GPU. With hf.SGD, hf.ClassicalMomentum or hf.NAG on
    a fused net the updates of an iteration are one step of the optimiser, all with its options as
    they are, and a GPU replays them from one recording; with another optimiser, net or several
    processes they are done one by one. A rest smaller than ``size`` is left out of its pass.

    Parameters
    ----------
    inputs, targets, mask, batch_dim : as for :class:`FullGradient`, ``[B,…]``
    size : cases of a batch, 1 to all
    updates : of an iteration, at least 1; :data:`MOST_UPDATES` at most
    seed : of the stream

    Raises ValueError naming what is wrong, TypeError for sequences of unequal length.
    """

    @naming_options
    def __init__(
        self,
        inputs: Tensor | None = None,
        targets: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        size: int,
        updates: int = 1,
        seed: int = 0,
        batch_dim: int = 0,
    ) -> None:
        self.size = count("size", size)
        self.updates = count("updates", updates, most=MOST_UPDATES)
        self.seed = count("seed", seed, least=0, most=MAX_SEED)
        super().__init__(inputs, targets, mask, batch_dim)

    def _put_on(self, cases: Cases) -> None:
        if not isinstance(cases, ArrayCases):
            raise TypeError(
                "batches: DeviceBatches takes arrays, got sequences of unequal length or inputs "
                "of another kind; take SmallBatches"
            )
        device = cases.batch.inputs.device
        self._batches = CountedBatches(len(cases), self.size, self.seed, device)
        self._cases = cases

    def placed(self, device: torch.device) -> Self:
        """The same policy with its cases on ``device``."""
        return self.on(self._data.to(device))

    def __call__(self, step: int) -> DrawnBatches:
        """The batches of the iteration number ``step``."""
        count("step", step, least=0, most=MAX_STEP // self.updates)
        cases = self._data
        assert isinstance(cases, ArrayCases)
        return DrawnBatches(cases, self._batches(step * self.updates, self.updates))

    def config(self) -> dict[str, Any]:
        return {
            "name": type(self).__name__,
            "size": self.size,
            "updates": self.updates,
            "seed": self.seed,
        }


class DrawnBatches(Sequence[Batches]):
    """Batches by the numbers of their cases, ``chosen [K,B]`` int64; made when asked for."""

    def __init__(self, cases: ArrayCases, chosen: Tensor) -> None:
        self.cases, self.chosen = cases, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, i: int) -> Batches: ...
    @overload
    def __getitem__(self, i: slice) -> DrawnBatches: ...
    def __getitem__(self, i: int | slice) -> Batches | DrawnBatches:
        if isinstance(i, slice):
            return DrawnBatches(self.cases, self.chosen[i])
        batch = self.cases.take(self.chosen[i])
        return Batches(batch, batch, batch, batch)


class _Lazily(Sequence[Batches]):
    """``count`` values of ``make`` from ``start`` on, made anew at every access."""

    def __init__(self, make: Any, start: int, count: int) -> None:
        self._make, self._start, self._count = make, start, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, i: int) -> Batches: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Batches]: ...
    def __getitem__(self, i: int | slice) -> Batches | Sequence[Batches]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(self._count))]
        batches: Batches = self._make(self._start + range(self._count)[i])
        return batches

    def __iter__(self) -> Iterator[Batches]:
        return (self[i] for i in range(self._count))


class PhaseBatches(Policy):
    """The batches of a :class:`hfcore.schedules.Phase`, by its shares of the data.

    >>> batches = hf.minibatches.PhaseBatches(images, images)
    >>> stats = opt.step(batches(phases.present, phases.t))

    Equal shares below 1 are :class:`SmallBatches`, a share of the curvature alone is
    :class:`FullGradient`. Inputs and targets ``[B,…]`` and further parameters are as there. Raises
    ValueError naming what is wrong, also for a phase whose gradient sees other cases than its
    curvature but not all.
    """

    @naming_options
    def __init__(
        self,
        inputs: Tensor | None = None,
        targets: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        seed: int = 0,
        batch_dim: int = 0,
    ) -> None:
        self.seed = count("seed", seed, least=0, most=MAX_SEED)
        super().__init__(inputs, targets, mask, batch_dim)

    def _put_on(self, cases: Cases) -> None:
        self._cases = cases
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
        if phase.gradient < 1:
            size = max(1, round(self.cases * phase.gradient))
            return SmallBatches(size=size, seed=self.seed).on(self._data)
        batches = min(self.cases, round(1 / phase.curvature))
        return FullGradient(curvature_batches=batches, seed=self.seed).on(self._data)

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "seed": self.seed}
