"""Which part of the data of a step is a rank's, and how what all of them give is combined."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.utils._pytree import tree_leaves

from hfcore.batches import Batch
from hfcore.distributed.order import Order, shard_count
from hfcore.distributed.ranks import Ranks
from hfcore.distributed.sums import Reduction
from hfcore.shares import Counts, DivisibleObjective

Cases = Literal["shared", "own"]
CASES = ("shared", "own")


@dataclass(frozen=True)
class Plan:
    """The sum that a role's data come to: its order, and this rank's shards by their number.

    What a shard gives is multiplied by ``weight``; ``minibatches`` are counted for one pass.
    """

    order: Order
    shards: Mapping[int, Any]
    minibatches: int
    weight: float = 1.0


def of_shared(objective: DivisibleObjective, data: Any, ranks: Ranks, reduction: Reduction) -> Plan:
    """Every rank has the same data, and takes its shards of it."""
    whole = objective.counts(data)
    cases = int(whole.cases)
    shards = shard_count(cases) if reduction == "exact" else ranks.size
    order = Order(shards, ranks.size)
    edges = order.edges(cases)
    owned = {
        i: objective.share(data, edges[i], edges[i + 1], whole)
        for i in order.owned(ranks.rank)
        if edges[i] < edges[i + 1]
    }
    return Plan(order, owned, objective.minibatches(data))


def of_own(objective: DivisibleObjective, data: Any, ranks: Ranks) -> Plan:
    """Every rank has cases of its own, or none. Raises ValueError where nobody has any."""
    mine = objective.counts(data) if data else Counts()
    whole, most = Counts(), 0
    for numbers in ranks.numbers(mine.numbers()):
        whole, most = whole + Counts(*numbers), max(most, int(numbers[-1]))
    if not whole.cases:
        raise ValueError("data: no rank has a case, need at least one on some rank")
    shards = {ranks.rank: objective.share(data, 0, int(mine.cases), whole)} if data else {}
    return Plan(Order(ranks.size, ranks.size), shards, most)


def of_means(data: Any, weigh: Callable[[Any], float], minibatches: int, ranks: Ranks) -> Plan:
    """Every rank has a mean of its own, which counts by its weight.

    Raises ValueError on every rank for a weight that is not finite or negative, or all of zero.
    """
    mine = ranks.together(lambda: _checked_weight(weigh(data)))
    weights = [weight for (weight,) in ranks.numbers([mine])]
    total = math.fsum(weights)
    if not total > 0:
        raise ValueError("data: count nothing on every rank, need something on one of them")
    shards = {ranks.rank: data} if mine > 0 else {}
    return Plan(Order(ranks.size, ranks.size), shards, minibatches, mine / total)


def _checked_weight(weight: float) -> float:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"objective.counted: gave {weight}, need a finite number of at least 0")
    return float(weight)


def has_cases(batch: Batch) -> bool:
    """Whether a batch has any; one of length 0 stands for a rank that has none in a role."""
    tensors = [t for t in tree_leaves(batch.inputs) if isinstance(t, Tensor)]
    return not tensors or all(t.numel() > 0 for t in tensors)


class Plans:
    """The plans of the last roles, by the identity of their data."""

    KEPT = 4  # a step has so many roles

    def __init__(self, make: Callable[[Any], Plan]) -> None:
        self._make = make
        # With the data itself, so that no other can take its id meanwhile.
        self._known: dict[tuple[int, ...], tuple[Any, Plan]] = {}

    def __call__(self, data: Any) -> Plan:
        key = _identity(data)
        found = self._known.pop(key, None)
        if found is None:
            found = data, self._make(data)
            while len(self._known) >= self.KEPT:
                del self._known[next(iter(self._known))]
        self._known[key] = found
        return found[1]


def _identity(data: Any) -> tuple[int, ...]:
    """Parts of several batches are joined to new lists, but stay the same parts."""
    if isinstance(data, Sequence) and data:
        return tuple(map(id, data))
    return (id(data),)
