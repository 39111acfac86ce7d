"""Names and memory layout shared by every implementation of the gated ops."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

CELLS = ("lstm", "gru")
# Blocks of H numbers at every step: i, f, g, o of an LSTM; m, r, z, n of a GRU.
BLOCKS = 4


class Rows(NamedTuple):
    """Which blocks of rows of W_hh and of W_ih reach each of the four blocks; None for none.

    ``blocks``: how many the matrices have.
    """

    hidden: tuple[int | None, ...]
    input: tuple[int | None, ...]
    blocks: int


ROWS = {
    "lstm": Rows((0, 1, 2, 3), (0, 1, 2, 3), 4),
    "gru": Rows((2, 0, 1, None), (None, 0, 1, 2), 3),
}


def rows_of(cell: str) -> Rows:
    """Those of a kind of cell."""
    return ROWS[cell]


class GatedWeights(NamedTuple):
    """Parameters (or a tangent) of one layer, with a group axis of length G, or 1 to share it.

    ``W_ih [G,R·H,n]`` and ``W_hh [G,R·H,H]`` have the rows of torch's modules: i, f, g, o of an
    LSTM (R = 4), r, z, n of a GRU (R = 3). ``b [G,4,H]`` are the biases of the blocks; those of m
    and n of a GRU are torch's ``bias_hh`` and ``bias_ih`` of n.
    """

    W_ih: Tensor
    W_hh: Tensor
    b: Tensor


class GatedStates(NamedTuple):
    """What a forward pass leaves for derivatives.

    ``h [G,T,B,H]``; ``gates [G,4,T,B,H]``, the blocks behind their nonlinearities (m has none); of
    an LSTM ``cells [G,2,T,B,H]``, c and tanh c.
    """

    h: Tensor
    gates: Tensor
    cells: Tensor | None
