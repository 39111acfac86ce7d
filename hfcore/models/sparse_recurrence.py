"""The recurrence with sparse hidden-to-hidden weights as a differentiable torch function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.bindings.recurrence import RnnWeights, activation_derivative
from hfcore.bindings.sparse import EllPattern, ell_dense, ell_gradient, ell_hidden, ell_scan

_ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "logistic": torch.sigmoid,
    "relu": torch.relu,
}


def sparse_outputs(x: Tensor, w: RnnWeights, pattern: EllPattern, nonlinearity: str) -> Tensor:
    """Outputs ``s [T,B,k]`` for ``x [T,B,n]``; weights without a group axis, W_hh the values."""
    h = sparse_states(x, w, pattern, nonlinearity)
    return nn.functional.linear(h, w.W_yh, w.b_y)


def sparse_states(x: Tensor, w: RnnWeights, pattern: EllPattern, nonlinearity: str) -> Tensor:
    """Hidden states ``h [T,B,H]``; see :func:`sparse_outputs`."""
    u = nn.functional.linear(x, w.W_hx, w.b_h)
    u = torch.cat([u[:1] + w.b_init, u[1:]])
    h: Tensor = SparseHidden.apply(u, w.W_hh, pattern, nonlinearity)
    return h


class SparseHidden(torch.autograd.Function):
    """h_t = e(u_t + W h_{t-1}) from (u ``[T,B,H]``, value ``[H,K]``, pattern, nonlinearity)."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, value: Tensor, pattern: EllPattern, nonlinearity: str
    ) -> Tensor:
        h = ell_hidden(u[None], value[None], pattern, nonlinearity=nonlinearity)[0]
        ctx.save_for_backward(u, value, h)
        ctx.pattern, ctx.nonlinearity = pattern, nonlinearity
        return h

    @staticmethod
    def backward(ctx: Any, gh: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        u, value, h = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself is to be differentiated
            again = _plain_states(u, value, ctx.pattern, ctx.nonlinearity)
            gu, gvalue = torch.autograd.grad(again, (u, value), gh, create_graph=True)
            return gu, gvalue, None, None
        slope = activation_derivative(h, ctx.nonlinearity)
        gt = ell_scan(
            gh[None], slope[None], value[None], ctx.pattern, transposed=True, reverse=True
        )
        gradient = None
        if ctx.needs_input_grad[1]:
            gradient = torch.zeros_like(value)
            if len(u) > 1:
                before = h[:-1].flatten(0, 1)[None]
                gradient = ell_gradient(gt[:, 1:].flatten(1, 2), before, ctx.pattern)[0]
        return gt[0], gradient, None, None


def _plain_states(u: Tensor, value: Tensor, pattern: EllPattern, nonlinearity: str) -> Tensor:
    """The same by torch's own ops, differentiable to any order."""
    activate, W = _ACTIVATE[nonlinearity], ell_dense(value[None], pattern)[0]
    h = [activate(u[0])]
    for u_t in u[1:]:
        h.append(activate(u_t + h[-1] @ W.mT))
    return torch.stack(h)
