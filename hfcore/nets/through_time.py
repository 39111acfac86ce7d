"""Sums and products over time and cases that passes through recurrent nets share.

Arrays are ``[G,T,B,·]``; an axis G of length 1 is shared.
"""

from __future__ import annotations

import torch
from torch import Tensor


def times(y: Tensor, W: Tensor) -> Tensor:
    """``y [G,T,B,i] @ W [G,i,j]`` at every step."""
    flat = torch.matmul(y.flatten(1, 2), W)
    return flat.view(flat.shape[0], *y.shape[1:3], flat.shape[2])


def outer(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ·right over time and cases, ``[G,i·j]``."""
    return torch.matmul(left.flatten(1, 2).mT, right.flatten(1, 2)).flatten(1)


def case_squares(left: Tensor, right: Tensor) -> Tensor:
    """Σ over cases of the squares of one case's leftᵀ·right ``[i,j]``; ``[T,b,·]``.

    A case's product is summed over time before it is squared.
    """
    one = torch.bmm(left.permute(1, 2, 0), right.transpose(0, 1))
    return one.square_().sum(0)


def at_outputs(y: Tensor, steps: Tensor | None) -> Tensor:
    """The steps of ``y [G,T,B,·]`` that have outputs; None: all."""
    return y if steps is None else y[:, steps]


def scattered(g: Tensor, steps: Tensor | None, T: int) -> Tensor:
    """Adjoint of :func:`at_outputs`: ``g [G,T_out,B,·]`` as ``[G,T,B,·]``, zeros at other steps.

    ``steps`` int64 ``[T_out]``; None: every step has outputs.
    """
    if steps is None:
        return g
    full = g.new_zeros(g.shape[0], T, *g.shape[2:])
    full[:, steps] = g
    return full


def activation_bend(h: Tensor, nonlinearity: str) -> Tensor | None:
    """e''(t) / e'(t) ``[…]`` from ``h […]`` = e(t), or None where e'' = 0."""
    if nonlinearity == "logistic":
        return 1 - 2 * h
    return -2 * h if nonlinearity == "tanh" else None
