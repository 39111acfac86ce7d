"""Sums and products over time and cases that passes through recurrent nets share.

Arrays are ``[G,T,B,·]``; an axis G of length 1 is shared.
"""

from __future__ import annotations

import torch
from torch import Tensor


def times(y: Tensor, W: Tensor, out: Tensor | None = None) -> Tensor:
    """``y [G,T,B,i] @ W [G,i,j]`` at every step, in ``out`` if given."""
    if out is not None:
        torch.matmul(y.flatten(1, 2), W, out=joined_steps(out))
        return out
    flat = torch.matmul(y.flatten(1, 2), W)
    return flat.view(flat.shape[0], *y.shape[1:3], flat.shape[2])


def add_times(u: Tensor, y: Tensor, W: Tensor) -> None:
    """``u [G,T,B,j] += y @ W``, see :func:`times`."""
    flat = joined_steps(u)
    G = len(flat)
    flat.baddbmm_(y.flatten(1, 2).expand(G, -1, -1), W.expand(G, -1, -1))


def joined_steps(y: Tensor) -> Tensor:
    """``y [G,T,B,i]``, or some of its steps, as a view ``[G,T·B,i]``, to write to."""
    G, T, B, i = y.shape
    return y.view(G, T * B, i)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ·right over time and cases, ``[G,i·j]``."""
    left, right = left.flatten(1, 2), right.flatten(1, 2)
    if right.shape[2] < left.shape[2]:  # a library's narrow result may cost twenty times the other
        return torch.matmul(right.mT, left).mT.flatten(1)
    return torch.matmul(left.mT, right).flatten(1)


def case_squares(left: Tensor, right: Tensor) -> Tensor:
    """Σ over cases of the squares of one case's leftᵀ·right ``[i,j]``; ``[T,b,·]``.

    A case's product is summed over time before it is squared.
    """
    one = torch.bmm(left.permute(1, 2, 0), right.transpose(0, 1))
    return one.square_().sum(0)


def at_outputs(y: Tensor, steps: Tensor | None) -> Tensor:
    """The steps of ``y [G,T,B,·]`` that have outputs; None: all."""
    return y if steps is None else y[:, steps]


def activation_bend(h: Tensor, nonlinearity: str) -> Tensor | None:
    """e''(t) / e'(t) ``[…]`` from ``h […]`` = e(t), or None where e'' = 0."""
    if nonlinearity == "logistic":
        return 1 - 2 * h
    return -2 * h if nonlinearity == "tanh" else None
