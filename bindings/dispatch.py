"""Which implementation serves an op: the user's explicit choice, or the fastest that can.

An explicit choice that cannot be honoured raises with the reason; the automatic choice falls
back and logs the reason once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType, TracebackType
from typing import Literal, get_args

import torch

logger = logging.getLogger("hfcore")

Backend = Literal["reference", "cpu", "cuda"]

# Every op of the package and the backends that implement it today.
OPS: dict[str, tuple[Backend, ...]] = {
    "recurrence.rnn_forward": ("reference", "cpu"),
    "recurrence.linear_scan": ("reference", "cpu"),
    "recurrence.rnn_backward": ("reference", "cpu"),
    "recurrence.rnn_gauss_newton": ("reference", "cpu"),
    "loss.loss_value": ("reference", "cpu"),
    "loss.loss_gradient": ("reference", "cpu"),
    "loss.loss_curvature": ("reference", "cpu"),
    "loss.loss_hessian_product": ("reference", "cpu"),
    "conjugate_gradient.cg_update": ("reference", "cpu"),
    "conjugate_gradient.cg_direction": ("reference", "cpu"),
    "conjugate_gradient.dot": ("reference", "cpu"),
}

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


class use_backend:
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
        self._token = _forced.set(name)

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _forced.reset(self._token)


def forced_backend() -> Backend | None:
    """The backend the user forced, or None."""
    return _forced.get()


def _why_absent(name: Backend) -> str | None:
    """Why the backend cannot serve on this machine at all, or None if it can."""
    if name == "cpu":
        return _native_error
    if name == "cuda":
        return "its kernels are not part of this release"
    return None


def _why_declined(backend: Backend, op: str, tensor: torch.Tensor) -> str | None:
    """Why this backend cannot take this call, or None if it can."""
    if backend not in OPS[op]:
        return f"{op} has no {backend} form in this release"
    absent = _why_absent(backend)
    if absent is not None:
        return absent
    if backend == "cpu":
        if tensor.device.type != "cpu":
            return f"the data is on {tensor.device}"
        if tensor.dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 and float64, not {tensor.dtype}"
    return None


def choose(op: str, tensor: torch.Tensor) -> Backend:
    """The backend that serves ``op`` on data like ``tensor``."""
    forced = _forced.get()
    if forced is not None:
        reason = _why_declined(forced, op, tensor)
        if reason is not None:
            raise BackendUnavailable(f"backend {forced!r} was chosen for {op} but {reason}")
        return forced
    wanted: Backend = "cuda" if tensor.device.type == "cuda" else "cpu"
    reason = _why_declined(wanted, op, tensor)
    if reason is None:
        return wanted
    if (op, reason) not in _already_logged:
        _already_logged.add((op, reason))
        logger.info("%s falls back to the reference: %s", op, reason)
    return "reference"


def explain(op: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    """(implementation, reason) that :func:`choose` would give; for ``hfcore info``."""
    probe = torch.empty(0, dtype=dtype, device=device)
    forced = _forced.get()
    if forced is not None:
        return forced, "forced by use_backend"
    wanted: Backend = "cuda" if device == "cuda" else "cpu"
    reason = _why_declined(wanted, op, probe)
    if reason is not None:
        return "reference", reason
    if wanted == "cpu":
        return "cpu", f"compiled kernels, {native().isa()} instruction set"
    return wanted, "fused kernels"


def run(op: str, tensor: torch.Tensor, table: dict[Backend, Callable[[], object]]) -> object:
    """Call the implementation of ``op`` that serves ``tensor``."""
    return table[choose(op, tensor)]()
