"""What the numbers were measured on: the machine, its libraries, and its own sgemm rate."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from hfcore.bindings import dispatch

PACKAGES = (
    "hfcore",
    "torch",
    "numpy",
    "numba",
    "jax",
    "jaxlib",
    "curvlinops-for-pytorch",
    "backpack-for-pytorch",
    "pytest-benchmark",
)


def describe() -> dict[str, object]:
    """JSON-able facts about this machine and the installed versions (None: not installed)."""
    return {
        "node": platform.node(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "isa": _isa(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: version_of(package) for package in PACKAGES},
    }


def load() -> float | None:
    """Processes that wanted a core over the last minute, or None where the system cannot tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def sgemms(size: int) -> tuple[dict[str, Callable[[], object]], float]:
    """(one float32 matrix product of ``size``³ by each BLAS there is, its flops).

    Torch's BLAS leaves AVX-512 unused on some CPUs that have it, so NumPy's runs too and the
    faster of the two is the machine's rate.
    """
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    products: dict[str, Callable[[], object]] = {
        "torch": lambda: torch.mm(a, b, out=out),
        "numpy": lambda: np.matmul(a.numpy(), b.numpy(), out=out.numpy()),
    }
    return products, 2.0 * size**3


def multiply_adds(rounds: int = 2_000_000) -> tuple[Callable[[], object], float] | None:
    """(float32 products and sums in registers alone, their flops), or None without kernels.

    On torch's number of threads, with the instruction set in use: no kernel can be faster.
    """
    try:
        native = dispatch.native()
    except dispatch.BackendUnavailable:
        return None
    threads = torch.get_num_threads()
    flops = native._multiply_adds(1, threads) * rounds
    return (lambda: native._multiply_adds(rounds, threads)), float(flops)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _isa() -> str | None:
    """The instruction set of the compiled kernels, or None where they did not load."""
    try:
        return str(dispatch.native().isa())
    except dispatch.BackendUnavailable:
        return None


def version_of(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
