"""A whole Gauss-Newton product against every peer, in one interleaved run a case."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import cases, peers
from bench.cases import Case
from bench.interleave import Effort, compare

ALL = list(peers.PEERS)
FAST = [name for name in ALL if name != "BackPACK"]
BY_HAND = ["reference backend", "torch by hand"]


NAMES = {
    cases.ADDITION: ALL,
    cases.ADDITION_SMALL: FAST,
    cases.WIDE_ALL: FAST,
    cases.WIDE_LAST: FAST,
    cases.LARGE: BY_HAND,
    cases.ROLLS: ["torch by hand"],
}


@pytest.mark.parametrize("case", NAMES, ids=lambda case: case.name)
def test_product(benchmark: BenchmarkFixture, effort: Effort, case: Case) -> None:
    ours, others, absent = peers.contestants(case, NAMES[case])
    compare(
        benchmark,
        effort,
        ours,
        others,
        group="Gauss-Newton product",
        case=case.name,
        flops=case.flops,
        absent=absent,
    )
