"""One interleaved run: every contestant takes a turn in every round, and so does sgemm.

Machines are shared and clocks drift, so contestants are never timed one after the other: each
round times A, B, C, ... and the machine's own sgemm, in an order that rotates. What counts is the
minimum of a contestant's rounds, and the ratio of two minima of the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from bench import machine

# A call shorter than this is first made once untimed: a solver calls it again and again, and the
# contestant before it has emptied the caches and left its threads spinning.
WARM_BELOW = 0.5
# Before that call: the threads of OpenMP go on spinning for some milliseconds behind a parallel
# region, on a core that the next contestant needs.
SPIN_SECONDS = 0.03
# After a yardstick: the threads of OpenBLAS spin for another tenth of a second.
SETTLE_SECONDS = 0.15
# The yardstick that is no matrix product: products and sums in registers.
FMA = "multiply-adds in registers"


@dataclass(frozen=True)
class Effort:
    """Rounds of every interleaved run, and the size of the sgemm that is timed beside it."""

    rounds: int
    sgemm_size: int


@dataclass
class Contestant:
    """One way of computing the same thing.

    ``run`` does it once; ``setup_seconds`` is the one-off cost paid before (tracing, a forward
    pass), which is reported apart; ``rounds`` caps the rounds of a slow contestant; ``repeat``
    calls make one timed turn when a call is too short for the clock; ``extra`` joins its row
    (``flops`` there goes before the bench's).
    """

    name: str
    run: Callable[[], object]
    setup_seconds: float = 0.0
    rounds: int | None = None
    repeat: int = 1
    extra: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def turn(self) -> None:
        """One timed turn, unless this contestant's rounds are used up."""
        if self.rounds is not None and len(self.seconds) >= self.rounds:
            return
        self.warm()
        start = perf_counter()
        for _ in range(self.repeat):
            self.run()
        self.seconds.append((perf_counter() - start) / self.repeat)

    def warm(self) -> None:
        """An untimed call on an idle machine, skipped where the last one was long anyway."""
        if not self.seconds or self.seconds[-1] < WARM_BELOW:
            sleep(SPIN_SECONDS)
            self.run()


def compare(
    benchmark: BenchmarkFixture,
    effort: Effort,
    ours: Contestant,
    others: Sequence[Contestant],
    *,
    group: str,
    case: str,
    flops: float | None = None,
    bytes_moved: float | None = None,
    **info: object,
) -> dict[str, float]:
    """Time ``ours`` through pytest-benchmark, with the others and sgemm interleaved in its setup.

    Every contestant's row, with its share of the sgemm rate where ``flops`` is given, goes to
    ``extra_info``; ``bench/report.py`` prints it. Returns the minimum of each in seconds, empty
    under ``--benchmark-disable``, where everything runs just once.
    """
    products, gemm_flops = machine.sgemms(effort.sgemm_size)
    yardsticks = [Contestant(name, product) for name, product in products.items()]
    loop = machine.multiply_adds()
    if loop is not None:
        yardsticks.append(Contestant(FMA, loop[0]))
    lineup = [*others, *yardsticks]
    played = 0

    def play_the_others() -> None:
        nonlocal played
        first = played % len(lineup)
        for contestant in lineup[first:] + lineup[:first]:
            contestant.turn()
            if any(contestant is y for y in yardsticks):
                sleep(SETTLE_SECONDS)
        played += 1
        ours.warm()

    def our_turn() -> None:
        for _ in range(ours.repeat):
            ours.run()

    benchmark.group = group
    rounds = effort.rounds if ours.rounds is None else min(effort.rounds, ours.rounds)
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        our_turn, setup=play_the_others, rounds=rounds, iterations=1
    )
    if benchmark.stats is None:
        return {}
    ours.seconds = [seconds / ours.repeat for seconds in benchmark.stats.stats.data]
    rates = {y.name: gemm_flops / min(y.seconds) for y in yardsticks if y.name in products}
    sgemm_rate = max(rates.values())
    peak = None if loop is None else loop[1] / min(yardsticks[-1].seconds)
    benchmark.extra_info.update(
        case=case,
        flops=flops,
        bytes=bytes_moved,
        sgemm_size=effort.sgemm_size,
        sgemm_gflops=sgemm_rate / 1e9,
        sgemm_gflops_by_library={name: rate / 1e9 for name, rate in rates.items()},
        fma_gflops=None if peak is None else peak / 1e9,
        rows=[_row(c, flops, bytes_moved, sgemm_rate, peak) for c in (ours, *others)],
        **info,
    )
    return {c.name: min(c.seconds) for c in (ours, *others)}


def _row(
    contestant: Contestant,
    flops: float | None,
    bytes_moved: float | None,
    sgemm_rate: float,
    peak: float | None,
) -> dict[str, Any]:
    best = min(contestant.seconds)
    flops = contestant.extra.get("flops", flops)
    row: dict[str, Any] = {
        "name": contestant.name,
        "rounds": len(contestant.seconds),
        "min_ms": 1e3 * best,
        "median_ms": 1e3 * statistics.median(contestant.seconds),
        "setup_seconds": contestant.setup_seconds,
        **contestant.extra,
    }
    if flops is not None:
        row["gflops"] = flops / best / 1e9
        row["sgemm_share"] = flops / best / sgemm_rate
        if peak is not None:
            row["fma_share"] = flops / best / peak
    if bytes_moved is not None:
        row["gbytes_per_second"] = bytes_moved / best / 1e9
    return row
