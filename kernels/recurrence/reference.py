"""Plain torch forms of the recurrence ops: any device, any floating dtype.

A leading group axis G is on every array; an axis of length 1 is shared by the group.
Time runs along the second axis, t = 0 .. T-1, and ``y_{-1} = 0``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.kernels.recurrence.layout import (
    Curvature,
    ForwardPass,
    RnnShape,
    RnnWeights,
    split_flat,
)


def activation(t: Tensor, nonlinearity: str) -> Tensor:
    """h = e(t) ``[...]`` of any shape."""
    if nonlinearity == "tanh":
        return torch.tanh(t)
    if nonlinearity == "logistic":
        return torch.sigmoid(t)
    return torch.relu(t)


def activation_derivative(h: Tensor, nonlinearity: str) -> Tensor:
    """d = e'(t), recomputed from h = e(t) ``[...]`` of any shape; 0 at the kink of relu."""
    if nonlinearity == "tanh":
        return 1 - h * h
    if nonlinearity == "logistic":
        return h * (1 - h)
    return (h > 0).to(h.dtype)


def _at(steps: Tensor | None, y: Tensor) -> Tensor:
    """The chosen output steps of ``y [G,T,...]``."""
    return y if steps is None else y[:, steps]


def _scatter(steps: Tensor | None, g: Tensor, T: int) -> Tensor:
    """Adjoint of :func:`_at`: zeros at every step that has no output."""
    if steps is None:
        return g
    full = g.new_zeros(g.shape[0], T, *g.shape[2:])
    full[:, steps] = g
    return full


def _previous(h: Tensor) -> Tensor:
    """h_{t-1}, with zeros at the first step."""
    return torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)


def _times(y: Tensor, W: Tensor) -> Tensor:
    """``y [G,T,B,i] @ W [G,i,j]`` for every step."""
    return torch.matmul(y, W.unsqueeze(1))


def _bias(b: Tensor) -> Tensor:
    return b[:, None, None, :]


def _shared_like(u: Tensor, W: Tensor) -> Tensor:
    """``u [G,...]`` with W's group axis where u's is 1: the first step does not meet W."""
    return u.expand(max(u.shape[0], W.shape[0]), *u.shape[1:])


