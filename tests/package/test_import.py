"""What ``import hfcore`` loads: nothing that is slow to import and that few calls need."""

from __future__ import annotations

from python_process import python_output

# 0.1 to 0.5 s each; plots, progress, compiled loops and frameworks ask for them when they run.
LATE = ("numba", "rich", "matplotlib", "tensorboard", "pyarrow", "scipy.optimize", "scipy.sparse",
        "triton", "cupy", "click", "lightning", "accelerate")  # fmt: skip


def test_slow_packages_are_imported_late() -> None:
    code = f"""
import sys, torch
before = set(sys.modules)
import hfcore
print([name for name in {LATE} if name in sys.modules and name not in before])
"""
    assert python_output("-c", code).strip() == "[]"
