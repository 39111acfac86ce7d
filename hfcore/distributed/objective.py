"""One objective of several processes, on any objective of one: losses, gradients, products.

Data is cut between cases where the objective can (that of every net and every module). A closure,
or an objective of one's own, gives every rank a mean of its own data; the mean of these by what
each counts is the objective.

1. Martens & Sutskever (2012), section 7.1, sum products over machines. Here also what decides on a
   step: backtracking, ρ, line search and the diagonals.
2. L2 is added once, beside the sums. An objective of one's own has it in its means, whose weights
   add up to 1.
3. Probes of diagonals are drawn for each shard from a seed of its own, so that they do not depend
   on the number of ranks; one process without a group draws others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.bindings.conjugate_gradient import dot
from hfcore.checked_objective import CheckedObjective
from hfcore.distributed.group import Group
from hfcore.distributed.plan import Cases, Plan, Plans, has_cases, of_means, of_own, of_shared
from hfcore.distributed.ranks import Ranks
from hfcore.distributed.sums import Reduction, Sums
from hfcore.objective import Curvature, CurvatureKind, Objective, ProductTerms
from hfcore.shares import is_divisible

Work = Callable[[int, Any, Tensor], None]
"""Writes what the shard of this number, with this data, adds."""
SEEDS = 2**62


class DistributedObjective(Objective):
    """The objective of ``ranks`` on ``inner``, that of one process.

    ``cases``: ``"shared"``, every rank is given the same data; ``"own"``, every rank is given cases
    of its own (of length 0 where it has none). Every method is called by all ranks alike, at the
    same θ; an error on one rank is an error on all.

    Raises ValueError for shared data of an objective of one's own, which cannot be cut.
    """

    def __init__(
        self,
        inner: Any,
        ranks: Ranks,
        *,
        reduction: Reduction,
        cases: Cases = "shared",
        on_cuda: bool = False,
    ) -> None:
        self.inner = inner
        self._on_cuda = on_cuda
        self.ranks = ranks
        self.cases = cases
        self.reduction = reduction
        self.sums = Sums(ranks, reduction)
        self.supports_structural: bool = inner.supports_structural
        self._own_l2 = isinstance(inner, CheckedObjective)
        self._added_l2 = 0.0
        if not self._own_l2:
            self._added_l2, inner.l2 = float(inner.l2), 0.0
        self._cuts = not self._own_l2 and is_divisible(inner)
        if self._own_l2 and cases == "shared" and ranks.size > 1:
            raise ValueError(
                f"cases: got 'shared' with the objective {type(inner.given).__name__}, whose data "
                "nobody here can cut; need cases='own', every rank with data of its own"
            )
        self._plans = Plans(self._make_plan)

    # ---- what is passed on

    @property
    def given(self) -> Any:
        """The caller's own objective, where there is one."""
        return getattr(self.inner, "given", self.inner)

    @property
    def supports_stop(self) -> bool:  # type: ignore[override]
        return bool(self.inner.supports_stop) and (not self._on_cuda or self.sums.recordable)

    @property
    def l2(self) -> float:
        return float(self.inner.l2) if self._own_l2 else self._added_l2

    @l2.setter
    def l2(self, value: float) -> None:
        if self._own_l2:
            self.inner.l2 = value
        else:
            self._added_l2 = float(value)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # before it is there
            raise AttributeError(name)
        return getattr(self.inner, name)

    def use_strategy(self, strategy: str) -> None:
        """The strategy of a module's products. Raises ValueError for one that is found by time."""
        if strategy == "measure" and self.ranks.size > 1:
            raise ValueError(
                "strategy: got 'measure', which every rank would find another one by; need 'auto' "
                "or one of them by name"
            )
        target = self.given
        if hasattr(target, "strategy"):
            target.strategy = strategy

    # ---- data

    def prepare(self, data: Any) -> Any:
        """What the inner objective makes of the data; nothing of a batch without cases."""
        if callable(data) or self._own_l2 or self.cases == "shared":
            return self.inner.prepare(data)
        batches = [data] if isinstance(data, Batch) else [Batch(*batch) for batch in data]
        filled = [batch for batch in batches if has_cases(batch)]
        return self.inner.prepare(filled) if filled else []

    def minibatches(self, data: Any) -> int:
        return self._plans(data).minibatches

    def damping_start(self, data: Any) -> float:
        """That of the first rank which has data."""
        has = callable(data) or self._own_l2 or bool(data)
        own = self.ranks.together(lambda: self.inner.damping_start(data) if has else math.nan)
        starts = [start for (start,) in self.ranks.numbers([own])]
        return next(start for start in starts if not math.isnan(start))

    def _make_plan(self, data: Any) -> Plan:
        inner = self.inner
        if callable(data) or not self._cuts:
            count = self.ranks.together(lambda: inner.minibatches(data))
            weigh = (lambda data: 1.0) if callable(data) else self._counted
            return of_means(data, weigh, count, self.ranks)
        if self.cases == "own":
            return of_own(inner, data, self.ranks)
        return of_shared(inner, data, self.ranks, self.reduction)

    def _counted(self, data: Any) -> float:
        counted = getattr(self.given, "counted", None)
        return float(counted(data)) if callable(counted) else 1.0

    # ---- sums

    def total(self, plan: Plan, work: Work, out: Tensor, *, recorded: bool = False) -> Tensor:
        """Σ over all shards of what ``work`` writes, in ``out […]``."""

        def leaf(number: int, into: Tensor) -> None:
            if number not in plan.shards:
                into.zero_()
                return
            work(number, plan.shards[number], into)
            if plan.weight != 1.0:
                into.mul_(plan.weight)

        sums = self.sums.recorded if recorded else self.sums
        return sums(plan.order, leaf, out)

    def total_of(self, plan: Plan, value: Callable[[int, Any], float], like: Tensor) -> float:
        """Σ over all shards of a number; ``like […]`` lies where the sums are made."""

        def work(i: int, share: Any, into: Tensor) -> None:
            into.fill_(value(i, share))

        out = torch.zeros(1, dtype=torch.float64, device=like.device)
        return float(self.total(plan, work, out))

    # ---- the objective

    def regulariser(self, theta: Tensor) -> float:
        """½ l2 ‖θ‖² of ``theta [N]``, where it is not in the means."""
        return 0.5 * self._added_l2 * dot(theta, theta) if self._added_l2 else 0.0

    def loss(self, data: Any, theta: Tensor) -> float:
        plan = self._plans(data)
        total = self.total_of(plan, lambda _, share: self.inner.loss(share, theta), theta)
        return total + self.regulariser(theta)

    def gradient(self, data: Any, theta: Tensor) -> tuple[float, Tensor]:
        plan, losses = self._plans(data), dict[int, float]()

        def work(i: int, share: Any, into: Tensor) -> None:
            losses[i], gradient = self.inner.gradient(share, theta)
            into.copy_(gradient)

        out = self.total(plan, work, torch.empty_like(theta))
        loss = self.total_of(plan, lambda i, _: losses[i], theta)
        if self._added_l2:
            out.add_(theta, alpha=self._added_l2)
        return loss + self.regulariser(theta), out

    def squared_gradients(self, data: Any, theta: Tensor) -> Tensor:
        def work(i: int, share: Any, into: Tensor) -> None:
            into.copy_(self.inner.squared_gradients(share, theta))

        return self.total(self._plans(data), work, torch.empty_like(theta))

    def curvature(
        self, data: Any, theta: Tensor, kind: CurvatureKind = "ggn"
    ) -> DistributedCurvature:
        return DistributedCurvature(self, self._plans(data), data, theta, kind)


