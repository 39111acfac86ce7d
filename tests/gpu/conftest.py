"""Tests that need a GPU: ``make test-gpu``. Without one they refuse in one sentence."""

from __future__ import annotations

import pytest

from hfcore.bindings import cuda, dispatch


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> None:
    """Every op must be served by its CUDA kernels, or nothing here would test them."""
    if (reason := cuda.why_no_device()) is not None:
        pytest.exit(f"test-gpu needs a CUDA device: {reason}.", returncode=2)
    for op in dispatch.OPS:
        backend, reason = dispatch.explain(op, "cuda")
        if backend != "cuda":
            pytest.exit(
                f"test-gpu needs every CUDA kernel, but {op} is served by {backend}: {reason}.",
                returncode=2,
            )
