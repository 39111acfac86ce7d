"""``hfcore train``: every problem with its options, and every initialisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import invoke

TINY = ["--length", "6", "--hidden", "6", "--batch-size", "16", "--test-size", "40", "--quiet"]
TINY += ["--solved-below", "0", "--minibatches", "0.3"]
SGD = ["--optimizer", "sgd", "--lr", "0.01"]
MOMENTUM = [*SGD, "--momentum", "0.9", "--nesterov"]


def config(folder: Path, *arguments: str) -> dict[str, Any]:
    """config.json of a run that ends well."""
    result = invoke("train", *arguments, *TINY, "--run-dir", str(folder))
    assert result.exit_code == 0, result.output
    stored: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return stored


@pytest.mark.parametrize(
    ("problem", "options", "stored"),
    [
        ("addition", ["--target", "sum", "--centre"], {"target": "sum", "centre": True}),
        ("addition", [], {"target": "mean", "centre": False, "tolerance": 0.04}),
        ("multiplication", ["--centre", *MOMENTUM], {"centre": True}),
        ("memorization-5bit", ["--scored", "recall"], {"scored": "recall", "centre": False}),
        ("memorization-20bit", ["--centre", *SGD], {"scored": "all", "centre": True}),
    ],
)
def test_options_reach_the_problem(
    tmp_path: Path, problem: str, options: list[str], stored: dict[str, Any]
) -> None:
    found = config(tmp_path / "run", problem, *options)["problem"]
    assert found["name"] == problem
    assert found["length"] == 6
    assert {key: found[key] for key in stored} == stored


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        ([], {"init": "sparse", "init_scale": 1.0}),
        (["--init", "glorot", "--init-scale", "0.5"], {"init": "glorot", "init_scale": 0.5}),
        (["--init", "esn"], {"init": "esn", "input_scale": 0.1, "spectral_radius": 1.1}),
        (
            ["--init", "esn", "--input-scale", "0.3", "--spectral-radius", "0.9"],
            {"init": "esn", "input_scale": 0.3, "spectral_radius": 0.9},
        ),
    ],
)
def test_the_initialisation_is_noted(
    tmp_path: Path, options: list[str], notes: dict[str, Any]
) -> None:
    assert config(tmp_path / "run", "memorization-5bit", *SGD, *options)["notes"] == notes


def test_the_input_scale_is_the_problems(tmp_path: Path) -> None:
    stored = config(tmp_path / "run", "multiplication", *SGD, "--init", "esn")
    assert stored["notes"]["input_scale"] == 0.001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["multiplication", "--target", "sum"], "got option 'target', need length, tolerance"),
        (["addition", "--scored", "all"], "got option 'scored', need length, target, tolerance"),
        (["memorization-5bit", "--length", "0"], "length: got 0, need at least 1"),
        (["memorization"], "got 'memorization', need one of addition, "),
        (["addition", "--init", "esn", "--init-scale", "2"], "--init-scale has no meaning with --"),
        (["addition", "--input-scale", "2"], "--input-scale has no meaning with --init sparse"),
        (
            ["addition", "--init", "glorot", "--spectral-radius", "1"],
            "--spectral-radius has no meaning with --init glorot",
        ),
        (
            ["addition", "--init", "esn", "--spectral-radius", "-1"],
            "--init esn: spectral_radius: got -1.0",
        ),
        (["addition", "--init", "esn", "--input-scale", "nan"], "--init esn: input_scale: got nan"),
    ],
)
def test_wrong_usage_is_told_with_code_2(arguments: list[str], message: str) -> None:
    result = invoke("train", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
