"""Recurrence ops: shape checks, allocation, choice of implementation.

Every array carries a leading group axis G; length 1 shares it among the group (nothing is
copied for that). Shapes and formulas are those of ``kernels/recurrence/reference.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings.checks import check_choice, check_positive, check_tensor, dense
from hfcore.bindings.dispatch import choose, native
from hfcore.kernels.recurrence import RnnShape, RnnWeights, reference, split_flat
from hfcore.kernels.recurrence.reference import activation_derivative

__all__ = [
    "NONLINEARITIES",
    "RnnShape",
    "RnnWeights",
    "activation_derivative",
    "linear_scan",
    "rnn_backward",
    "rnn_forward",
    "rnn_gauss_newton",
    "split_flat",
]

NONLINEARITIES = ("tanh", "logistic", "relu")


def _check_group(**arrays: Tensor | None) -> int:
    """The group size: the length of every leading axis that is not 1."""
    G = 1
    for name, a in arrays.items():
        if a is None:
            continue
        if a.shape[0] not in (1, G) and G != 1:
            raise ValueError(f"{name}: got group axis {a.shape[0]}, need 1 or {G}")
        G = max(G, a.shape[0])
    return G


def _check_weights(w: RnnWeights, x: Tensor) -> RnnShape:
    """Check the six parameters against each other and against ``x``; gives n, H, k."""
    check_tensor("W_hh", w.W_hh, ["G", "H", "H"], like=x)
    check_tensor("W_yh", w.W_yh, ["G", "k", "H"], like=x)
    shape = RnnShape(x.shape[-1], w.W_hh.shape[1], w.W_yh.shape[1])
    for name, value, want in zip(RnnWeights._fields, w, shape.shapes, strict=True):
        check_tensor(name, value, ["G", *want], like=x)
    return shape


def _check_steps(steps: Tensor | None, T: int) -> int:
    """Number of output steps; ``steps`` is an increasing int64 index tensor or None for all."""
    if steps is None:
        return T
    check_tensor("steps", steps, ["T_out"], dtype=torch.int64)
    if steps.numel() == 0:
        raise ValueError("steps: got no step, need at least one output step")
    # The compiled module checks order and range again; this gives the reference the same error.
    if int(steps[0]) < 0 or int(steps[-1]) >= T or bool((steps.diff() <= 0).any()):
        raise ValueError(f"steps: need increasing indices within 0..{T - 1}")
    return steps.numel()


def _check_out(out: Tensor | None, shape: tuple[int, ...], like: Tensor, name: str) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    check_tensor(name, out, shape, like=like)
    if not out.is_contiguous():
        raise ValueError(f"{name}: is not contiguous, need a C-contiguous output buffer")
    return out


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
    check_tensor("x", x, ["G", "T", "B", "n"])
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    check_positive(T=x.shape[1], B=x.shape[2], n=x.shape[3])
    shape = _check_weights(w, x)
    G = _check_group(x=x, **w._asdict())
    T_out = _check_steps(steps, x.shape[1])
    if choose("recurrence.rnn_forward", x) == "reference":
        h, s = reference.rnn_forward(x, w, nonlinearity, steps)
        if out is not None and states:
            h = _check_out(out, tuple(h.shape), x, "out").copy_(h)
        return (h if states else None), s
    T, B = x.shape[1:3]
    h_out = _check_out(out, (G, T, B, shape.H), x, "out") if states else None
    s_out = x.new_empty(G, T_out, B, shape.k)
    native().rnn_forward(
        dense(x),
        *map(dense, w),
        steps,
        NONLINEARITIES.index(nonlinearity),
        h_out,
        s_out,
        torch.get_num_threads(),
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
    T, B, H = u.shape[1:]
    check_positive(T=T, B=B, H=H)
    check_tensor("d", d, ["G", T, B, H], like=u)
    check_tensor("W", W, ["G", H, H], like=u)
    if a is not None:
        check_tensor("a", a, ["G", T, B, H], like=u)
    G = _check_group(u=u, d=d, W=W, a=a)
    if choose("recurrence.linear_scan", u) == "reference":
        y = reference.linear_scan(u, d, W, a, reverse)
        return y if out is None else _check_out(out, (G, T, B, H), u, "out").copy_(y)
    out = _check_out(out, (G, T, B, H), u, "out")
    native().linear_scan(
        dense(u),
        dense(d),
        dense(W),
        None if a is None else dense(a),
        reverse,
        out,
        torch.get_num_threads(),
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
    shape, G = _check_pass(x, h, w, nonlinearity, steps, gs, "gs")
    if choose("recurrence.rnn_backward", x) == "reference":
        g = reference.rnn_backward(x, h, w, gs, nonlinearity, steps)
        return g if out is None else _check_out(out, (G, shape.numel), x, "out").copy_(g)
    out = _check_out(out, (G, shape.numel), x, "out")
    native().rnn_backward(
        dense(x),
        dense(h),
        *map(dense, w),
        dense(gs),
        steps,
        NONLINEARITIES.index(nonlinearity),
        out,
        torch.get_num_threads(),
    )
    return out


def rnn_gauss_newton(
    x: Tensor,
    h: Tensor,
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
) -> Tensor:
    """scale·(Jᵀ L'' J + structural·Jᵀ_t D'' J_t) v + damping·v for flat tangents ``v [G,N]``.

    ``c [G,T_out,B,k]`` is the diagonal of L'', ``rank_one`` subtracts c cᵀ (softmax);
    ``h [G,T,B,H]`` are the states that :func:`rnn_forward` gave for the same ``x`` and ``w``.
    J_t is the Jacobian of the hidden pre-activations t, D'' = e'(t).
    """
    shape, _ = _check_pass(x, h, w, nonlinearity, steps, c, "c")
    check_tensor("v", v, ["G", shape.numel], like=x)
    G = _check_group(x=x, h=h, **w._asdict(), c=c, v=v)
    if choose("recurrence.rnn_gauss_newton", x) == "reference":
        g = reference.rnn_gauss_newton(
            x, h, w, v, c, rank_one, nonlinearity, steps, scale, structural, damping
        )
        return g if out is None else _check_out(out, (G, shape.numel), x, "out").copy_(g)
    out = _check_out(out, (G, shape.numel), x, "out")
    native().rnn_gauss_newton(
        dense(x),
        dense(h),
        *map(dense, w),
        dense(v),
        dense(c),
        rank_one,
        steps,
        NONLINEARITIES.index(nonlinearity),
        scale,
        structural,
        damping,
        out,
        torch.get_num_threads(),
    )
    return out


def _check_pass(
    x: Tensor,
    h: Tensor,
    w: RnnWeights,
    nonlinearity: str,
    steps: Tensor | None,
    at_outputs: Tensor,
    name: str,
) -> tuple[RnnShape, int]:
    """Checks common to the ops that run on cached activations; gives shape and group size."""
    check_tensor("x", x, ["G", "T", "B", "n"])
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    T, B, n = x.shape[1:]
    check_positive(T=T, B=B, n=n)
    shape = _check_weights(w, x)
    check_tensor("h", h, ["G", T, B, shape.H], like=x)
    T_out = _check_steps(steps, T)
    check_tensor(name, at_outputs, ["G", T_out, B, shape.k], like=x)
    return shape, _check_group(x=x, h=h, **w._asdict(), **{name: at_outputs})
