"""The Levenberg-Marquardt rule and the line search, in their published numbers."""

from __future__ import annotations

import math
import sys

import pytest

from hfcore.optimisers.backtracking import evaluation_points
from hfcore.optimisers.damping import (
    DAMPING_RULES,
    LevenbergMarquardt,
    TrustRadius,
    reduction_ratio,
)
from hfcore.optimisers.line_search import FixedStep, LineSearch


@pytest.mark.parametrize(
    ("rho", "factor"),
    [
        (-math.inf, 3 / 2),
        (math.nan, 3 / 2),
        (0.2499, 3 / 2),
        (0.25, 1.0),
        (0.5, 1.0),
        (0.75, 1.0),
        (0.7501, 2 / 3),
        (5.0, 2 / 3),
    ],
)
def test_published_rule(rho, factor) -> None:
    assert LevenbergMarquardt().next(6.0, rho) == 6.0 * factor


def test_ratio() -> None:
    assert reduction_ratio(-1.0, -2.0) == 0.5
    assert reduction_ratio(0.1, -2.0) == -math.inf
    assert reduction_ratio(math.nan, -2.0) == -math.inf
    assert reduction_ratio(math.inf, -2.0) == -math.inf
    assert math.isnan(reduction_ratio(-1.0, 0.0))
    assert math.isnan(reduction_ratio(-1.0, 1.0))
    assert math.isnan(reduction_ratio(-1.0, math.nan))


def test_rule_refuses_impossible_numbers() -> None:
    with pytest.raises(ValueError, match="rho_low"):
        LevenbergMarquardt(low=0.9, high=0.1)
    with pytest.raises(ValueError, match="damping_up"):
        LevenbergMarquardt(up=0.5)


def test_full_step_first() -> None:
    assert LineSearch().search(lambda a: 1 - a, 1.0, -1.0) == (1.0, 0.0)


def test_accepts_first_decrease() -> None:
    tried: list[float] = []

    def f(a: float) -> float:
        tried.append(a)
        return 0.9 if a < 0.6 else 1.1

    assert LineSearch().search(f, 1.0, -1.0) == (pytest.approx(0.8**3), 0.9)
    assert tried == pytest.approx([1.0, 0.8, 0.64, 0.512])


def test_armijo_wants_more_than_a_decrease() -> None:
    f = lambda a: 1 - 0.001 * a  # noqa: E731
    assert LineSearch(armijo=0.0).search(f, 1.0, -1.0)[0] == 1.0
    assert LineSearch(armijo=0.01).search(f, 1.0, -1.0) == (0.0, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1.0, 2.0])
def test_gives_up_without_decrease(bad) -> None:
    tried: list[float] = []

    def f(a: float) -> float:
        tried.append(a)
        return bad

    assert LineSearch(max_evaluations=7).search(f, 1.0, -1.0) == (0.0, 1.0)
    assert len(tried) == 7


def test_steps_over_values_that_are_not_finite() -> None:
    f = lambda a: math.nan if a > 0.7 else 0.5  # noqa: E731
    assert LineSearch().search(f, 1.0, -1.0)[1] == 0.5


def test_line_search_refuses_impossible_numbers() -> None:
    for bad in ({"decay": 1.0}, {"decay": 0.0}, {"armijo": 1.0}, {"max_evaluations": 0}):
        with pytest.raises(ValueError, match="line_search_"):
            LineSearch(**bad)


def test_named_conventions() -> None:
    assert set(DAMPING_RULES) == {"martens2010", "rnn2011", "chapelle2011"}
    chapelle = DAMPING_RULES["chapelle2011"]
    rule = LevenbergMarquardt(
        up=chapelle["damping_up"],
        down=chapelle["damping_down"],
        failed=chapelle["damping_failed"],
    )
    assert rule.next(1.0, 0.1) == 2.0
    assert rule.next(1.0, 0.9) == 0.5
    assert rule.next(1.0, 0.9, accepted=False) == 4.0
    assert LevenbergMarquardt().next(1.0, -math.inf, accepted=False) == 1.5
    with pytest.raises(ValueError, match=r"damping_failed: got 0\.5"):
        LevenbergMarquardt(failed=0.5)


def test_trust_radius_follows_rho() -> None:
    rule = TrustRadius()
    assert rule.next(2.0, 0.9, 2.0, on_boundary=True) == 4.0
    assert rule.next(2.0, 0.9, 1.0) == 2.0  # inside: the radius did not bind
    assert rule.next(2.0, 0.9, 1.999) == 2.0
    assert rule.next(2.0, 0.5, 2.0, on_boundary=True) == 2.0
    assert rule.next(2.0, 0.1, 1.0) == 0.25
    assert rule.next(2.0, math.nan, 0.0) == 0.5
    assert rule.next(2.0, -math.inf, 2.0) == 0.5


def test_fixed_step_is_taken_where_the_objective_is_finite() -> None:
    assert FixedStep(0.5).search(lambda a: 10.0 + a, 1.0, -1.0) == (0.5, 10.5)
    assert FixedStep(0.5).search(lambda a: math.nan, 1.0, -1.0) == (0.0, 1.0)
    for size in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="step_size: got"):
            FixedStep(size)


def test_evaluation_points_of_martens_2010() -> None:
    published = [5, 7, 9, 11, 15, 19, 25, 32, 41, 54, 69, 90, 117, 152, 197]
    assert evaluation_points("geometric", 250) == published
    assert list(evaluation_points(10, 35)) == [10, 20, 30]
    assert evaluation_points("geometric", 4) == []
    # Section 4.6 of the paper: ⌈1.3^j⌉, j = 0, 1, …
    assert evaluation_points("powers", 20) == [1, 2, 3, 4, 5, 7, 9, 11, 14, 18]


def test_a_line_search_that_may_go_on_for_ever_ends_where_the_step_is_nothing() -> None:
    seen: list[float] = []

    def f(alpha: float) -> float:
        seen.append(alpha)
        return 1.0

    assert LineSearch(0.5, 0.0, sys.maxsize).search(f, 1.0, -1.0) == (0.0, 1.0)
    assert 0.0 not in seen
    assert len(seen) == 1075  # 2⁻¹⁰⁷⁴ is the smallest number
