"""Which implementation serves an op: the user's explicit choice, or the fastest that can.

An explicit choice that cannot be honoured raises with the reason; the automatic choice falls
back and logs the reason once.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from types import ModuleType
from typing import Literal, get_args

import torch

from hfcore.bindings import cuda, tensor_cores, triton_backend
from hfcore.bindings.switch import Switch

logger = logging.getLogger("hfcore")

Backend = Literal["reference", "cpu", "cuda"]

# Every op of the package and the backends that implement it today. On CUDA the recurrences are CUDA
# C++ launched through CuPy; sparse layers, losses, CG and momentum updates are Triton; dense layers
# are both (bindings/dense.py), and with Triton alone they are served all the same.
EVERYWHERE: tuple[Backend, ...] = ("reference", "cpu", "cuda")
OPS: dict[str, tuple[Backend, ...]] = {
    "recurrence.rnn_forward": EVERYWHERE,
    "recurrence.linear_scan": EVERYWHERE,
    "recurrence.rnn_backward": EVERYWHERE,
    "recurrence.rnn_gauss_newton": EVERYWHERE,
    "gated.gated_forward": EVERYWHERE,
    "gated.gated_tangent": EVERYWHERE,
    "gated.gated_backward": EVERYWHERE,
    "gated.gated_gradient": EVERYWHERE,
    "dense.dense_forward": EVERYWHERE,
    "dense.dense_rforward": EVERYWHERE,
    "dense.dense_backward": EVERYWHERE,
    "dense.dense_gradient": EVERYWHERE,
    "dense.net_gradient": EVERYWHERE,
    "dense.net_update": EVERYWHERE,
    "dense.contrastive_gradient": EVERYWHERE,
    "dense.contrastive_update": EVERYWHERE,
    "sparse.ell_matmul": EVERYWHERE,
    "sparse.ell_matmul_t": EVERYWHERE,
    "sparse.ell_gradient": EVERYWHERE,
    "sparse.ell_scan": EVERYWHERE,
    "sparse.ell_hidden": EVERYWHERE,
    "loss.loss_value": EVERYWHERE,
    "loss.loss_gradient": EVERYWHERE,
    "loss.loss_curvature": EVERYWHERE,
    "loss.loss_hessian_product": EVERYWHERE,
    "conjugate_gradient.cg_update": EVERYWHERE,
    "conjugate_gradient.cg_direction": EVERYWHERE,
    "conjugate_gradient.dot": EVERYWHERE,
    "momentum.momentum_update": EVERYWHERE,
    "momentum.lookahead_point": EVERYWHERE,
    "draws.philox": EVERYWHERE,
    "draws.uniform": EVERYWHERE,
}

# Families whose CUDA form is a binary of CUDA C++, in float32 alone; the others are Triton's.
CUDA_CPP = ("recurrence", "gated")
# Families that have both, CUDA C++ where its binary loads.
CUDA_CPP_TOO = ("dense",)

_native: ModuleType | None = None
_native_error: str | None = None
try:
    from hfcore.bindings import _native as _loaded

    _native = _loaded
except ImportError as error:  # a source tree without a compiled module still has the references
    _native_error = f"the compiled module hfcore.bindings._native did not load: {error}"

_forced: ContextVar[Backend | None] = ContextVar("hfcore_backend", default=None)
_already_logged: set[tuple[str, str]] = set()


class BackendUnavailable(RuntimeError):
    """An explicitly chosen backend cannot serve here; the message says why."""


def native() -> ModuleType:
    """The compiled module; raises :class:`BackendUnavailable` with the reason if it is absent."""
    if _native is None:
        raise BackendUnavailable(_native_error)
    return _native


class use_backend(Switch[Backend | None]):
    """Force ``"reference"``, ``"cpu"`` or ``"cuda"`` for every op; ``None`` returns to automatic.

    Use it as a plain call (lasting) or as a context manager (restores on exit)::

        hf.use_backend("reference")
        with hf.use_backend("cpu"): ...

    Raises ValueError for an unknown name, :class:`BackendUnavailable` if it cannot serve here.
    """

    def __init__(self, name: Backend | None) -> None:
        if name is not None:
            if name not in get_args(Backend):
                raise ValueError(f"backend: got {name!r}, need one of {get_args(Backend)} or None")
            reason = _why_absent(name)
            if reason is not None:
                raise BackendUnavailable(f"backend {name!r} was chosen but {reason}")
        super().__init__(_forced, name)


def forced_backend() -> Backend | None:
    """The backend the user forced, or None."""
    return _forced.get()


def _why_absent(name: Backend) -> str | None:
    """Why the backend cannot serve on this machine at all, or None if it can."""
    if name == "cpu":
        return _native_error
    if name == "cuda":
        return cuda.why_no_device() or next(
            filter(None, (_why_no_cuda_form(op, None) for op in OPS)), None
        )
    return None


def _why_no_cuda_form(op: str, device: torch.device | None) -> str | None:
    """Why the CUDA form of an op cannot serve on a device (None: the current one)."""
    if _family(op) in CUDA_CPP:
        return cuda.why_unavailable(_family(op), device)
    return triton_backend.why_unavailable(device)


def _why_declined(
    backend: Backend, op: str, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Why this backend cannot take data of this kind, or None if it can."""
    if backend not in OPS[op]:
        return f"{op} has no {backend} form in this release"
    if backend == "reference":
        return None
    if device.type != backend:
        # The reason that helps: no CUDA at all comes before where the data is.
        return _why_absent(backend) or f"the data is on {device}"
    absent = _native_error if backend == "cpu" else _why_no_cuda_form(op, device)
    if absent is not None:
        return absent
    if backend == "cuda" and _family(op) in CUDA_CPP:
        return None if dtype == torch.float32 else f"it computes in float32, not {dtype}"
    if dtype not in (torch.float32, torch.float64):
        return f"it computes in float32 and float64, not {dtype}"
    return None


