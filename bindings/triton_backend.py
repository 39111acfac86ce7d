"""Triton kernels: whether they can run here, on which device, and how exact their products are.

Triton is imported by the kernels alone, when data on a CUDA device first asks for one; it compiles
on that first call and launches on torch's current stream.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Literal, get_args

import torch

from hfcore.bindings import cuda
from hfcore.bindings.nvtx import annotate
from hfcore.bindings.switch import Switch

# The oldest Triton and GPU that the kernels are tested for (tests/gates/test_triton_aot.py).
OLDEST_TRITON = (3, 6)
OLDEST_GPU = (8, 0)


# ---------------------------------------------------------------------------- availability


@functools.cache
def why_no_triton() -> str | None:
    """Why Triton cannot be imported here, or None if it can."""
    try:
        triton = import_module("triton")
    except ModuleNotFoundError:
        return "Triton is not installed (pip install 'hfcore[cuda]')"
    except Exception as error:  # a Triton for another platform fails in many ways
        return f"Triton did not load: {error}"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST_TRITON:
        return f"Triton {triton.__version__} is too old, need {'.'.join(map(str, OLDEST_TRITON))}"
    return None


def why_unavailable(device: torch.device | None = None) -> str | None:
    """Why Triton kernels cannot serve data on ``device`` (None: the current one), or None."""
    reason = cuda.why_no_device() or why_no_triton()
    if reason is not None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        need = ".".join(map(str, OLDEST_GPU))
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, need {need}"
    return None


@contextmanager
def serving(op: str, device: torch.device) -> Iterator[None]:
    """Launches inside go to ``device``, not to the one that happens to be current, in a range.

    What Triton refuses (more shared memory or registers than the chip has) becomes a RuntimeError
    that names the op; running out of memory names the size asked and the size free. A CPU device
    is left alone: there the kernels run in Triton's interpreter.
    """
    if device.type != "cuda":
        yield
        return
    from triton.runtime.errors import OutOfResources

    with torch.cuda.device(device), cuda.naming_memory(op, device), annotate(op):
        try:
            yield
        except OutOfResources as error:
            raise RuntimeError(f"{op}: its kernel does not fit {device}: {error}") from error


# ---------------------------------------------------------------------------- precision

MatmulPrecision = Literal["ieee", "bf16x6", "tf32x3", "tf32"]

# CG's residual is a difference of products: in TF32 (10 bits of mantissa) it would stall at 1e-3.
_precision: ContextVar[MatmulPrecision] = ContextVar("hfcore_matmul_precision", default="ieee")


class set_matmul_precision(Switch[MatmulPrecision]):
    """How float32 matrix products are computed on CUDA; :func:`matmul_precision` tells.

    ``"ieee"`` (the default) is true float32, what CG needs. ``"bf16x6"`` has float32 quality: six
    products of bfloat16 pieces on tensor cores, where a kernel has that form, and ``"ieee"``
    elsewhere. Recurrences have it on compute capability 8.0, 9.0 and 10.0, of which the guide to
    GPUs says the sizes; dense layers for the sizes for which it is faster on the GPU at hand, which
    is measured once and kept in the user's cache folder. **No GPU has run these kernels yet**,
    which is why they are not the default: they were compiled, and run in an emulation that
    truncates as tensor cores do. ``"tf32x3"`` is three TF32 products with nearly float32 accuracy,
    where a kernel has that form, and ``"ieee"`` elsewhere; ``"tf32"`` one, with 10 bits of
    mantissa. CPU and float64 products are not affected; a recurrence whose weights fit on chip
    knows ``"bf16x6"`` and is true float32 otherwise. Use it as a plain call (lasting) or as a
    context manager (restores on exit)::

        hf.set_matmul_precision("tf32")
        with hf.set_matmul_precision("tf32x3"): ...

    Raises ValueError for another name.
    """

    def __init__(self, precision: MatmulPrecision) -> None:
        if precision not in get_args(MatmulPrecision):
            raise ValueError(
                f"precision: got {precision!r}, need one of "
                f"{', '.join(map(repr, get_args(MatmulPrecision)))}"
            )
        super().__init__(_precision, precision)


def matmul_precision() -> MatmulPrecision:
    """What :class:`set_matmul_precision` set last."""
    return _precision.get()


@contextmanager
def torch_matmul() -> Iterator[None]:
    """torch's own CUDA products inside obey the policy, whatever the process has set.

    cuBLAS has no tf32x3 form: it computes in true float32 there.
    """
    switch = torch.backends.cuda.matmul
    wanted = "tf32" if matmul_precision() == "tf32" else "ieee"
    # The new switch alone: reading the old one (allow_tf32) after it raises.
    before = switch.fp32_precision
    switch.fp32_precision = wanted
    try:
        yield
    finally:
        switch.fp32_precision = before
