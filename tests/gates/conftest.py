"""Tools of the gates: one that is missing is said aloud, and fails where gates are required."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# What CI sets, so that a gate cannot pass by not running.
REQUIRE = "HFCORE_REQUIRE_GATES"

# Tools that are looked for as Python packages; all others are programs.
PACKAGES = ("triton", "cupy")


def find_tool(name: str) -> str | None:
    """Path of a program or a package's folder, or None. Triton brings CUDA's binary tools along."""
    if name in PACKAGES:
        spec = find_spec(name)
        locations = None if spec is None else spec.submodule_search_locations
        return next(iter(locations), None) if locations else None
    found = shutil.which(name)
    if found is None and name in ("cuobjdump", "nvdisasm") and (triton := find_tool("triton")):
        bundled = Path(triton) / "backends" / "nvidia" / "bin" / name
        return str(bundled) if bundled.exists() else None
    return found


def _not_run(tool: str) -> None:
    """Skip with NOT RUN and the tool, or fail where HFCORE_REQUIRE_GATES is 1."""
    message = f"NOT RUN: {tool}"
    print(message)
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{message} ({REQUIRE}=1 asks for every gate)", pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def not_run() -> Callable[[str], None]:
    """``not_run("why")`` ends a gate that cannot run: it is skipped, or fails where required."""
    return _not_run


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str], str]:
    """``require_tool("nvcc")`` gives its path; without it the gate does not run, and says so."""

    def require(name: str) -> str:
        path = find_tool(name)
        if path is None:
            _not_run(name)
        assert path is not None
        return path

    return require


@pytest.fixture(scope="session")
def emulated(require_tool: Callable[[str], str]) -> Callable[..., Path]:
    """``emulated("dense")`` is the library of that family's CUDA kernels, built for the CPU.

    A second argument names another file than ``gpu.cu``.
    """
    require_tool("g++")
    # A gate with this file alone beside it has no tests/support on its path.
    from emulation import SANITIZED, built, gpu_source

    def library(family: str, *name: str) -> Path:
        return built(gpu_source(family, *name), sanitize=SANITIZED)

    return library


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN: an element that nobody writes shows."""
    import torch  # here, as the gates without it start in a tenth of the time

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
