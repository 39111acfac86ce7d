"""Recurrence ops: shape checks, allocation, choice of implementation.

Every array carries a leading group axis G; length 1 shares it among the group (nothing is
copied for that). Shapes and formulas are those of ``kernels/recurrence/reference.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hfcore.bindings import cuda
from hfcore.bindings.checks import (
    check_choice,
    check_group,
    check_out,
    check_positive,
    check_tensor,
    dense,
)
from hfcore.bindings.dispatch import choose, native
from hfcore.bindings.graphs import recording
from hfcore.bindings.nvtx import annotate
from hfcore.bindings.threads import kernel_threads
from hfcore.bindings.triton_backend import torch_matmul
from hfcore.kernels.recurrence import RnnShape, RnnWeights, gpu, reference, split_flat
from hfcore.kernels.recurrence.gpu import Scratch
from hfcore.kernels.recurrence.reference import activation_derivative

__all__ = [
    "NONLINEARITIES",
    "RnnShape",
    "RnnWeights",
    "Scratch",
    "activation_derivative",
    "linear_scan",
    "rnn_backward",
    "rnn_forward",
    "rnn_gauss_newton",
    "split_flat",
]

# Bytes of states held at once where a product recomputes them.
RECOMPUTED_BYTES = 4 << 20

NONLINEARITIES = ("tanh", "logistic", "relu")

gpu.annotate = annotate

# Steps on a device that were found increasing, and for which T: looking again would wait for it.
_checked_steps = WeakTensorKeyDictionary()


def _check_floating(name: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise TypeError(f"{name}: got {value.dtype}, need a floating-point dtype")


def _check_input(x: Tensor) -> None:
    """Check ``x [G,T,B,n]`` by itself."""
    check_tensor("x", x, ["G", "T", "B", "n"])
    _check_floating("x", x)
    check_positive(T=x.shape[1], B=x.shape[2], n=x.shape[3])


def _check_weights(w: RnnWeights, x: Tensor) -> RnnShape:
    """Check the six parameters against each other and against ``x``; gives n, H, k."""
    if not isinstance(w, RnnWeights):
        raise TypeError(f"w: got {type(w).__name__}, need RnnWeights")
    check_tensor("W_hh", w.W_hh, ["G", "H", "H"], like=x)
    check_tensor("W_yh", w.W_yh, ["G", "k", "H"], like=x)
    shape = RnnShape(x.shape[-1], w.W_hh.shape[1], w.W_yh.shape[1])
    check_positive(H=shape.H, k=shape.k)
    for name, value, want in zip(RnnWeights._fields, w, shape.shapes, strict=True):
        check_tensor(name, value, ["G", *want], like=x)
    return shape


def _check_factors(**factors: object) -> None:
    """Check that scale, structural and damping are finite numbers; of any sign."""
    for name, value in factors.items():
        if not isinstance(value, Real):
            raise TypeError(f"{name}: got {type(value).__name__}, need a float")
        if not math.isfinite(value):
            raise ValueError(f"{name}: got {value}, need a finite number")


def _check_steps(steps: Tensor | None, x: Tensor) -> int:
    """Number of output steps; ``steps`` is an increasing int64 index tensor or None for all."""
    T = x.shape[1]
    if steps is None:
        return T
    check_tensor("steps", steps, ["T_out"], dtype=torch.int64)
    if steps.device != x.device:
        raise ValueError(f"steps: is on {steps.device}, need {x.device} like the other arguments")
    if steps.numel() == 0:
        raise ValueError("steps: got no step, need at least one output step")
    version = None if steps.is_inference() else (steps._version, T)
    known = version is not None and _checked_steps.get(steps) == version
    if known or recording(steps):  # whoever records has run the same before
        return steps.numel()
    # The compiled module checks order and range again; this gives the reference the same error.
    if int(steps[0]) < 0 or int(steps[-1]) >= T or bool((steps.diff() <= 0).any()):
        given = ",".join(map(str, steps[:8].tolist())) + (",..." if steps.numel() > 8 else "")
        raise ValueError(f"steps: got [{given}], need increasing indices within 0..{T - 1}")
    if version is not None and steps.device.type != "cpu":
        _checked_steps[steps] = version
    return steps.numel()


def _filled(out: Tensor | None, value: Tensor, G: int, accumulate: bool = False) -> Tensor:
    """What was computed, on the whole group, in (or added to) the caller's buffer if any."""
    if value is out:
        return value
    value = value.expand(G, *value.shape[1:])
    if out is None:
        return value
    check_out(out, value.shape, value)
    return out.add_(value) if accumulate else out.copy_(value)


