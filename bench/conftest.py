"""Options of the benchmarks, and the machine's facts in their JSON."""

from __future__ import annotations

from typing import Any

import pytest

from bench import machine
from bench.interleave import Effort

LOAD_BEFORE = pytest.StashKey[float | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hfcore benchmarks")
    group.addoption("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    group.addoption(
        "--sgemm-size", type=int, default=4096, help="sgemm of this size cubed (default 4096)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LOAD_BEFORE] = machine.load()


@pytest.fixture(scope="session")
def effort(request: pytest.FixtureRequest) -> Effort:
    return Effort(request.config.getoption("--rounds"), request.config.getoption("--sgemm-size"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    machine_info["hfcore"] = machine.describe()
    machine_info["load_before"] = config.stash[LOAD_BEFORE]
