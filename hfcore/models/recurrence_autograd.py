"""The recurrence ops as differentiable torch functions: any order, forward and reverse mode, vmap.

Two ``autograd.Function``s over two of the dispatcher ops of ``recurrence_library.py``:

    rnn_hidden    h_t = e(W_hx x_t + W_hh h_{t-1} + b_h), b_init for W_hh h_{t-1} at t = 0
    linear_scan   y_t = d_t * (y_{t-1} W + u_t), or with y_{t+1} when ``reverse``

The derivatives of a scan are scans (the R-op and backpropagation through time of Martens &
Sutskever 2011, Algorithm 1), so they are written with :class:`LinearScan` and ordinary torch
ops, and higher orders follow by composition. Every array has a leading group axis, 1 where it is
shared; ``vmap`` folds its dimension into that axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hfcore.bindings.recurrence import activation_derivative


def rnn_hidden(
    x: Tensor, W_hx: Tensor, W_hh: Tensor, b_h: Tensor, b_init: Tensor, nonlinearity: str
) -> Tensor:
    """Hidden states ``h [G,T,B,H]`` of inputs ``x [G,T,B,n]``, differentiable."""
    apply: Callable[..., Tensor] = RnnHidden.apply
    return apply(x, W_hx, W_hh, b_h, b_init, nonlinearity)


def linear_scan(u: Tensor, d: Tensor, W: Tensor, reverse: bool) -> Tensor:
    """y_t = d_t * (y_{t-1} W + u_t) for ``u, d [G,T,B,H]``, ``W [G,H,H]``, differentiable."""
    apply: Callable[..., Tensor] = LinearScan.apply
    return apply(u, d, W, reverse)


def _nested_forward(jvp: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a jvp be differentiated forward again; it gets the saved primals as first argument.

    torch calls jvp with forward-mode AD switched off, which gives jvp of jvp a tangent of zero
    without a word. Switched on again, the saved inputs must drop the tangent of this level, which
    jvp accounts for.
    """

    def wrapped(ctx: Any, *tangents: Tensor | None) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [forward_ad.unpack_dual(a).primal for a in ctx.saved_tensors]
            return jvp(saved, ctx, *tangents)

    return wrapped


