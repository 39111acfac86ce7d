"""Peak memory of a product, each contestant in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import cases, peers
from bench.cases import Case

SCRIPT = Path(__file__).with_name("peak.py")
CLASSES = Path(__file__).with_name("peak_classes.py")
NAMES = [
    "torch by hand",
    "torch.func cached linearize + vjp",
    "curvlinops",
    "JAX cached linearize",
]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's high-water mark")
@pytest.mark.parametrize("case", [cases.ADDITION, cases.WIDE_ALL], ids=lambda case: case.name)
def test_peak(benchmark: BenchmarkFixture, case: Case) -> None:
    """What is timed here is the child process; the figures of interest are its peaks."""
    benchmark.group = "Peak memory of a product"
    ours = benchmark.pedantic(  # type: ignore[no-untyped-call]
        peak, (peers.HFCORE, case), rounds=1
    )
    assert ours is not None
    rows = [ours, *filter(None, (peak(name, case) for name in NAMES))]
    activations = 4e-6 * case.T * case.B * (case.H + case.n)
    benchmark.extra_info.update(case=case.name, activations_mb=activations, memory=rows)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's high-water mark")
def test_peak_of_many_classes(benchmark: BenchmarkFixture) -> None:
    """512 rows of logits over the 50,304 classes of a language model."""
    benchmark.group = "Peak memory of a product"
    sizes = ["512", "50304"]
    ours = benchmark.pedantic(  # type: ignore[no-untyped-call]
        child, (CLASSES, "hfcore", *sizes), rounds=1
    )
    assert ours is not None
    rows = [ours, *filter(None, [child(CLASSES, "curvlinops", *sizes)])]
    logits = 4e-6 * 512 * 50304
    benchmark.extra_info.update(case="B512-classes50304", activations_mb=logits, memory=rows)


def peak(name: str, case: Case) -> dict[str, Any] | None:
    """The child's figures in MB, or None if the peer is not installed."""
    return child(SCRIPT, name, json.dumps(asdict(case)))


def child(script: Path, name: str, *arguments: str) -> dict[str, Any] | None:
    """What a script prints of a contestant, or None if it is not installed."""
    done = subprocess.run(
        [sys.executable, "-P", str(script), name, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if "ModuleNotFoundError" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return {"name": name, **json.loads(done.stdout.splitlines()[-1])}