class DistributedCurvature(Curvature):
    """The curvature on all ranks' data at ``theta [N]``: one of the inner objective for each shard.

    Activations are those of this rank's cases alone.
    """

    def __init__(
        self,
        objective: DistributedObjective,
        plan: Plan,
        data: Any,
        theta: Tensor,
        kind: CurvatureKind,
    ) -> None:
        self._objective = objective
        self._plan = plan
        self._like = theta
        self._of: dict[int, Curvature] = {}
        inner = objective.inner

        def begin(i: int, share: Any) -> float:
            known = (
                inner.curvature(share, theta)
                if kind == "ggn"
                else (inner.curvature(share, theta, kind))
            )
            self._of[i] = known
            return float(known.loss)

        self.loss = objective.total_of(plan, begin, theta) + objective.regulariser(theta)
        first = next(iter(self._of.values()), None)
        self.strategy: str = getattr(first, "strategy", getattr(inner, "strategy", "fused"))
        self.messages = tuple(
            dict.fromkeys(m for one in self._of.values() for m in getattr(one, "messages", ()))
        )
        self.has_diagonal: bool = not callable(data) and getattr(first, "has_diagonal", True)

    def product(self, v: Tensor, **terms: Unpack[ProductTerms]) -> Tensor:
        """(B + damping·I + structural·G_S) v ``[N]`` for ``v [N]``."""
        out, stop = terms.get("out"), terms.get("stop")
        structural = terms.get("structural", 0.0)

        def work(i: int, share: Any, into: Tensor) -> None:
            self._of[i].product(v, structural=structural, out=into, stop=stop)

        result = torch.empty_like(v) if out is None else out
        recorded = stop is not None and self._objective.sums.recordable
        self._objective.total(self._plan, work, result, recorded=recorded)
        return self._with_identity(result, v, terms.get("damping", 0.0))

    def products(self, V: Tensor, damping: float = 0.0, structural: float = 0.0) -> Tensor:
        """The same for the rows of ``V [m,N]``, in one sum."""

        def work(i: int, share: Any, into: Tensor) -> None:
            into.copy_(self._of[i].products(V, 0.0, structural).view(-1))

        result = torch.empty(V.shape, dtype=V.dtype, device=V.device)
        self._objective.total(self._plan, work, result)
        return self._with_identity(result, V, damping)

    def _with_identity(self, result: Tensor, v: Tensor, damping: float) -> Tensor:
        factor = damping + self._objective._added_l2
        return result.add_(v, alpha=factor) if factor else result

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag(G) ``[N]``, see :class:`hfcore.objective.Curvature`; note 3."""
        like = self._like
        seed = 0 if probes is None else self._objective_seed(generator)

        def work(i: int, share: Any, into: Tensor) -> None:
            own = None
            if probes is not None:
                own = torch.Generator(like.device).manual_seed((seed + i) % SEEDS)
            into.copy_(self._of[i].diagonal(probes, own))

        return self._objective.total(self._plan, work, torch.empty_like(like))

    def _objective_seed(self, generator: torch.Generator | None) -> int:
        """One for all ranks, drawn by the first."""
        device = "cpu" if generator is None else generator.device
        drawn = int(torch.randint(SEEDS, (1,), generator=generator, device=device))
        return self._objective.ranks.integers([drawn])[0][0]


def distributed(objective: Any, group: Group | None, *, on_cuda: bool = False) -> Objective:
    """The objective of a group on that of one process; itself without a group."""
    if group is None:
        return cast(Objective, objective)
    return DistributedObjective(
        objective,
        group.ranks,
        reduction=group.reduction,
        cases=group.cases,
        on_cuda=on_cuda,
    )
