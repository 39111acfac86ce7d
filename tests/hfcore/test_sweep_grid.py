"""Grids: which runs there are, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from hfcore.sweeps.grid import RunSettings, expand

OPTIONS = ("input_scale", "spectral_radius")


def test_every_combination_once_with_seeds_fastest() -> None:
    grid = {"learning_rate": [1e-2, 1e-3], "momentum": [0.9, 0.98], "method": ["nag", "cm"]}
    runs = expand(grid, 3, OPTIONS)
    expected = set(itertools.product([1e-2, 1e-3], [0.9, 0.98], ["nag", "cm"], range(3)))
    assert {(r.learning_rate, r.momentum, r.method, r.seed) for r in runs} == expected
    assert len({repr(r) for r in runs}) == len(runs) == 24
    assert [r.seed for r in runs[:3]] == [0, 1, 2]


def test_momentum_zero_is_plain_sgd_and_counts_once() -> None:
    grid = {"learning_rate": [1e-2], "momentum": [0, 0.9], "method": ["nag", "cm"]}
    labels = [run.label for run in expand(grid, 1, ())]
    assert sorted(labels) == ["0", "0.9M", "0.9N"]
    sgd = expand({"learning_rate": [1e-2], "momentum": [0.5, 0.9], "method": ["sgd"]}, 1, ())
    assert sgd == [RunSettings("sgd", 1e-2, 0.0, 0)]


def test_defaults_and_options() -> None:
    (run,) = expand({"learning_rate": [1], "input_scale": [0]}, [7], OPTIONS)
    assert run == RunSettings("nag", 1.0, 0.9, 7, {"input_scale": 0.0})
    assert run.row() == {
        "method": "nag",
        "momentum": 0.9,
        "learning_rate": 1.0,
        "seed": 7,
        "input_scale": 0.0,
    }


def test_several_grids_are_united() -> None:
    runs = expand([{"learning_rate": [1e-2]}, {"learning_rate": [1e-3], "method": ["cm"]}], 2, ())
    assert [(r.method, r.learning_rate, r.seed) for r in runs] == [
        ("nag", 1e-2, 0),
        ("nag", 1e-2, 1),
        ("cm", 1e-3, 0),
        ("cm", 1e-3, 1),
    ]
    with pytest.raises(ValueError, match="two of the grids hold the same run"):
        expand([{"learning_rate": [1e-2]}, {"learning_rate": [1e-2, 1e-3]}], 1, ())


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        ({"learning_rate": [0.1], "nesterov": [1]}, ValueError, "grid: got the key 'nesterov'"),
        ({"momentum": [0.9]}, ValueError, "grid: has no learning_rate"),
        ({"learning_rate": []}, ValueError, r"grid\['learning_rate'\]: got no values"),
        ({"learning_rate": 0.1}, TypeError, r"grid\['learning_rate'\]: got 0.1, need a list"),
        ({"learning_rate": "0.1"}, TypeError, r"grid\['learning_rate'\]: got '0.1'"),
        ({"learning_rate": [0.1, 0.1]}, ValueError, "0.1 twice"),
        ({"learning_rate": [0.0]}, ValueError, "need a positive finite number"),
        ({"learning_rate": [-1]}, ValueError, "need a positive finite number"),
        ({"learning_rate": [float("nan")]}, ValueError, "need a positive finite number"),
        ({"learning_rate": [True]}, TypeError, "need a number"),
        ({"learning_rate": [0.1], "momentum": [1]}, ValueError, "at least 0 and below 1"),
        ({"learning_rate": [0.1], "momentum": [-0.1]}, ValueError, "at least 0 and below 1"),
        ({"learning_rate": [0.1], "momentum": [float("nan")]}, ValueError, "below 1"),
        ({"learning_rate": [0.1], "method": ["adam"]}, ValueError, "need one of nag, cm, sgd"),
        ({"learning_rate": [0.1], "input_scale": [-1]}, ValueError, "need a finite number"),
        ([], ValueError, "grid: got none"),
        ([3], TypeError, "need a mapping"),
    ],
)
def test_refused_grids(grid: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        expand(grid, 1, OPTIONS)


@pytest.mark.parametrize("seeds", [0, -1, [], "12", [0, 0], [1.5], [-1], True, None])
def test_refused_seeds(seeds: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="seeds: got"):
        expand({"learning_rate": [0.1]}, seeds, ())


def test_runs_themselves_with_their_seeds() -> None:
    runs = [RunSettings("nag", 0.1, 0.9, 3), RunSettings("sgd", 0.1, 0.0, 1, {"input_scale": 0.1})]
    assert expand(runs, 1, OPTIONS) == runs
    with pytest.raises(ValueError, match="twice"):
        expand([runs[0], runs[0]], 1, ())
    with pytest.raises(ValueError, match="got the key 'input_scale'"):
        expand(runs, 1, ())
    with pytest.raises(TypeError, match="need one kind"):
        expand([runs[0], {"learning_rate": [1]}], 1, ())  # type: ignore[list-item]
    with pytest.raises(ValueError, match="below 1"):
        expand([RunSettings("cm", 0.1, 1.0, 0)], 1, ())
