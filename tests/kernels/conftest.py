"""What the tests of several families share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hfcore.bindings.dispatch import use_backend


@pytest.fixture(params=("reference", "cpu"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend of CPU data in turn."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture(params=(torch.float32, torch.float64), ids=["f32", "f64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype that is computed in."""
    return request.param


@pytest.fixture
def cpu() -> Iterator[None]:
    """The compiled backend; the number of threads is put back afterwards."""
    threads = torch.get_num_threads()
    with use_backend("cpu"):
        yield
    torch.set_num_threads(threads)
