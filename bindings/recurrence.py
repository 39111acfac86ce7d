"""Recurrence ops: checks of arguments, choice of implementation (``forms/recurrence``).

Every array carries a leading group axis G; length 1 shares it among the group (nothing is
copied for that). Shapes and formulas are those of ``kernels/recurrence/reference.py``.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hfcore.bindings.checks import (
    check_choice,
    check_group,
    check_out,
    check_positive,
    check_tensor,
)
from hfcore.bindings.dispatch import choose
from hfcore.bindings.forms.recurrence import RecurrenceForm, form
from hfcore.bindings.graphs import recording
from hfcore.bindings.scratch import Scratch
from hfcore.kernels.recurrence import (
    NONLINEARITIES,
    Curvature,
    ForwardPass,
    RnnShape,
    RnnWeights,
    split_flat,
)
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
        if type(value) is not float and not isinstance(value, Real):
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
    _check_steps(steps, x)
    if out is not None and not states:
        raise ValueError("out: got a buffer for the states with states=False, need states=True")
    if out is not None:
        check_out(out, (G, *x.shape[1:3], shape.H), x)
    serving = form(choose("recurrence.rnn_forward", x))
    return serving.rnn_forward(x, w, nonlinearity, steps, G, states=states, out=out)


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
    if out is not None:
        check_out(out, (G, T, B, H), u)
    serving = form(choose("recurrence.linear_scan", u))
    return serving.linear_scan(u, d, W, a, reverse, G, out=out)


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
    size = G, shape.numel
    if out is not None:
        check_out(out, size, x)
    at = ForwardPass(x, h, w, nonlinearity, steps)
    return form(choose("recurrence.rnn_backward", x)).rnn_backward(at, gs, size, out=out)


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
    structural: float | Tensor = 0.0,
    damping: float = 0.0,
    out: Tensor | None = None,
    accumulate: bool = False,
    stop: Tensor | None = None,
    scratch: Scratch | None = None,
) -> Tensor:
    """scale·(Jᵀ L'' J + structural·Jᵀ_t D'' J_t) v + damping·v for flat tangents ``v [G,N]``.

    ``c [G,T_out,B,k]`` is the diagonal of L'', ``rank_one`` subtracts c cᵀ (softmax);
    ``h [G,T,B,H]`` are the states that :func:`rnn_forward` gave for the same ``x`` and ``w``.
    J_t is the Jacobian of the hidden pre-activations t, D'' = e'(t); ``structural`` may be a tensor
    ``[]`` like x, which CUDA kernels read when they run. Without ``h`` the states are
    recomputed and never held whole: the compiled CPU kernel keeps windows and checkpoints of the
    sequences it works on, the others all steps of a few sequences.

    ``accumulate`` adds the result to ``out``. With a ``scratch`` kept between calls of one shape
    the CUDA kernels allocate in the first call only.

    ``stop``, int32 ``[1]`` on the device, is for solvers that run there: where it is not zero the
    CUDA kernels do nothing and ``out`` stays as it is. The other backends do not look at it.
    """
    shape, _ = _check_pass(x, h, w, nonlinearity, steps, recomputed=True, c=c)
    check_tensor("v", v, ["G", shape.numel], like=x)
    G = check_group(x=x, h=h, **w._asdict(), c=c, v=v)
    if isinstance(structural, Tensor) and structural.ndim == 0:
        check_tensor("structural", structural, [], like=x)
    else:
        _check_factors(structural=structural)
    _check_factors(scale=scale, damping=damping)
    if stop is not None:
        check_tensor("stop", stop, [1], dtype=torch.int32)
    if accumulate and out is None:
        raise ValueError("out: got None, need a buffer to accumulate in")
    size = G, v.shape[1]
    if out is not None:
        check_out(out, size, x)
    at = ForwardPass(x, h, w, nonlinearity, steps)
    curvature = Curvature(c, rank_one, scale, structural, damping)
    serving = form(choose("recurrence.rnn_gauss_newton", x))
    if h is None and not serving.RECOMPUTES_STATES:
        return _by_chunks(serving, at, v, curvature, size, out, accumulate, stop, scratch)
    return serving.rnn_gauss_newton(
        at, v, curvature, size, out=out, accumulate=accumulate, stop=stop, scratch=scratch
    )


def _by_chunks(
    serving: RecurrenceForm, at: ForwardPass, v: Tensor, curvature: Curvature,
    size: tuple[int, int], out: Tensor | None, accumulate: bool, stop: Tensor | None,
    scratch: Scratch | None,
) -> Tensor:  # fmt: skip
    """:func:`rnn_gauss_newton` on chunks of sequences whose states are made and dropped."""
    x, _, w, nonlinearity, steps = at
    nets, H = check_group(x=x, **w._asdict()), w.W_hh.shape[1]
    count = max(1, RECOMPUTED_BYTES // (nets * x.shape[1] * H * x.element_size()))
    out = x.new_empty(size) if out is None else out
    for start in range(0, x.shape[2], count):
        cases = slice(start, start + count)
        part = x[:, :, cases]
        h, _ = serving.rnn_forward(part, w, nonlinearity, steps, nets, states=True, out=None)
        serving.rnn_gauss_newton(
            at._replace(x=part, h=h),
            v,
            curvature._replace(
                c=curvature.c[:, :, cases], damping=0.0 if start else curvature.damping
            ),
            size,
            out=out,
            accumulate=accumulate or start > 0,
            stop=stop,
            scratch=scratch,
        )
    return out


def _check_pass(
    x: Tensor,
    h: Tensor | None,
    w: RnnWeights,
    nonlinearity: str,
    steps: Tensor | None,
    *,
    recomputed: bool = False,
    **at_outputs: Tensor,
) -> tuple[RnnShape, int]:
    """Checks common to the ops on a forward pass, whose h may be None if states are recomputed.

    Gives the shape of a net and the group size.
    """
    _check_input(x)
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    _, T, B, _ = x.shape
    shape = _check_weights(w, x)
    if h is not None or not recomputed:
        check_tensor("h", h, ["G", T, B, shape.H], like=x)
    T_out = _check_steps(steps, x)
    for name, value in at_outputs.items():
        check_tensor(name, value, ["G", T_out, B, shape.k], like=x)
    return shape, check_group(x=x, h=h, **w._asdict(), **at_outputs)
