"""What this machine and installation are, for a run's config and ``hfcore info``."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from hfcore.bindings import dispatch, triton_backend


def package_version(name: str) -> str:
    """Installed version of a distribution, or ``"not installed"``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def instruction_set() -> str:
    """The one the compiled kernels chose, or ``"none"`` where there are no compiled kernels."""
    try:
        return str(dispatch.native().isa())
    except dispatch.BackendUnavailable:
        return "none"


def describe_environment() -> dict[str, str]:
    """What can change the bits of a run: versions, instruction set, backend, precision."""
    return {
        "hfcore": package_version("hfcore"),
        "torch": torch.__version__,
        "numpy": package_version("numpy"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "instruction_set": instruction_set(),
        "backend": dispatch.forced_backend() or "automatic",
        "matmul_precision": triton_backend.matmul_precision(),
    }
