"""Plain torch forms of the sparse ops: any device, any floating dtype.

A leading group axis G is on every array but the pattern, which the group shares; an axis of length
1 is shared too. ``value [G,m,K]`` holds the entries of W ``[m,n]`` (``layout.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.kernels.recurrence.reference import activation
from hfcore.kernels.sparse.layout import EllPattern


def _present(value: Tensor, pattern: EllPattern) -> Tensor:
    """Zeros where a row has no entry, whatever stands there."""
    if pattern.present is None:
        return value
    return torch.where(pattern.present, value, torch.zeros_like(value))


def ell_dense(value: Tensor, pattern: EllPattern) -> Tensor:
    """W as a dense ``[G,m,n]``."""
    index = pattern.index.long().expand(value.shape[0], -1, -1)
    W = value.new_zeros(value.shape[0], pattern.m, pattern.n)
    # Added, not written: the places behind a short row name its last column again.
    return W.scatter_add(2, index, _present(value, pattern))


def ell_gather(W: Tensor, pattern: EllPattern) -> Tensor:
    """The entries ``[G,m,K]`` of a dense ``W [G,m,n]``; 0 where a row has no entry."""
    return _present(W.gather(2, pattern.index.long().expand(W.shape[0], -1, -1)), pattern)


def ell_matmul(x: Tensor, value: Tensor, pattern: EllPattern) -> Tensor:
    """y = x Wᵀ: ``x [G,B,n]`` -> ``[G,B,m]``, one entry of every row at a time."""
    value = _present(value, pattern)
    y = x.new_zeros(max(x.shape[0], value.shape[0]), x.shape[1], pattern.m)
    for k in range(pattern.K):
        y += x[:, :, pattern.index[:, k].long()] * value[:, None, :, k]
    return y


def ell_matmul_t(g: Tensor, value: Tensor, pattern: EllPattern) -> Tensor:
    """g W: ``g [G,B,m]`` -> ``[G,B,n]``."""
    value = _present(value, pattern)
    x = g.new_zeros(max(g.shape[0], value.shape[0]), g.shape[1], pattern.n)
    for k in range(pattern.K):
        x.index_add_(2, pattern.index[:, k].long(), g * value[:, None, :, k])
    return x


def ell_gradient(g: Tensor, x: Tensor, pattern: EllPattern) -> Tensor:
    """(gᵀx) at the entries: ``[G,m,K]`` with Σ_b g[b,i] x[b,index[i,k]], 0 where there is none."""
    columns = [(g * x[:, :, pattern.index[:, k].long()]).sum(1) for k in range(pattern.K)]
    return _present(torch.stack(columns, dim=2), pattern)


def ell_scan(
    u: Tensor,
    d: Tensor,
    value: Tensor,
    pattern: EllPattern,
    a: Tensor | None,
    transposed: bool,
    reverse: bool,
) -> Tensor:
    """y_t = d_t ⊙ (y_{t-1} Wᵀ + u_t) + a_t, ``[G,T,B,H]``.

    ``transposed``: W in Wᵀ's place; ``reverse``: y_{t+1} in y_{t-1}'s.
    """
    times = ell_matmul_t if transposed else ell_matmul
    T = u.shape[1]
    y: list[Tensor] = [u.new_empty(0)] * T
    carry: Tensor | None = None
    for t in reversed(range(T)) if reverse else range(T):
        pre = u[:, t] if carry is None else times(carry, value, pattern) + u[:, t]
        carry = d[:, t] * pre
        if a is not None:
            carry = carry + a[:, t]
        y[t] = carry
    G = max(step.shape[0] for step in y)
    return torch.stack([step.expand(G, *step.shape[1:]) for step in y], dim=1)


def ell_hidden(u: Tensor, value: Tensor, pattern: EllPattern, nonlinearity: str) -> Tensor:
    """h_t = e(u_t + h_{t-1} Wᵀ) with h_{-1} = 0, ``[G,T,B,H]``."""
    h: list[Tensor] = []
    for t in range(u.shape[1]):
        pre = u[:, t] if t == 0 else ell_matmul(h[-1], value, pattern) + u[:, t]
        h.append(activation(pre, nonlinearity))
    G = max(step.shape[0] for step in h)
    return torch.stack([step.expand(G, *step.shape[1:]) for step in h], dim=1)
