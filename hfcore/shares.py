"""Data that count as a part of more: what several processes, or shards, sum to one objective."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from hfcore.objective import Objective

# Bytes at whose multiples torch's own arrays begin.
ALIGNMENT = 64


@dataclass(frozen=True)
class Counts:
    """What data count in the means over them; those of several parts add up."""

    counted: float = 0.0
    """In the loss's mean: cases, or what :meth:`hfcore.losses.Loss.counted` says."""
    cases: float = 0.0
    outputs: float = 0.0
    """Outputs that no mask takes away, by their weights."""
    batches: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self.numbers(), other.numbers(), strict=True)))

    def numbers(self) -> tuple[float, float, float, float]:
        """In the order of the fields."""
        return self.counted, self.cases, self.outputs, self.batches


class Part(Protocol):
    """A checked batch of ``count`` cases."""

    @property
    def count(self) -> int: ...

    def narrow(self, start: int, count: int) -> Self:
        """``count`` of its cases from ``start`` on."""


P = TypeVar("P", bound=Part)


class Share(list[P]):
    """Parts whose sums are divided by what the ``whole`` of the data count.

    An objective without L2 has f(all) = Σ f(share) over shares that make up all of the data, and
    likewise for gradients, products and diagonals.
    """

    def __init__(self, parts: Iterable[P], whole: Counts) -> None:
        super().__init__(parts)
        self.whole = whole


class DivisibleObjective(Objective, Protocol):
    """An objective whose prepared data are a list of parts that can be cut between cases."""

    def counts(self, data: Any) -> Counts:
        """What prepared data count; of a :class:`Share` what the whole counts."""

    def share(self, data: Any, start: int, end: int, whole: Counts) -> Share[Any]:
        """Cases ``start`` … ``end`` − 1 of prepared data, as a share of the whole."""


def is_divisible(objective: Any) -> bool:
    """Whether it has what :class:`DivisibleObjective` adds."""
    return all(callable(getattr(objective, name, None)) for name in ("counts", "share"))


def cut(parts: Sequence[P], start: int, end: int) -> Iterator[P]:
    """Cases ``start`` … ``end`` − 1 of several parts, numbered through."""
    at = 0
    for part in parts:
        first, last = max(start - at, 0), min(end - at, part.count)
        if first < last:
            whole = last - first == part.count
            yield part if whole else part.narrow(first, last - first)
        at += part.count


def aligned(t: Tensor) -> Tensor:
    """``t […]`` in one piece that begins where an array of torch's own would, a copy if need be.

    Products of torch's have other bits in other places.
    """
    return (
        t
        if t.is_contiguous() and t.data_ptr() % ALIGNMENT == 0
        else t.clone(memory_format=torch.contiguous_format)
    )
