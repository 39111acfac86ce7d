"""CUDA graphs and CG's kernels without a GPU: torch ops are noted with the memory they work on.

A replay does the same ops on the same memory with the numbers they were given; what a value of
Python has become since, or where a later tensor lies, it does not see. Work that is recorded is of
torch's ops alone, as on the backend "reference".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hfcore.bindings import device_conjugate_gradient as bindings
from hfcore.bindings import graphs
from hfcore.kernels.conjugate_gradient import gpu_triton as cg
from hfcore.optimisers.inner_solve import device as hook

# What gives the host a value: a stream that is captured refuses it.
READS = ("aten._local_scalar_dense", "aten.equal", "aten.is_nonzero", "aten.nonzero")


class Tape(TorchDispatchMode):
    """Notes ops with their arguments and results, and does them again."""

    def __init__(self) -> None:
        super().__init__()
        self._ops: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func.overloadpacket) in READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self._ops.append((func, args, kwargs or {}, _tensors(result)))
        return result

    def replay(self) -> None:
        for func, args, kwargs, results in self._ops:
            for place, value in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                if value.data_ptr() != place.data_ptr():  # neither a view nor in place
                    place.copy_(value)


def _tensors(result: Any) -> list[Tensor]:
    several = result if isinstance(result, list | tuple) else [result]
    return [value for value in several if isinstance(value, Tensor)]


class RecordedOnCpu:
    """Solves on the CPU as on a device, with recorded iterations; counts what is recorded.

    ``refusal``: why nothing can be recorded.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded = self.replayed = 0
        self.refusal: str | None = None
        monkeypatch.setattr(hook, "serves", lambda b: True)
        monkeypatch.setattr(bindings, "recordable", lambda device: True)
        monkeypatch.setattr(graphs, "record", self._record)
        monkeypatch.setattr(graphs._Pool, "_all", {})
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
        for kernel in (start, start_residual, iterate, go_on):
            monkeypatch.setattr(cg, kernel.__name__, kernel)

    def _record(
        self, work: Callable[[], Any], pool: object, device: torch.device
    ) -> tuple[Callable[[], None], Any]:
        if self.refusal is not None:
            raise RuntimeError(self.refusal)
        self.recorded += 1
        tape = Tape()
        with tape:
            result = work()
        done = True  # by the noting, as a GPU does it by the first replay

        def replay() -> None:
            nonlocal done
            self.replayed += 1
            if not done:
                tape.replay()
            done = False

        return replay, result


# ---------------------------------------------------------------------------- CG in torch's ops


def start(w: Any) -> None:
    w.counters.zero_()
    w.counters[cg.ZERO_START].copy_((w.x == 0).all())


def start_residual(w: Any, inverse: Callable[..., object] | None = None) -> None:
    zero = w.counters[cg.ZERO_START] != 0
    w.r.copy_(w.b - torch.where(zero, 0.0, w.Ap))
    if inverse is not None:
        inverse(w.r, w.z)
    elif w.M is not None:
        w.z.copy_(w.r / w.M)
    w.p.copy_(w.z)
    rz = _dot(w.r, w.z)
    w.scalars[cg._S_RZ.value].copy_(rz)
    w.history[0].copy_(-0.5 * _dot(w.x, w.r + w.b))
    w.counters[cg.PRODUCTS].copy_(1 - w.counters[cg.ZERO_START])
    stop = torch.where(rz == 0, cg.RESIDUAL, 0)
    w.counters[cg.STOP].copy_(torch.where(rz.isfinite(), stop, cg.NONFINITE))


def iterate(w: Any, inverse: Callable[..., object] | None = None) -> None:
    S, counters = w.scalars, w.counters
    going = counters[cg.STOP] == 0
    pAp, rz = _dot(w.p, w.Ap), S[cg._S_RZ.value].clone()
    moves = going & (pAp > 0) & pAp.isfinite()
    counters[cg.PRODUCTS].add_(going)
    alpha = (rz / pAp).to(w.x.dtype)
    _put(moves, w.x, w.x + alpha * w.p)
    _put(moves, w.r, w.r - alpha * w.Ap)
    if inverse is not None:
        inverse(w.r, w.z)
    elif w.M is not None:
        _put(moves, w.z, w.r / w.M)
    i = (counters[cg.ITERATIONS] + 1).clamp(max=len(w.history) - 1).long()
    new, phi = _dot(w.r, w.z), -0.5 * _dot(w.x, w.r + w.b)
    w.history.index_copy_(0, i[None], torch.where(moves, phi, w.history[i[None]]))
    k = w.lookback[i[None]][0]
    then = w.history[(i - k)[None]][0]
    slow = (phi - then) / phi < k * S[cg._S_TOLERANCE.value]
    reason = torch.where(i >= len(w.history) - 1, cg.MAX_ITERATIONS, 0)
    reason = torch.where((k > 0) & (then < 0) & (phi < 0) & slow, cg.PROGRESS, reason)
    small = _dot(w.r, w.r).sqrt() < S[cg._S_RESIDUAL.value]
    reason = torch.where(small, cg.RESIDUAL, reason)
    reason = torch.where(phi.isfinite() & new.isfinite(), reason, cg.BAD_ITERATE)
    ended = torch.where(pAp.isfinite(), cg.NONPOSITIVE, cg.NONFINITE)
    stop = torch.where(moves, reason, ended).to(counters.dtype)
    counters[cg.STOP].copy_(torch.where(going, stop, counters[cg.STOP]))
    counters[cg.ITERATIONS].copy_(torch.where(moves, i, counters[cg.ITERATIONS]))
    _put(moves, S[cg._S_BETA.value], new / rz)
    _put(moves, S[cg._S_RZ.value], new)
    _put(moves, counters[cg.SLOT], w.slots[i[None]][0])
    _direction(w)


def go_on(w: Any) -> None:
    w.counters[cg.STOP].fill_(cg.RUNNING)
    w.counters[cg.SLOT].fill_(-1)
    _direction(w)


def _direction(w: Any) -> None:
    going, slot = w.counters[cg.STOP] == 0, w.counters[cg.SLOT]
    _put(going, w.p, w.z + w.scalars[cg._S_BETA.value].to(w.p.dtype) * w.p)
    if len(w.snapshots):
        at = slot.clamp(min=0).long()[None]
        kept = torch.where(going & (slot >= 0), w.x, w.snapshots[at][0])
        w.snapshots.index_copy_(0, at, kept[None])


def _put(where: Tensor, place: Tensor, value: Tensor) -> None:
    place.copy_(torch.where(where, value, place))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).sum()
