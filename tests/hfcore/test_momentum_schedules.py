"""hf.schedules of the momentum: values at their edges, by hand from the paper's formulas."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hfcore as hf
from hfcore.schedules import Constant, Delayed, Final, Increasing, Nesterov, NesterovSequence

EVERY = [
    Constant(0.5),
    Increasing(0.999),
    Delayed(0.995),
    Nesterov(),
    NesterovSequence(),
    Final(Increasing(0.99), 5000),
]


@pytest.mark.parametrize(
    ("t", "mu"),
    [(0, 0.5), (249, 0.5), (250, 0.75), (499, 0.75), (500, 5 / 6), (750, 0.875), (1000, 0.9),
     (12_250, 0.99), (12_249, 1 - 1 / 98), (10**9, 0.999)],
)  # fmt: skip
def test_increasing(t: int, mu: float) -> None:
    """Eq. 5 at multiples of 250: k = ⌊t/250⌋ + 1 = 1, 2, 3, 4, 5, 50."""
    assert Increasing(0.999)(t) == pytest.approx(mu, rel=1e-15)
    printed = 1 - 2 ** (-1 - math.log2(t // 250 + 1))
    assert Increasing(0.999)(t) == pytest.approx(min(printed, 0.999), rel=1e-14)


@pytest.mark.parametrize("mu_max", [0.0, 0.5, 0.6, 0.9])
def test_increasing_stops_at_its_maximum(mu_max: float) -> None:
    values = [Increasing(mu_max)(t) for t in (0, 250, 1000, 10**7)]
    assert values == [min(0.5, mu_max), min(0.75, mu_max), mu_max, mu_max]


def test_delayed() -> None:
    assert [Delayed(0.995)(t) for t in (0, 999, 1000, 10**6)] == [0.9, 0.9, 0.995, 0.995]
    assert [Delayed(0.9)(t) for t in (0, 999, 1000)] == [0.9, 0.9, 0.9]
    assert [Delayed(0.0)(t) for t in (0, 999, 1000)] == [0.0, 0.0, 0.0]
    assert [Delayed(0.98, updates=2, start=0.5)(t) for t in range(4)] == [0.5, 0.5, 0.98, 0.98]
    assert Delayed(0.98, updates=0)(0) == 0.98


def test_nesterov() -> None:
    assert [Nesterov()(t) for t in (0, 1, 5, 25)] == pytest.approx([0.4, 0.5, 0.7, 0.9], rel=1e-15)


def test_nesterov_sequence() -> None:
    """a_0 = 1, a_1 = (1 + √5)/2, a_2 = (1 + √(4a_1² + 1))/2; in any order of t."""
    a1 = (1 + math.sqrt(5)) / 2
    a2 = (1 + math.sqrt(4 * a1**2 + 1)) / 2
    a3 = (1 + math.sqrt(4 * a2**2 + 1)) / 2
    schedule = NesterovSequence()
    for t in (0, 1, 2, 1, 0, 2, 2):
        want = [0.0, (a1 - 1) / a2, (a2 - 1) / a3][t]
        assert schedule(t) == pytest.approx(want, rel=1e-15, abs=1e-16)
    # a_t ≈ (t + 4)/2, so μ_t ≈ 1 − 3/(t + 5), ever better.
    gaps = [abs(schedule(t) - Nesterov()(t)) * t for t in (10, 100, 1000, 100_000)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-3


def test_final() -> None:
    schedule = Final(Constant(0.995), total=5000)
    assert [schedule(t) for t in (0, 3999, 4000, 4999, 6000)] == [0.995, 0.995, 0.9, 0.9, 0.9]
    assert Final(Constant(0.5), 5000)(4500) == 0.5
    assert Final(Delayed(0.98), 2000, updates=500, mu=0.7)(1499) == 0.98
    assert Final(Delayed(0.98), 2000, updates=500, mu=0.7)(1500) == 0.7
    assert Final(Constant(0.98), 10, updates=10)(0) == 0.9
    assert Final(lambda t: 0.95, 10, updates=0)(10) == 0.9


@pytest.mark.parametrize("schedule", EVERY, ids=lambda s: type(s).__name__)
def test_schedules_are_values(schedule: Any) -> None:
    schedule(7)  # what a call leaves behind is no part of the value
    again = pickle.loads(pickle.dumps(schedule))
    for other in (again, copy.deepcopy(schedule), eval(repr(schedule))):
        assert other == schedule
        assert repr(other) == repr(schedule)
        assert [other(t) for t in range(3000)] == [schedule(t) for t in range(3000)]
    assert "_last" not in repr(schedule)
    assert all(0 <= schedule(t) < 1 for t in (0, 1, 249, 1000, 10**6))


def test_repr_names_the_numbers() -> None:
    assert repr(Final(Increasing(0.99), 5000)) == (
        "Final(schedule=Increasing(mu_max=0.99), total=5000, updates=1000, mu=0.9)"
    )


def test_as_an_option() -> None:
    opt = hf.NAG([nn.Parameter(torch.ones(2))], 0.1)
    schedule = hf.schedules.OptionSchedule(
        opt, momentum=Final(Increasing(0.99), total=1000, updates=100, mu=0.6)
    )
    seen = []
    for _ in range(1000):
        seen.append(opt.param_groups[0]["momentum"])
        schedule.step()
    assert [seen[t] for t in (0, 250, 500, 899, 900, 999)] == [0.5, 0.75, 5 / 6, 0.875, 0.6, 0.6]
    assert opt.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Constant(1.0), ValueError, "mu: got 1.0, need 0 ≤ mu < 1"),
        (lambda: Constant(float("nan")), ValueError, "mu: got nan"),
        (lambda: Increasing(-0.1), ValueError, "mu_max: got -0.1"),
        (lambda: Increasing("0.9"), TypeError, "mu_max: got '0.9', need a number"),
        (lambda: Delayed(1.2), ValueError, "mu_0: got 1.2"),
        (lambda: Delayed(0.9, updates=-1), ValueError, "updates: got -1"),
        (lambda: Delayed(0.9, start=1), ValueError, "start: got 1"),
        (lambda: Final(0.9, 1000), TypeError, "schedule: got float"),
        (lambda: Final(Constant(0.9), 1000.0), TypeError, "total: got float"),
        (lambda: Final(Constant(0.9), 10), ValueError, "updates: got 1000, need at most total"),
        (lambda: Final(Constant(0.9), 1000, mu=1.0), ValueError, "mu: got 1.0"),
    ],
)
def test_bad_numbers_are_named(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_nesterovs_sequence_far_out_goes_on_as_the_recursion_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recursion in extended precision, beside the solution that takes over."""
    from hfcore import momentum_schedules

    monkeypatch.setattr(momentum_schedules, "RECURSION", 1000)
    schedule = NesterovSequence()
    a = np.longdouble(1)
    for t in range(50_000):
        after = (1 + np.sqrt(4 * a * a + 1)) / 2
        if t in (1000, 1001, 1010, 2000, 49_999):
            # What is left out adds less than 1/(16·500) to a, and μ moves by 1.5/a² of that.
            assert abs(schedule(t) - float((a - 1) / after)) < 2 / (16 * 500 * float(a) ** 2)
        a = after


def test_nesterovs_sequence_answers_at_once() -> None:
    schedule = NesterovSequence()
    assert schedule(10**9) == pytest.approx(1 - 3e-9, abs=1e-15)
    assert schedule(10**15) == pytest.approx(1.0, abs=1e-14)
    assert schedule(2) == NesterovSequence()(2)
