"""The recurrence ops of the compiled module: CPU, float32 and float64.

Signatures and shapes: ``RecurrenceForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings import _native
from hfcore.bindings.checks import dense
from hfcore.bindings.native_calls import call
from hfcore.bindings.threads import kernel_threads
from hfcore.kernels.recurrence import NONLINEARITIES, Curvature, ForwardPass, RnnWeights
from hfcore.kernels.scratch import Scratch

# The kernel keeps windows and checkpoints of the sequences that it works on.
RECOMPUTES_STATES = True


def rnn_forward(
    x: Tensor, w: RnnWeights, nonlinearity: str, steps: Tensor | None, G: int, *, states: bool,
    out: Tensor | None,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    T, B = x.shape[1:3]
    k, H = w.W_yh.shape[1:]
    h = (x.new_empty(G, T, B, H) if out is None else out) if states else None
    s = x.new_empty(G, T if steps is None else steps.numel(), B, k)
    call(
        _native.rnn_forward,
        dense(x),
        *map(dense, w),
        None if steps is None else dense(steps),
        NONLINEARITIES.index(nonlinearity),
        h,
        s,
        kernel_threads(),
    )
    return h, s


def linear_scan(
    u: Tensor, d: Tensor, W: Tensor, a: Tensor | None, reverse: bool, G: int, *,
    out: Tensor | None,
) -> Tensor:  # fmt: skip
    y = u.new_empty(G, *u.shape[1:]) if out is None else out
    call(
        _native.linear_scan,
        dense(u),
        dense(d),
        dense(W),
        None if a is None else dense(a),
        bool(reverse),
        y,
        kernel_threads(),
    )
    return y


def rnn_backward(
    at: ForwardPass, gs: Tensor, size: tuple[int, int], *, out: Tensor | None
) -> Tensor:
    x, h, w, nonlinearity, steps = at
    assert h is not None
    gradient = x.new_empty(size) if out is None else out
    call(
        _native.rnn_backward,
        dense(x),
        dense(h),
        *map(dense, w),
        dense(gs),
        None if steps is None else dense(steps),
        NONLINEARITIES.index(nonlinearity),
        gradient,
        kernel_threads(),
    )
    return gradient


def rnn_gauss_newton(
    at: ForwardPass, v: Tensor, curvature: Curvature, size: tuple[int, int], *,
    out: Tensor | None, accumulate: bool, stop: Tensor | None, scratch: Scratch | None,
) -> Tensor:  # fmt: skip
    x, h, w, nonlinearity, steps = at
    c, rank_one, scale, structural, damping = curvature
    product = x.new_empty(size) if out is None or accumulate else out
    call(
        _native.rnn_gauss_newton,
        dense(x),
        None if h is None else dense(h),
        *map(dense, w),
        dense(v),
        dense(c),
        bool(rank_one),
        None if steps is None else dense(steps),
        NONLINEARITIES.index(nonlinearity),
        scale,
        float(structural),
        damping,
        product,
        kernel_threads(),
    )
    return out.add_(product) if accumulate and out is not None else product
