"""Two processes with a thread each against one with two: a product, and an iteration's reductions.

The second process waits for a word from the first before every call, whose time is counted. A
reduction begins where the later of the two enters it; what the earlier one waited is listed apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import ADDITION
from bench.interleave import Contestant, Effort, compare
from bench.partner import Partner, on_core
from bench.two_ranks import REDUCTIONS, Iteration, collectives, entries, iterations, products


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Both:
    """A call of this process at the same time as the partner's."""

    def __init__(self, partner: Partner, name: str, run: Any) -> None:
        self._partner, self._name, self._run = partner, name, run

    def __call__(self) -> None:
        with threads(1), on_core(0):
            self._partner.call(self._name)
            self._run()


@pytest.fixture(scope="module")
def partner() -> Iterator[Partner]:
    with Partner("bench.two_ranks") as opened:
        yield opened


@pytest.fixture(scope="module")
def on_two(partner: Partner) -> dict[str, Any]:
    """What both made in the same order: products and iterations on two ranks."""
    with threads(1):
        by_product, by_step = products(dist.group.WORLD), iterations(dist.group.WORLD)
    calls: dict[str, Any] = {}
    for reduction in REDUCTIONS:
        calls[f"product {reduction}"] = Both(partner, f"product {reduction}", by_product[reduction])
        calls[f"step {reduction}"] = Both(partner, f"step {reduction}", by_step[reduction])
    return {**calls, "iterations": by_step}


def test_product_on_two_ranks(
    benchmark: BenchmarkFixture, effort: Effort, on_two: dict[str, Any]
) -> None:
    (plain,) = products().values()

    def one() -> None:
        with threads(2):
            plain()

    lineup = [Contestant(f"two ranks, {r}", on_two[f"product {r}"]) for r in REDUCTIONS]
    compare(
        benchmark,
        effort,
        lineup[0],
        [lineup[1], Contestant("one process, two threads", one)],
        group="Gauss-Newton product on two ranks",
        case=ADDITION.name,
        flops=ADDITION.flops,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_iteration_on_two_ranks(
    benchmark: BenchmarkFixture,
    effort: Effort,
    partner: Partner,
    on_two: dict[str, Any],
    reduction: str,
) -> None:
    plain = Iteration(local=True)

    def one() -> None:
        with threads(2):
            plain()

    ours: Iteration = on_two["iterations"][reduction]
    shares: list[tuple[float, float]] = []
    run = on_two[f"step {reduction}"]

    def timed() -> None:
        began = perf_counter()
        with collectives() as times:
            run()
        seconds = perf_counter() - began
        partner.call("entries")
        both = [max(begin, there) for (begin, _), there in zip(times, entries(times), strict=True)]
        reducing = sum(end - last for (_, end), last in zip(times, both, strict=True))
        waiting = sum(last - begin for (begin, _), last in zip(times, both, strict=True))
        shares.append((reducing / seconds, waiting / seconds))

    compare(
        benchmark,
        effort,
        Contestant(f"two ranks, {reduction}", timed),
        [Contestant("one process, two threads", one, rounds=3)],
        group=f"Hessian-free iteration on two ranks, {reduction}",
        case="T50-B1000-H100",
    )
    assert ours.stats is not None
    benchmark.extra_info["products"] = ours.stats.products
    benchmark.extra_info["reductions"], benchmark.extra_info["waiting"] = min(shares)
