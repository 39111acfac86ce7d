"""Parameters, states and gradients of recurrent nets, by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Layer(NamedTuple):
    """Parameters of one layer, or what belongs to each.

    ``W_hx [G,H,n]``, ``W_hh [G,H,H]`` or entries ``[G,H,K]``, ``b_h, b_init [G,H]``; what is flat
    for each parameter is ``[G,·]``.
    """

    W_hx: Tensor
    W_hh: Tensor
    b_h: Tensor
    b_init: Tensor


class Weights(NamedTuple):
    """Those of the read-out, ``W_yh [G,k,H]`` and ``b_y [G,k]``, and of every layer."""

    W_yh: Tensor
    b_y: Tensor
    layers: list[Layer]


@dataclass(frozen=True)
class RecurrentStates:
    """Weights of a pass, and ``ys``: inputs ``[1,T,B,n]``, then every layer's ``h [G,T,B,H]``.

    ``slopes``: e'(t) of the layers where it was asked for; ``fresh``: in memory of their own.
    """

    w: Weights
    ys: list[Tensor]
    fresh: bool
    slopes: dict[int, Tensor] = field(default_factory=dict)


class Adjoint(NamedTuple):
    """The gradient's pass back: ``gs [G,T_out,B,k]`` = ∂L/∂s and gt ``[G,T,B,H]`` of every layer.

    ``bends`` are ∂L/∂h ⊙ e''/e' of the layers where e'' is not 0, like gt.
    """

    gs: Tensor
    gts: list[Tensor]
    bends: dict[int, Tensor]


def concatenated(pieces: Sequence[Tensor]) -> Tensor:
    """``[G,N]`` from pieces ``[G,·]`` or ``[1,·]``."""
    G = max(map(len, pieces))
    return torch.cat([p.expand(G, -1) for p in pieces], dim=1)


def summed(g: Tensor, there: bool) -> Tensor:
    """Σ over time and cases of ``g [G,T,B,·]``, ``[G,·]``, or zeros ``[1,·]``."""
    return g.sum((1, 2)) if there else g.new_zeros(1, g.shape[-1])


def case_sums(y: Tensor) -> Tensor:
    """Σ over time and units of every case of ``y [G,T,B,·]``, ``[G,B]``."""
    return y.sum(3).sum(1)


def row(piece: Tensor) -> Tensor:
    """``piece […]`` as ``[1,·]``."""
    return piece.reshape(1, -1)