class RnnHidden(torch.autograd.Function):
    """Hidden states ``h [G,T,B,H]`` from (x, W_hx, W_hh, b_h, b_init, nonlinearity).

    ``x [G,T,B,n]``, ``W_hx [G,H,n]``, ``W_hh [G,H,H]``, ``b_h, b_init [G,H]``; see
    :func:`rnn_hidden`.
    """

    @staticmethod
    def forward(
        x: Tensor, W_hx: Tensor, W_hh: Tensor, b_h: Tensor, b_init: Tensor, nonlinearity: str
    ) -> Tensor:
        h: Tensor = torch.ops.hfcore.rnn_hidden(x, W_hx, W_hh, b_h, b_init, nonlinearity)
        return h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, W_hx, W_hh, b_h, b_init, ctx.nonlinearity = inputs
        ctx.shared = [a.shape[0] == 1 for a in (x, W_hx, W_hh, b_h, b_init)]
        ctx.save_for_backward(x, W_hx, W_hh, output)
        ctx.save_for_forward(x, W_hx, W_hh, output)

    @staticmethod
    @_nested_forward
    def jvp(
        saved: list[Tensor],
        ctx: Any,
        dx: Tensor | None,
        dW_hx: Tensor | None,
        dW_hh: Tensor | None,
        db_h: Tensor | None,
        db_init: Tensor | None,
        _: None,
    ) -> Tensor:
        x, W_hx, W_hh, h = saved
        u = torch.zeros_like(h)
        if dx is not None:
            u = u + times(dx, W_hx.mT)
        if dW_hx is not None:
            u = u + times(x, dW_hx.mT)
        if dW_hh is not None:
            u = u + times(_shift(h, reverse=False), dW_hh.mT)
        if db_h is not None:
            u = u + db_h[:, None, None]
        if db_init is not None:
            u = u + _at_first_step(db_init, h.shape[1])
        return linear_scan(u, activation_derivative(h, ctx.nonlinearity), W_hh.mT, False)

    @staticmethod
    def backward(ctx: Any, gh: Tensor) -> tuple[Tensor | None, ...]:
        x, W_hx, W_hh, h = ctx.saved_tensors
        gt = linear_scan(gh, activation_derivative(h, ctx.nonlinearity), W_hh, True)
        gradients: tuple[Callable[[], Tensor], ...] = (
            lambda: times(gt, W_hx),
            lambda: _outer(gt, x),
            lambda: _outer(gt, _shift(h, reverse=False)),
            lambda: gt.sum((1, 2)),
            lambda: gt[:, 0].sum(1),
        )
        return (*_needed(ctx, gradients), None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        return fold_into_group(RnnHidden.apply, info.batch_size, in_dims, args[:5], args[5])


class LinearScan(torch.autograd.Function):
    """``y [G,T,B,H]`` from (u, d, W, reverse): y = d ⊙ (P(y) W + u).

    P shifts by one step in time; ``u, d [G,T,B,H]``, ``W [G,H,H]``; see :func:`linear_scan`.
    """

    @staticmethod
    def forward(u: Tensor, d: Tensor, W: Tensor, reverse: bool) -> Tensor:
        y: Tensor = torch.ops.hfcore.linear_scan(u, d, W, reverse)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, d, W, ctx.reverse = inputs
        ctx.shared = [a.shape[0] == 1 for a in (u, d, W)]
        ctx.save_for_backward(u, d, W, output)
        ctx.save_for_forward(u, d, W, output)

    @staticmethod
    @_nested_forward
    def jvp(
        saved: list[Tensor],
        ctx: Any,
        du: Tensor | None,
        dd: Tensor | None,
        dW: Tensor | None,
        _: None,
    ) -> Tensor:
        u, d, W, y = saved
        pre = torch.zeros_like(y)
        if du is not None:
            pre = pre + du
        if dW is not None:
            pre = pre + times(_shift(y, ctx.reverse), dW)
        if dd is None:
            return linear_scan(pre, d, W, ctx.reverse)
        # a is added after the product with d, so the rest, dy - a, is the scan that meets P(a) W.
        a = dd * (times(_shift(y, ctx.reverse), W) + u)
        return linear_scan(pre + times(_shift(a, ctx.reverse), W), d, W, ctx.reverse) + a

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        u, d, W, y = ctx.saved_tensors
        before = _shift(y, ctx.reverse)
        gu = linear_scan(gy, d, W.mT, not ctx.reverse)
        gradients: tuple[Callable[[], Tensor], ...] = (
            lambda: gu,
            # gu / d, built again because d may be 0.
            lambda: (gy + times(_shift(gu, not ctx.reverse), W.mT)) * (times(before, W) + u),
            lambda: _outer(before, gu),
        )
        return (*_needed(ctx, gradients), None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        return fold_into_group(LinearScan.apply, info.batch_size, in_dims, args[:3], args[3])


def times(y: Tensor, W: Tensor) -> Tensor:
    """``y [G,T,B,i] @ W [G,i,j]`` for every step, as one product a group."""
    G, T, B, i = y.shape
    product = y.reshape(G, T * B, i) @ W
    return product.reshape(product.shape[0], T, B, product.shape[2])


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """``[G,i,j]``: sum over time and batch of left ⊗ right."""
    G, T, B, i = left.shape
    return left.reshape(G, T * B, i).mT @ right.reshape(right.shape[0], T * B, right.shape[3])


def _shift(y: Tensor, reverse: bool) -> Tensor:
    """y_{t-1}, or y_{t+1} when ``reverse``; zeros beyond the end."""
    zero = torch.zeros_like(y[:, :1])
    return torch.cat([y[:, 1:], zero] if reverse else [zero, y[:, :-1]], dim=1)


def _at_first_step(b: Tensor, T: int) -> Tensor:
    """``b [G,H]`` as ``[G,T,1,H]`` with zeros after the first step."""
    first = b[:, None, None]
    return torch.cat([first, torch.zeros_like(first).expand(-1, T - 1, -1, -1)], dim=1)


def _needed(ctx: Any, gradients: Sequence[Callable[[], Tensor]]) -> list[Tensor | None]:
    """The gradients that are asked for, summed over the group where the argument is shared."""
    out: list[Tensor | None] = []
    for needed, shared, gradient in zip(ctx.needs_input_grad, ctx.shared, gradients, strict=False):
        g = gradient() if needed else None
        out.append(g.sum(0, keepdim=True) if g is not None and shared and g.shape[0] > 1 else g)
    return out


def group_size(arrays: Sequence[Tensor]) -> int:
    """The group size G of arrays ``[G,…]`` or ``[1,…]``: the leading length that is not 1."""
    return next((a.shape[0] for a in arrays if a.shape[0] != 1), 1)


def fold_into_group(
    op: Callable[..., Tensor],
    V: int,
    in_dims: Sequence[int | None],
    arrays: Sequence[Tensor],
    option: object,
) -> tuple[Tensor, int]:
    """``op`` on arrays ``[G,…]`` of which some have a vmapped dimension of length V.

    The op sees a group of V·G nets. Gives its result as ``[V,G,…]`` and 0, the axis of V. Arrays
    without that dimension stay shared unless they have a group of their own.
    """
    dims = in_dims[: len(arrays)]
    arrays = [a if dim is None else a.movedim(dim, 0) for a, dim in zip(arrays, dims, strict=True)]
    G = group_size([a if dim is None else a[0] for a, dim in zip(arrays, dims, strict=True)])

    def fold(a: Tensor, dim: int | None) -> Tensor:
        if dim is None:
            return a if a.shape[0] == 1 else a.expand(V, *a.shape).flatten(0, 1)
        return a.expand(V, G, *a.shape[2:]).flatten(0, 1)

    out = op(*(fold(a, dim) for a, dim in zip(arrays, dims, strict=True)), option)
    return out.unflatten(0, (V, G)), 0