def _family(op: str) -> str:
    """The folder of ``kernels/`` that an op belongs to."""
    return op.partition(".")[0]


def choose(op: str, tensor: torch.Tensor) -> Backend:
    """The backend that serves ``op`` on data like ``tensor [...]``, by its device and dtype."""
    forced = _forced.get()
    if forced is not None:
        reason = _why_declined(forced, op, tensor.device, tensor.dtype)
        if reason is not None:
            raise BackendUnavailable(f"backend {forced!r} was chosen for {op} but {reason}")
        return forced
    wanted = _fastest(tensor.device)
    reason = _why_declined(wanted, op, tensor.device, tensor.dtype)
    if reason is None:
        return wanted
    if (op, reason) not in _already_logged:
        _already_logged.add((op, reason))
        logger.info("%s falls back to the reference: %s", op, reason)
    return "reference"


def _fastest(device: torch.device) -> Backend:
    return "cuda" if device.type == "cuda" else "cpu"


def explain(op: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    """(implementation, reason) of :func:`choose` for data on ``device``; for ``hfcore info``.

    On a machine without a CUDA device nothing serves ``"cuda"``: the implementation is "none".
    """
    if device == "cuda" and (reason := cuda.why_no_device()) is not None:
        return "none", reason
    there = torch.device(device)
    forced = _forced.get()
    backend = forced if forced is not None else _fastest(there)
    declined = _why_declined(backend, op, there, dtype)
    if forced is not None:
        return forced, "forced by use_backend" + (f", but {declined}" if declined else "")
    if declined is not None:
        return "reference", declined
    if backend == "cpu":
        return "cpu", f"compiled kernels, {native().isa()} instruction set"
    return "cuda", _cuda_form(op, there)


def _cuda_form(op: str, device: torch.device) -> str:
    """The kernels that serve an op on CUDA, in words."""
    if _family(op) in CUDA_CPP:
        return f"CUDA C++ kernels{tensor_cores.in_words(op, device)}"
    if _family(op) not in CUDA_CPP_TOO:
        return "Triton kernels"
    compiled = cuda.why_unavailable(_family(op), device) is None
    if triton_backend.matmul_precision() == "bf16x6":
        exact = "CUDA C++" if compiled else "Triton"
        return f"Triton kernels in six bfloat16 products, or {exact} in true float32 where faster"
    return "CUDA C++ kernels in true float32, Triton otherwise" if compiled else "Triton kernels"
