"""Passes through an RNN that keep every step, on ``linear_scan`` and large matrix products.

They serve what the fused product does not: squares of single cases, the Hessian, the Fisher
matrix. Arrays are ``[G,T,B,·]`` as in ``bindings/recurrence.py``; an axis G of length 1 is shared.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hfcore.bindings.recurrence import RnnWeights, activation_derivative, linear_scan

# Bytes of single cases' weight gradients held at once.
CASE_BYTES = 32 << 20


class States(NamedTuple):
    """Inputs ``x [1,T,B,n]``, states ``h [1,T,B,H]``, weights, and which steps have outputs."""

    x: Tensor
    h: Tensor
    w: RnnWeights
    nonlinearity: str
    steps: Tensor | None

    @property
    def slope(self) -> Tensor:
        """e'(t)."""
        return activation_derivative(self.h, self.nonlinearity)

    @property
    def bend(self) -> Tensor | None:
        """e''(t) / e'(t), or None where e'' = 0."""
        if self.nonlinearity == "logistic":
            return 1 - 2 * self.h
        return -2 * self.h if self.nonlinearity == "tanh" else None

    def at_outputs(self, y: Tensor) -> Tensor:
        return y if self.steps is None else y[:, self.steps]

    def scattered(self, g: Tensor) -> Tensor:
        """Adjoint of :meth:`at_outputs`: zeros at the steps without outputs."""
        if self.steps is None:
            return g
        full = g.new_zeros(g.shape[0], self.h.shape[1], *g.shape[2:])
        full[:, self.steps] = g
        return full


def times(y: Tensor, W: Tensor) -> Tensor:
    """``y [G,T,B,i] @ W [G,i,j]`` at every step."""
    flat = torch.matmul(y.flatten(1, 2), W)
    return flat.view(flat.shape[0], *y.shape[1:3], flat.shape[2])


def tangent(at: States, v: RnnWeights) -> tuple[Tensor, Tensor]:
    """R-op (M&S 2011, Algorithm 1): Rh ``[G,T,B,H]`` and Rs ``[G,T_out,B,k]`` in direction v."""
    u = times(at.x, v.W_hx.mT) + v.b_h[:, None, None]
    u[:, 1:] += times(at.h[:, :-1], v.W_hh.mT)
    u[:, 0] += v.b_init.unsqueeze(1)
    Rh = linear_scan(u, at.slope, at.w.W_hh.mT)
    Rs = times(at.at_outputs(Rh), at.w.W_yh.mT) + times(at.at_outputs(at.h), v.W_yh.mT)
    return Rh, Rs + v.b_y[:, None, None]


def backward(at: States, gs: Tensor) -> Tensor:
    """BPTT: gt = ∂L/∂t ``[G,T,B,H]`` from ``gs = ∂L/∂s [G,T_out,B,k]``."""
    return linear_scan(at.scattered(times(gs, at.w.W_yh)), at.slope, at.w.W_hh, reverse=True)


def above(at: States, gt: Tensor, gs: Tensor) -> Tensor:
    """∂L/∂h ``[G,T,B,H]``: what reaches a state from the next step and from its output."""
    up = at.scattered(times(gs, at.w.W_yh)).clone()
    up[:, :-1] += times(gt[:, 1:], at.w.W_hh)
    return up


def rbackward(at: States, gt: Tensor, gs: Tensor, Rgs: Tensor, v: RnnWeights, a: Tensor) -> Tensor:
    """R of :func:`backward` in the direction v, from Rgs; ``a [G,T,B,H]`` joins every step.

    Rgt_t = e' ⊙ (Rgt_{t+1} W_hh + gt_{t+1} V_hh + Rgs_t W_yh + gs_t V_yh) + a_t
    """
    u = at.scattered(times(Rgs, at.w.W_yh) + times(gs, v.W_yh))
    u[:, :-1] += times(gt[:, 1:], v.W_hh)
    return linear_scan(u, at.slope, at.w.W_hh, a, reverse=True)


def parameter_gradient(at: States, gt: Tensor, gs: Tensor) -> Tensor:
    """gtᵀ·[x, h_{t-1}, 1] and gsᵀ·[h, 1] over time and cases, flat ``[G,N]``."""

    def outer(left: Tensor, right: Tensor) -> Tensor:
        return torch.matmul(left.flatten(1, 2).mT, right.flatten(1, 2)).flatten(1)

    return torch.cat(
        [
            outer(gt, at.x),
            outer(gt[:, 1:], at.h[:, :-1]),
            outer(gs, at.at_outputs(at.h)),
            gt.sum((1, 2)),
            gt[:, 0].sum(1),
            gs.sum((1, 2)),
        ],
        dim=1,
    )


def cross_gradient(at: States, gt: Tensor, gs: Tensor, Rh: Tensor) -> Tensor:
    """The same with Rh in h's place and no tangent of the inputs and ones, ``[G,N]``."""
    zero = torch.zeros_like(at.x)
    full = parameter_gradient(States(zero, Rh, at.w, at.nonlinearity, at.steps), gt, gs)
    biases = gt.shape[-1] * 2 + gs.shape[-1]
    full[:, full.shape[1] - biases :] = 0
    return full


def along_cases(at: States, gt: Tensor, gs: Tensor, v: RnnWeights) -> Tensor:
    """⟨g_i, v⟩ ``[G,B]`` for the gradient g_i of every case, from its ``gt`` and ``gs``."""
    Rt = times(at.x, v.W_hx.mT) + v.b_h[:, None, None]
    Rt[:, 1:] += times(at.h[:, :-1], v.W_hh.mT)
    Rt[:, 0] += v.b_init.unsqueeze(1)
    Rs = times(at.at_outputs(at.h), v.W_yh.mT) + v.b_y[:, None, None]
    return (gt * Rt).sum((1, 3)) + (gs * Rs).sum((1, 3))


def case_squares(at: States, gt: Tensor, gs: Tensor) -> Tensor:
    """Σ over cases (and G) of (gradient of one case)², flat ``[N]``.

    Squared after the sum over time: a case's gradient is one product gtᵀ·[x, h_{t-1}], batched
    over cases in chunks of ``CASE_BYTES``.
    """
    H, k = gt.shape[-1], gs.shape[-1]
    widest = max(H * max(H, at.x.shape[-1]), k * H)
    size = max(1, CASE_BYTES // (widest * gt.element_size()))
    total = gt.new_zeros(sum(W[0].numel() for W in at.w))
    for net in range(gt.shape[0]):
        for cases in torch.arange(gt.shape[2], device=gt.device).split(size):
            part = slice(int(cases[0]), int(cases[-1]) + 1)
            total += _squares_of(at, gt[net, :, part], gs[net, :, part], part)
    return total


def _squares_of(at: States, gt: Tensor, gs: Tensor, part: slice) -> Tensor:
    """:func:`case_squares` of a few cases: ``gt [T,b,H]``, ``gs [T_out,b,k]``."""
    x, h, out = at.x[0, :, part], at.h[0, :, part], at.at_outputs(at.h)[0, :, part]

    def squared(left: Tensor, right: Tensor) -> Tensor:
        one = torch.bmm(left.permute(1, 2, 0), right.transpose(0, 1))  # [b,i,j]
        return one.square_().sum(0).reshape(-1)

    return torch.cat(
        [
            squared(gt, x),
            squared(gt[1:], h[:-1]),
            squared(gs, out),
            gt.sum(0).square().sum(0),
            gt[0].square().sum(0),
            gs.sum(0).square().sum(0),
        ]
    )
