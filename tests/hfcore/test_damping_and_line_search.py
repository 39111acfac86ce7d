"""The Levenberg-Marquardt rule and the line search, in their published numbers."""

from __future__ import annotations

import math

import pytest

from hfcore.optimisers.damping import LevenbergMarquardt, reduction_ratio
from hfcore.optimisers.line_search import LineSearch


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
