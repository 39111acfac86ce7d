"""Passes through an RNN whose W_hh is sparse, on the sparse ops and large matrix products.

The counterparts of ``rnn_passes.py``, to whose :class:`States` they come with the values
``[G,H,K]`` of the entries in the place of ``w.W_hh``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings.recurrence import RnnShape, RnnWeights
from hfcore.bindings.sparse import (
    EllPattern,
    ell_gradient,
    ell_hidden,
    ell_matmul,
    ell_scan,
)
from hfcore.curvature.rnn_passes import States, times


def shapes_of(shape: RnnShape, K: int) -> tuple[tuple[int, ...], ...]:
    """Shape of each parameter, W_hh's being that of its values."""
    W_hx, _, *others = shape.shapes
    return (W_hx, (shape.H, K), *others)


def split_sparse(flat: Tensor, shape: RnnShape, K: int) -> RnnWeights:
    """Views of the flat vectors ``flat [G,N]`` as named parameters with a group axis."""
    shapes = shapes_of(shape, K)
    parts = flat.split([torch.Size(s).numel() for s in shapes], dim=1)
    return RnnWeights(*(p.view(len(flat), *s) for p, s in zip(parts, shapes, strict=True)))


def states(x: Tensor, w: RnnWeights, pattern: EllPattern, nonlinearity: str) -> Tensor:
    """Hidden states ``[1,T,B,H]``."""
    u = times(x, w.W_hx.mT) + w.b_h[:, None, None]
    u[:, 0] += w.b_init.unsqueeze(1)
    return ell_hidden(u, w.W_hh, pattern, nonlinearity=nonlinearity)


def outputs(at: States) -> Tensor:
    """Outputs ``[1,T_out,B,k]``."""
    return times(at.at_outputs(at.h), at.w.W_yh.mT) + at.w.b_y[:, None, None]


def tangent(at: States, pattern: EllPattern, v: RnnWeights) -> tuple[Tensor, Tensor]:
    """R-op (M&S 2011, Algorithm 1): Rh ``[G,T,B,H]`` and Rs ``[G,T_out,B,k]`` in direction v."""
    u = times(at.x, v.W_hx.mT) + v.b_h[:, None, None]
    if u.shape[1] > 1:
        moved = ell_matmul(at.h[:, :-1].flatten(1, 2), v.W_hh, pattern)
        u[:, 1:] += moved.view(len(moved), *u[0, 1:].shape)
    u[:, 0] += v.b_init.unsqueeze(1)
    Rh = ell_scan(u, at.slope, at.w.W_hh, pattern)
    Rs = times(at.at_outputs(Rh), at.w.W_yh.mT) + times(at.at_outputs(at.h), v.W_yh.mT)
    return Rh, Rs + v.b_y[:, None, None]


def backward(at: States, pattern: EllPattern, gs: Tensor, a: Tensor | None = None) -> Tensor:
    """BPTT: gt = ∂L/∂t ``[G,T,B,H]`` from ``gs = ∂L/∂s [G,T_out,B,k]``; ``a`` joins every step."""
    u = at.scattered(times(gs, at.w.W_yh))
    return ell_scan(u, at.slope, at.w.W_hh, pattern, a, transposed=True, reverse=True)


def parameter_gradient(at: States, pattern: EllPattern, gt: Tensor, gs: Tensor) -> Tensor:
    """gtᵀ·[x, h_{t-1}, 1] and gsᵀ·[h, 1] over time and cases, flat ``[G,N]``; W_hh's entries."""

    def outer(left: Tensor, right: Tensor) -> Tensor:
        return torch.matmul(left.flatten(1, 2).mT, right.flatten(1, 2)).flatten(1)

    hidden = gt.new_zeros(len(gt), pattern.m * pattern.K)
    if gt.shape[1] > 1:
        later, before = gt[:, 1:].flatten(1, 2), at.h[:, :-1].flatten(1, 2)
        hidden = ell_gradient(later, before, pattern).flatten(1)
    return torch.cat(
        [
            outer(gt, at.x),
            hidden,
            outer(gs, at.at_outputs(at.h)),
            gt.sum((1, 2)),
            gt[:, 0].sum(1),
            gs.sum((1, 2)),
        ],
        dim=1,
    )


def case_squares(at: States, pattern: EllPattern, gt: Tensor, gs: Tensor) -> Tensor:
    """Σ over cases of (gradient of one case)², flat ``[N]``; squared after the sum over time."""
    x, h, out = at.x[0], at.h[0], at.at_outputs(at.h)[0]
    gt, gs = gt[0], gs[0]

    def squared(left: Tensor, right: Tensor) -> Tensor:
        """Column by column of the smaller factor ``right [T,B,j]``: ``[i·j]``."""
        columns = [(left * right[..., j, None]).sum(0) for j in range(right.shape[2])]
        return torch.stack([c.square().sum(0) for c in columns], dim=1).flatten()

    hidden = [
        (gt[1:] * h[:-1, :, pattern.index[:, k].long()]).sum(0).square().sum(0)
        for k in range(pattern.K)
    ]
    entries = torch.stack(hidden, dim=1)
    if pattern.present is not None:
        entries = entries * pattern.present
    by_output = squared(out, gs).view(h.shape[2], -1).mT
    return torch.cat(
        [
            squared(gt, x),
            entries.flatten(),
            by_output.flatten(),
            gt.sum(0).square().sum(0),
            gt[0].square().sum(0),
            gs.sum(0).square().sum(0),
        ]
    )
