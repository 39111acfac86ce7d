"""Momentum as a function of t, the number of updates done (Sutskever et al. 2013).

Every schedule maps t = 0, 1, … to the μ of that update. They are values: picklable, comparable,
with a ``repr`` that makes them again. They serve :class:`hfcore.schedules.OptionSchedule`.

Numbered notes say where this departs from the paper or settles what it leaves open.

1. The paper's RNNs begin with μ = 0.9 and go on with μ₀. Where μ₀ is smaller than 0.9 the run has
   μ₀ from its first update on; so with μ₀ = 0 the whole of it is plain gradient descent.
2. The reduction at the end of a run never raises μ.
3. In appendix A.1 a step without momentum comes before that of t = 0. A run whose first velocity is
   zero begins as if that step had been done.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from hfcore.arguments import check_call, count, naming_fields, number

Schedule = Callable[[int], float]

# Up to this t NesterovSequence goes through its recursion.
RECURSION = 2**16


@naming_fields
@dataclass(frozen=True)
class Constant:
    """t ↦ μ."""

    mu: float

    def __post_init__(self) -> None:
        _check_momentum("mu", self.mu)

    def __call__(self, t: int) -> float:
        return self.mu


@naming_fields
@dataclass(frozen=True)
class Increasing:
    """t ↦ min(1 − 2^(−1 − log₂(⌊t/250⌋ + 1)), μ_max) (eq. 5): 0.5, 0.75, 0.8333… each 250 updates.

    The published μ_max are 0, 0.9, 0.99, 0.995 and 0.999.
    """

    mu_max: float

    def __post_init__(self) -> None:
        _check_momentum("mu_max", self.mu_max)

    def __call__(self, t: int) -> float:
        # 2^(−1 − log₂ k) = 1/(2k), without the rounding of a logarithm.
        return min(1.0 - 0.5 / (t // 250 + 1), self.mu_max)


@naming_fields
@dataclass(frozen=True)
class Delayed:
    """t ↦ ``start`` for the first ``updates``, then μ₀, as for the paper's RNNs; note 1."""

    mu_0: float
    updates: int = 1000
    start: float = 0.9

    def __post_init__(self) -> None:
        _check_momentum("mu_0", self.mu_0)
        _check_momentum("start", self.start)
        _check_count("updates", self.updates)

    def __call__(self, t: int) -> float:
        return min(self.start, self.mu_0) if t < self.updates else self.mu_0


@naming_fields
@dataclass(frozen=True)
class Nesterov:
    """t ↦ 1 − 3/(t + 5), Nesterov's sequence in the paper's approximation (appendix A.1)."""

    def __call__(self, t: int) -> float:
        return 1.0 - 3.0 / (t + 5)


@naming_fields
@dataclass(frozen=True)
class NesterovSequence:
    """t ↦ (a_t − 1)/a_{t+1} with a_0 = 1, a_{t+1} = (1 + √(4a_t² + 1))/2 (appendix A.1); note 3.

    With a constant ε of at most 1/L it has the bound of :class:`hfcore.AdaptiveNAG`. Beyond
    t = 65,536 a_t is the solution of da/dt = 1/2 + 1/(8a), the recursion's first two terms, from
    there on: right to the last digits of μ, at the same cost for every t.
    """

    # (t, a_t) of the last call: training asks for one t after the other.
    _last: list[tuple[int, float]] = field(
        default_factory=lambda: [(0, 1.0)], init=False, repr=False, compare=False
    )

    def __call__(self, t: int) -> float:
        at, a = self._last[0]
        if t < at:
            at, a = 0, 1.0
        for _ in range(at, min(t, RECURSION)):
            a = next_a(a)
        self._last[0] = (min(t, RECURSION), a)
        if t > RECURSION:
            a = _a_after(t - RECURSION, a)
        return (a - 1.0) / next_a(a)


@naming_fields
@dataclass(frozen=True)
class Final:
    """``schedule``, but at most ``mu`` in the last ``updates`` of ``total``; note 2.

    The paper's final phase: μ falls to 0.9 while ε stays as it is.
    """

    schedule: Schedule
    total: int
    updates: int = 1000
    mu: float = 0.9

    def __post_init__(self) -> None:
        if not callable(self.schedule):
            raise TypeError(
                f"schedule: got {type(self.schedule).__name__}, need a function of t; "
                "Constant(mu) makes one of a number"
            )
        check_call("schedule", self.schedule, 0)
        _check_count("total", self.total)
        _check_count("updates", self.updates)
        if self.updates > self.total:
            raise ValueError(f"updates: got {self.updates}, need at most total = {self.total}")
        _check_momentum("mu", self.mu)

    def __call__(self, t: int) -> float:
        mu = number("schedule", self.schedule(t))
        return min(mu, self.mu) if t >= self.total - self.updates else mu


def next_a(a: float) -> float:
    """a_{t+1} from a_t (appendix A.1)."""
    return (1.0 + math.sqrt(4.0 * a * a + 1.0)) / 2.0


def _a_after(steps: int, a: float) -> float:
    """a_{t+steps} from a large a_t: 2a − ½ log(4a + 1) grows by one a step, found by Newton's rule.

    The remainder of the recursion adds less than 1/(16 a_t) in all, 2e-6 here, and μ = 1 − 1.5/a
    to first order.
    """
    start, target = a, steps
    a = start + 0.5 * steps
    for _ in range(3):  # quadratic from an error of at most log(a)
        excess = 2.0 * (a - start) - 0.5 * math.log((4.0 * a + 1.0) / (4.0 * start + 1.0)) - target
        a -= excess / (2.0 - 2.0 / (4.0 * a + 1.0))
    return a


def _check_momentum(name: str, value: float) -> None:
    if not 0 <= number(name, value) < 1:
        raise ValueError(f"{name}: got {value}, need 0 ≤ {name} < 1")


def _check_count(name: str, value: int) -> None:
    count(name, value, least=0)
