"""CG whose scalars stay on the device, on CPU tensors in Triton's interpreter.

The cases are in ``interpreted_device_cg.py``: the interpreter must be chosen before Triton is
imported, so they run in a process of their own.
"""

from __future__ import annotations

import contextvars
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from python_process import in_triton_interpreter, python

import hfcore as hf
from hfcore.bindings import device_conjugate_gradient, triton_backend

CASES = Path(__file__).with_name("interpreted_device_cg.py")


def interpret(*options: str) -> None:
    if find_spec("triton") is None:
        if os.environ.get("HFCORE_REQUIRE_GATES") == "1":
            pytest.fail("NOT RUN: triton (HFCORE_REQUIRE_GATES=1 asks for every gate)")
        pytest.skip("NOT RUN: triton")
    in_triton_interpreter(CASES, *options, timeout=900)


def test_quick_cases_in_the_interpreter() -> None:
    interpret("-m", "not slow")


@pytest.mark.slow
def test_all_other_cases_in_the_interpreter() -> None:
    interpret("-m", "slow")


# ---------------------------------------------------------------------------- without Triton


def test_cpu_data_is_solved_by_the_host() -> None:
    assert not device_conjugate_gradient.serves(torch.zeros(3))


def test_cpu_data_imports_no_triton_kernel() -> None:
    """torch's own modules may import Triton where it is installed; the package does not."""
    code = (
        "import sys, torch, hfcore as hf\n"
        "x = torch.randn(4, 5, 2)\n"
        "opt = hf.HessianFree(hf.RNN(2, 3, 1), hf.losses.SquaredError())\n"
        "opt.step((x, x[..., :1]))\n"
        "print([m for m in sys.modules if m.startswith('hfcore.kernels') and 'triton' in m])\n"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[]\n")


def test_absence_is_explained() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert "CUDA" in (triton_backend.why_unavailable() or "")


# ---------------------------------------------------------------------------- precision


def test_precision_is_restored() -> None:
    assert hf.matmul_precision() == "ieee"
    with hf.set_matmul_precision("tf32x3"):
        assert hf.matmul_precision() == "tf32x3"
        with hf.set_matmul_precision("tf32"):
            assert hf.matmul_precision() == "tf32"
        assert hf.matmul_precision() == "tf32x3"
    assert hf.matmul_precision() == "ieee"
    with pytest.raises(ValueError, match="precision: got 'fast', need one of 'ieee'"):
        hf.set_matmul_precision("fast")
    assert hf.matmul_precision() == "ieee"


def test_precision_lasts_where_it_is_called() -> None:
    def called() -> str:
        hf.set_matmul_precision("tf32")
        return hf.matmul_precision()

    # A context of its own, so that the other tests do not inherit it.
    assert contextvars.copy_context().run(called) == "tf32"
    assert hf.matmul_precision() == "ieee"


@pytest.mark.parametrize("outside", ["none", "ieee", "tf32"])
def test_torch_products_obey_whatever_the_process_has_set(outside: str) -> None:
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    try:
        switch.fp32_precision = outside
        policies = {"ieee": "ieee", "bf16x6": "ieee", "tf32x3": "ieee", "tf32": "tf32"}
        for policy, wanted in policies.items():
            with hf.set_matmul_precision(policy):
                with triton_backend.torch_matmul():
                    assert switch.fp32_precision == wanted
                assert switch.fp32_precision == outside
    finally:
        switch.fp32_precision = before


def test_legacy_switch_of_the_process_survives() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with triton_backend.torch_matmul():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
