"""The recurrence ops on CUDA C++ kernels, float32.

Signatures and shapes: ``RecurrenceForm``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from hfcore.bindings import cuda, tensor_cores
from hfcore.bindings.forms.results import filled, whole
from hfcore.bindings.nvtx import annotate
from hfcore.bindings.triton_backend import torch_matmul
from hfcore.kernels.recurrence import Curvature, ForwardPass, RnnWeights, gpu
from hfcore.kernels.scratch import Scratch

RECOMPUTES_STATES = False


def rnn_forward(
    x: Tensor, w: RnnWeights, nonlinearity: str, steps: Tensor | None, G: int, *, states: bool,
    out: Tensor | None,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    with _serving("recurrence.rnn_forward", x) as launch, annotate("forward"):
        h, s = gpu.rnn_forward(
            launch,
            x,
            w,
            nonlinearity,
            steps,
            states=states,
            out=whole(out, G, x, *w),
            shared_limit=launch.shared_limit,
            tensor=tensor_cores.launchers(x.device),
        )
        return None if h is None else filled(out, h, G), filled(None, s, G)


def linear_scan(
    u: Tensor, d: Tensor, W: Tensor, a: Tensor | None, reverse: bool, G: int, *,
    out: Tensor | None,
) -> Tensor:  # fmt: skip
    with _serving("recurrence.linear_scan", u) as launch:
        buffer = whole(out, G, u, d, W, a)
        limit = launch.shared_limit
        y = gpu.linear_scan(launch, u, d, W, a, reverse, out=buffer, shared_limit=limit)
        return filled(out, y, G)


def rnn_backward(
    at: ForwardPass, gs: Tensor, size: tuple[int, int], *, out: Tensor | None
) -> Tensor:
    with _serving("recurrence.rnn_backward", at.x) as launch:
        gradient = gpu.rnn_backward(
            launch,
            at,
            gs,
            out=whole(out, size[0], at.x, at.h, *at.w, gs),
            shared_limit=launch.shared_limit,
            tensor=tensor_cores.launchers(at.x.device),
            annotate=annotate,
        )
        return filled(out, gradient, size[0])


def rnn_gauss_newton(
    at: ForwardPass, v: Tensor, curvature: Curvature, size: tuple[int, int], *,
    out: Tensor | None, accumulate: bool, stop: Tensor | None, scratch: Scratch | None,
) -> Tensor:  # fmt: skip
    buffer = whole(out, size[0], at.x, at.h, *at.w, v, curvature.c)
    with _serving("recurrence.rnn_gauss_newton", at.x) as launch:
        product = gpu.rnn_gauss_newton(
            launch,
            at,
            v,
            curvature,
            out=buffer,
            accumulate=accumulate and buffer is not None,
            stop=stop,
            scratch=scratch,
            shared_limit=launch.shared_limit,
            tensor=tensor_cores.launchers(at.x.device),
            annotate=annotate,
        )
        return filled(out, product, size[0], accumulate)


@contextmanager
def _serving(op: str, x: Tensor) -> Iterator[cuda.Launcher]:
    """The launcher for ``x``'s device; torch's large products inside obey the precision policy."""
    with cuda.serving(op, "recurrence", x.device) as launch, torch_matmul():
        yield launch