def rnn_forward(
    x: Tensor, w: RnnWeights, nonlinearity: str, steps: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h_t = e(W_hx x_t + W_hh h_{t-1} + b_h) ``[G,T,B,H]``, s_t = W_yh h_t + b_y ``[G,T_out,B,k]``.

    At the first step b_init stands for W_hh h_{t-1}. ``x [G,T,B,n]``, ``steps`` int64 ``[T_out]``.
    """
    u = _shared_like(_times(x, w.W_hx.mT) + _bias(w.b_h), w.W_hh)
    h: list[Tensor] = []
    for t in range(x.shape[1]):
        back = w.b_init.unsqueeze(1) if t == 0 else torch.matmul(h[-1], w.W_hh.mT)
        h.append(activation(u[:, t] + back, nonlinearity))
    states = torch.stack(h, dim=1)
    return states, _times(_at(steps, states), w.W_yh.mT) + _bias(w.b_y)


def linear_scan(u: Tensor, d: Tensor, W: Tensor, a: Tensor | None, reverse: bool) -> Tensor:
    """y_t = d_t * (y_{t-1} W + u_t) + a_t ``[G,T,B,H]``, or with y_{t+1} when ``reverse``.

    ``u, d, a [G,T,B,H]``, ``W [G,H,H]``.
    """
    T = u.shape[1]
    u = _shared_like(u, W)
    y: list[Tensor] = [u.new_empty(0)] * T
    carry: Tensor | None = None
    for t in reversed(range(T)) if reverse else range(T):
        pre = u[:, t] if carry is None else torch.matmul(carry, W) + u[:, t]
        carry = d[:, t] * pre
        if a is not None:
            carry = carry + a[:, t]
        y[t] = carry
    return torch.stack(y, dim=1)


def _parameter_gradient(
    gt: Tensor, gs: Tensor, h: Tensor, x: Tensor, steps: Tensor | None, shape: RnnShape
) -> Tensor:
    """G = gtᵀ·[x, h_{t-1}, 1] and gsᵀ·[h, 1], summed over time and batch, as flat ``[G,N]``."""
    G = max(a.shape[0] for a in (gt, gs, h, x))
    gt, gs, h, x = (a.expand(G, *a.shape[1:]) for a in (gt, gs, h, x))

    def outer(left: Tensor, right: Tensor) -> Tensor:
        return (left.flatten(1, 2).mT @ right.flatten(1, 2)).flatten(1)

    return torch.cat(
        [
            outer(gt, x),
            outer(gt, _previous(h)),
            outer(gs, _at(steps, h)),
            gt.sum((1, 2)),
            gt[:, 0].sum(1),
            gs.sum((1, 2)),
        ],
        dim=1,
    )


def rnn_backward(at: ForwardPass, gs: Tensor) -> Tensor:
    """Backpropagation through time of gs = ∂L/∂s ``[G,T_out,B,k]`` to the gradient ``[G,N]``."""
    (x, _, w, nonlinearity, steps), h = at, at.states
    shape = RnnShape(x.shape[-1], h.shape[-1], gs.shape[-1])
    d = activation_derivative(h, nonlinearity)
    u = _scatter(steps, _times(gs, w.W_yh), h.shape[1])
    gt = linear_scan(u, d, w.W_hh, None, reverse=True)
    return _parameter_gradient(gt, gs, h, x, steps, shape)


def rnn_tangent(
    x: Tensor, h: Tensor, w: RnnWeights, v: RnnWeights, nonlinearity: str, steps: Tensor | None
) -> tuple[Tensor, Tensor]:
    """R-op (Algorithm 1 of Martens & Sutskever 2011, forward half) of the tangent v.

    Rh ``[G,T,B,H]`` and Rs ``[G,T_out,B,k]`` from ``x [G,T,B,n]``, ``h [G,T,B,H]``.
    """
    u = _times(x, v.W_hx.mT) + _times(_previous(h), v.W_hh.mT) + _bias(v.b_h)
    first = torch.zeros_like(u)
    first[:, 0] = v.b_init.unsqueeze(1)
    d = activation_derivative(h, nonlinearity)
    Rh = linear_scan(u + first, d, w.W_hh.mT, None, reverse=False)
    Rs = _times(_at(steps, Rh), w.W_yh.mT) + _times(_at(steps, h), v.W_yh.mT) + _bias(v.b_y)
    return Rh, Rs


def rnn_gauss_newton(at: ForwardPass, v: Tensor, curvature: Curvature) -> Tensor:
    """The product of :class:`Curvature` with flat tangents, ``[G,N]`` -> ``[G,N]``.

    L'' is applied as gs = c ⊙ Rs − [rank_one] c (cᵀ Rs). The structural term enters the reverse
    scan as a_t = structural · D''⊙Rt, and D'' = e' makes that structural · Rh.
    """
    (x, _, w, nonlinearity, steps), h = at, at.states
    c, rank_one, scale, structural, damping = curvature
    shape = RnnShape(x.shape[-1], h.shape[-1], c.shape[-1])
    tangent = split_flat(v, shape)
    Rh, Rs = rnn_tangent(x, h, w, tangent, nonlinearity, steps)
    gs = c * Rs
    if rank_one:
        gs = gs - c * gs.sum(-1, keepdim=True)
    d = activation_derivative(h, nonlinearity)
    u = _scatter(steps, _times(gs, w.W_yh), h.shape[1])
    a = structural * Rh if curvature.is_structural else None
    gt = linear_scan(u, d, w.W_hh, a, reverse=True)
    return scale * _parameter_gradient(gt, gs, h, x, steps, shape) + damping * v
