"""``hfcore reproduce fig1-2013``: paths of the two momenta and of gradient descent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from command_line import invoke
from hfcore.cli.tables import number
from hfcore.experiments.momentum_figures import (
    EIGENVALUES,
    LEARNING_RATE,
    METHODS,
    MOMENTUM,
    START,
    path,
    travel,
)


def test_paths_are_those_of_the_equations() -> None:
    """Eqs. 1 to 4, one coordinate after the other: the quadratic is separable."""
    curvature, start = np.array(EIGENVALUES), np.array(START)
    for name, mu, ahead in (("SGD", 0.0, 0.0), ("CM", MOMENTUM, 0.0), ("NAG", MOMENTUM, 1.0)):
        theta, v = start.copy(), np.zeros(2)
        expected = [theta]
        for _ in range(30):
            v = mu * v - LEARNING_RATE * curvature * (theta + ahead * mu * v)
            theta = theta + v
            expected.append(theta)
        np.testing.assert_allclose(path(METHODS[name], 30), expected, rtol=1e-12, atol=1e-14)


def test_classical_momentum_oscillates_where_nesterovs_does_not(tmp_path: Path) -> None:
    paths = {name: path(make) for name, make in METHODS.items()}
    across = {name: travel(p) for name, p in paths.items()}
    assert across["SGD"] == pytest.approx(START[1])  # straight to the floor
    assert across["NAG"] < 1.5 * START[1]
    assert across["CM"] > 10 * START[1]
    # With the same ε gradient descent is far behind along the valley.
    assert abs(paths["SGD"][40, 0]) > 3 * abs(paths["NAG"][40, 0])
    result = invoke("reproduce", "fig1-2013", "--run-dir", tmp_path / "run")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "run/fig1_2013.json").read_text())
    assert found["paths"]["NAG"] == paths["NAG"].tolist()
    for name, p in paths.items():
        assert f"| {name} | {number(float(np.linalg.norm(p[5])))} |" in result.output
    for plot in ("fig1_2013.png", "fig2_2013.png"):
        assert (tmp_path / "run" / plot).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