@contextmanager
def _serving(op: str, x: Tensor) -> Iterator[cuda.Launcher]:
    """The launcher for ``x``'s device; torch's large products inside obey the precision policy."""
    with cuda.serving(op, "recurrence", x.device) as launch, torch_matmul():
        yield launch


def _whole(out: Tensor | None, G: int, *arrays: Tensor | None) -> Tensor | None:
    """``out`` if a kernel can fill it: not where one net is expanded to G and computed once."""
    distinct = max(1 if a.stride(0) == 0 else a.shape[0] for a in arrays if a is not None)
    return out if distinct == G else None


def _dense_steps(steps: Tensor | None) -> Tensor | None:
    return None if steps is None else dense(steps)


def rnn_forward(
    x: Tensor,
    w: RnnWeights,
    *,
    nonlinearity: str = "tanh",
    steps: Tensor | None = None,
    states: bool = True,
    out: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Hidden states ``h [G,T,B,H]`` (None unless ``states``) and outputs ``s [G,T_out,B,k]``.

    ``x [G,T,B,n]``; ``steps`` int64 ``[T_out]`` picks output steps, None means all T. With ``out``
    the states are written there.
    """
    _check_input(x)
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    shape = _check_weights(w, x)
    G = check_group(x=x, **w._asdict())
    T_out = _check_steps(steps, x)
    if out is not None and not states:
        raise ValueError("out: got a buffer for the states with states=False, need states=True")
    T, B = x.shape[1:3]
    backend = choose("recurrence.rnn_forward", x)
    if backend == "reference":
        h, s = reference.rnn_forward(x, w, nonlinearity, steps)
        return (_filled(out, h, G) if states else None), _filled(None, s, G)
    if backend == "cuda":
        out = None if out is None else check_out(out, (G, T, B, shape.H), x)
        with _serving("recurrence.rnn_forward", x) as launch, annotate("forward"):
            states_or_none, s = gpu.rnn_forward(
                launch,
                x,
                w,
                nonlinearity,
                steps,
                states=states,
                out=_whole(out, G, x, *w),
                shared_limit=launch.shared_limit,
            )
            h_out = None if states_or_none is None else _filled(out, states_or_none, G)
            return h_out, _filled(None, s, G)
    h_out = check_out(out, (G, T, B, shape.H), x) if states else None
    s_out = x.new_empty(G, T_out, B, shape.k)
    native().rnn_forward(
        dense(x),
        *map(dense, w),
        _dense_steps(steps),
        NONLINEARITIES.index(nonlinearity),
        h_out,
        s_out,
        kernel_threads(),
    )
    return h_out, s_out


def linear_scan(
    u: Tensor,
    d: Tensor,
    W: Tensor,
    a: Tensor | None = None,
    *,
    reverse: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """y_t = d_t ⊙ (y_{t∓1} W + u_t) + a_t for ``u, d, a, y [G,T,B,H]``, ``W [G,H,H]``."""
    check_tensor("u", u, ["G", "T", "B", "H"])
    _check_floating("u", u)
    T, B, H = u.shape[1:]
    check_positive(T=T, B=B, H=H)
    check_tensor("d", d, ["G", T, B, H], like=u)
    check_tensor("W", W, ["G", H, H], like=u)
    if a is not None:
        check_tensor("a", a, ["G", T, B, H], like=u)
    G = check_group(u=u, d=d, W=W, a=a)
    backend = choose("recurrence.linear_scan", u)
    if backend == "reference":
        return _filled(out, reference.linear_scan(u, d, W, a, reverse), G)
    if backend == "cuda":
        out = None if out is None else check_out(out, (G, T, B, H), u)
        with _serving("recurrence.linear_scan", u) as launch:
            y = gpu.linear_scan(
                launch,
                u,
                d,
                W,
                a,
                reverse,
                out=_whole(out, G, u, d, W, a),
                shared_limit=launch.shared_limit,
            )
            return _filled(out, y, G)
    out = check_out(out, (G, T, B, H), u)
    native().linear_scan(
        dense(u),
        dense(d),
        dense(W),
        None if a is None else dense(a),
        bool(reverse),
        out,
        kernel_threads(),
    )
    return out


def rnn_backward(
    x: Tensor,
    h: Tensor,
    w: RnnWeights,
    gs: Tensor,
    *,
    nonlinearity: str = "tanh",
    steps: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Flat parameter gradient ``[G,N]`` by BPTT from ``gs = ∂L/∂s [G,T_out,B,k]``."""
    shape, G = _check_pass(x, h, w, nonlinearity, steps, gs=gs)
    backend = choose("recurrence.rnn_backward", x)
    if backend == "reference":
        return _filled(out, reference.rnn_backward(x, h, w, gs, nonlinearity, steps), G)
    if backend == "cuda":
        out = None if out is None else check_out(out, (G, shape.numel), x)
        with _serving("recurrence.rnn_backward", x) as launch:
            g = gpu.rnn_backward(
                launch,
                x,
                h,
                w,
                gs,
                nonlinearity,
                steps,
                out=_whole(out, G, x, h, *w, gs),
                shared_limit=launch.shared_limit,
            )
            return _filled(out, g, G)
    out = check_out(out, (G, shape.numel), x)
    native().rnn_backward(
        dense(x),
        dense(h),
        *map(dense, w),
        dense(gs),
        _dense_steps(steps),
        NONLINEARITIES.index(nonlinearity),
        out,
        kernel_threads(),
    )
    return out


def rnn_gauss_newton(
    x: Tensor,
    h: Tensor | None,
    w: RnnWeights,
    v: Tensor,
    c: Tensor,
    *,
    rank_one: bool = False,
    nonlinearity: str = "tanh",
    steps: Tensor | None = None,
    scale: float = 1.0,
    structural: float = 0.0,
    damping: float = 0.0,
    out: Tensor | None = None,
    accumulate: bool = False,
    stop: Tensor | None = None,
    scratch: Scratch | None = None,
) -> Tensor:
    """scale·(Jᵀ L'' J + structural·Jᵀ_t D'' J_t) v + damping·v for flat tangents ``v [G,N]``.

    ``c [G,T_out,B,k]`` is the diagonal of L'', ``rank_one`` subtracts c cᵀ (softmax);
    ``h [G,T,B,H]`` are the states that :func:`rnn_forward` gave for the same ``x`` and ``w``.
    J_t is the Jacobian of the hidden pre-activations t, D'' = e'(t). Without ``h`` the states are
    recomputed and never held whole: the compiled CPU kernel keeps windows and checkpoints of the
    sequences it works on, the others all steps of a few sequences.

    ``accumulate`` adds the result to ``out``. With a ``scratch`` kept between calls of one shape
    the CUDA kernels allocate in the first call only.

    ``stop``, int32 ``[1]`` on the device, is for solvers that run there: where it is not zero the
    CUDA kernels do nothing and ``out`` stays as it is. The other backends do not look at it.
    """
    shape, _ = _check_pass(x, h, w, nonlinearity, steps, c=c)
    check_tensor("v", v, ["G", shape.numel], like=x)
    G = check_group(x=x, h=h, **w._asdict(), c=c, v=v)
    _check_factors(scale=scale, structural=structural, damping=damping)
    if stop is not None:
        check_tensor("stop", stop, [1], dtype=torch.int32)
    if accumulate and out is None:
        raise ValueError("out: got None, need a buffer to accumulate in")
    backend = choose("recurrence.rnn_gauss_newton", x)
    if h is None and backend != "cpu":
        return _recomputed(
            x,
            w,
            v,
            c,
            rank_one,
            nonlinearity,
            steps,
            scale,
            structural,
            damping,
            out,
            accumulate,
            stop,
            scratch,
        )
    if backend == "reference":
        assert h is not None
        g = reference.rnn_gauss_newton(
            x, h, w, v, c, rank_one, nonlinearity, steps, scale, structural, damping
        )
        return _filled(out, g, G, accumulate)
    if backend == "cuda":
        assert h is not None
        out = None if out is None else check_out(out, (G, shape.numel), x)
        whole = _whole(out, G, x, h, *w, v, c)
        with _serving("recurrence.rnn_gauss_newton", x) as launch:
            g = gpu.rnn_gauss_newton(
                launch,
                x,
                h,
                w,
                v,
                c,
                rank_one,
                nonlinearity,
                steps,
                scale,
                structural,
                damping,
                out=whole,
                accumulate=accumulate and whole is not None,
                stop=stop,
                scratch=scratch,
                shared_limit=launch.shared_limit,
            )
            return _filled(out, g, G, accumulate)
    total = check_out(out, (G, shape.numel), x) if accumulate else None
    out = check_out(None if accumulate else out, (G, shape.numel), x)
    native().rnn_gauss_newton(
        dense(x),
        None if h is None else dense(h),
        *map(dense, w),
        dense(v),
        dense(c),
        bool(rank_one),
        _dense_steps(steps),
        NONLINEARITIES.index(nonlinearity),
        scale,
        structural,
        damping,
        out,
        kernel_threads(),
    )
    return out if total is None else total.add_(out)


def _recomputed(
    x: Tensor,
    w: RnnWeights,
    v: Tensor,
    c: Tensor,
    rank_one: bool,
    nonlinearity: str,
    steps: Tensor | None,
    scale: float,
    structural: float,
    damping: float,
    out: Tensor | None,
    accumulate: bool,
    stop: Tensor | None,
    scratch: Scratch | None,
) -> Tensor:
    """:func:`rnn_gauss_newton` on chunks of sequences whose states are made and dropped."""
    _check_input(x)
    shape = _check_weights(w, x)
    check_tensor("c", c, ["G", "T_out", x.shape[2], shape.k], like=x)
    total: Tensor | None = None
    one = check_group(x=x, **w._asdict()) * x.shape[1] * shape.H * x.element_size()
    size = max(1, RECOMPUTED_BYTES // one)
    for start in range(0, x.shape[2], size):
        cases = slice(start, start + size)
        h, _ = rnn_forward(x[:, :, cases], w, nonlinearity=nonlinearity, steps=steps)
        total = rnn_gauss_newton(
            x[:, :, cases],
            h,
            w,
            v,
            c[:, :, cases],
            rank_one=rank_one,
            nonlinearity=nonlinearity,
            steps=steps,
            scale=scale,
            structural=structural,
            damping=damping if total is None else 0.0,
            out=out if total is None else total,
            accumulate=accumulate or total is not None,
            stop=stop,
            scratch=scratch,
        )
    assert total is not None
    return total


def _check_pass(
    x: Tensor,
    h: Tensor | None,
    w: RnnWeights,
    nonlinearity: str,
    steps: Tensor | None,
    **at_outputs: Tensor,
) -> tuple[RnnShape, int]:
    """Checks common to the ops that run on cached activations: shape and group size."""
    _check_input(x)
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    _, T, B, _ = x.shape
    shape = _check_weights(w, x)
    if h is not None:
        check_tensor("h", h, ["G", T, B, shape.H], like=x)
    T_out = _check_steps(steps, x)
    for name, value in at_outputs.items():
        check_tensor(name, value, ["G", T_out, B, shape.k], like=x)
    return shape, check_group(x=x, h=h, **w._asdict(), **at_outputs)
