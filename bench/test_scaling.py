"""The cost of a product is linear in B and in T: interleaved times and a least-squares line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import peers
from bench.cases import ADDITION
from bench.interleave import Contestant, Effort, compare

SIZES = {"B": [125, 250, 500, 1000, 2000], "T": [13, 25, 50, 100, 200]}
FIXED = {"B": replace(ADDITION, T=50), "T": replace(ADDITION, B=500)}


@pytest.mark.parametrize("axis", ["B", "T"])
def test_product_time_is_linear(benchmark: BenchmarkFixture, effort: Effort, axis: str) -> None:
    base, sizes = FIXED[axis], SIZES[axis]
    lineup = []
    for size in sizes:
        case = replace(base, B=size) if axis == "B" else replace(base, T=size)
        product = peers.make_hfcore(case.make()).product
        lineup.append(Contestant(f"{axis}={size}", product, extra={"flops": case.flops}))
    *smaller, largest = lineup
    seconds = compare(
        benchmark,
        effort,
        largest,
        smaller,
        group=f"Gauss-Newton product, linear in {axis}",
        case=base.name.replace(f"{axis}{getattr(base, axis)}", axis),
    )
    if seconds:
        benchmark.extra_info["fit"] = line(sizes, [seconds[c.name] for c in lineup], axis)


def line(sizes: list[int], seconds: list[float], axis: str) -> dict[str, float | str]:
    """t = a + b·size by least squares of the relative error, so that small sizes count too."""
    x, t = np.array(sizes, float), np.array(seconds)
    design = np.stack([np.ones_like(x), x], axis=1)
    (a, b), *_ = np.linalg.lstsq(design / t[:, None], np.ones_like(t), rcond=None)
    fitted = a + b * x
    return {
        "axis": axis,
        "intercept_ms": 1e3 * float(a),
        "us_per_unit": 1e6 * float(b),
        "r2": 1 - float(((t - fitted) ** 2).sum() / ((t - t.mean()) ** 2).sum()),
        "worst_relative_error": float(np.abs(fitted / t - 1).max()),
    }
