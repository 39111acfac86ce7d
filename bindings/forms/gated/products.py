"""The gradient at a layer's weights as dense products of all of ga."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hfcore.bindings.dense import dense_gradient
from hfcore.kernels.gated import GatedStates, GatedWeights, rows_of


def gradient_by_products(
    backward: Callable[[Tensor, GatedStates, Tensor, str, Tensor], None],
    gh: Tensor, x: Tensor, at: GatedStates, W_hh: Tensor, cell: str, out: GatedWeights,
    ga: Tensor | None,
) -> None:  # fmt: skip
    """``GatedForm.gated_gradient`` where ``backward`` is its ``gated_backward``.

    ``gh [.,T,B,H]``, ``x [.,T,B,n]``, ``W_hh [.,R·H,H]`` and, where given, ``ga [G,4,T,B,H]``.
    """
    made = gh.new_empty(len(out.b), *at.gates.shape[1:]) if ga is None else ga
    backward(gh, at, W_hh, cell, made)
    weight_gradient(made, x, at.h, cell, out)


def weight_gradient(ga: Tensor, x: Tensor, h: Tensor, cell: str, out: GatedWeights) -> None:
    """Into ``out``, from ``ga [G,4,T,B,H]``, ``x [.,T,B,n]``, ``h [.,T,B,H]``.

    ga of the blocks that hear x, or h, lie side by side, so that each are one product.
    """
    rows = rows_of(cell)
    inputs, hidden = _range(rows.input), _range(rows.hidden)
    for g, own in enumerate(ga):
        x_g, h_g = (y[min(g, len(y) - 1)] for y in (x, h))
        W, sums = dense_gradient(own[inputs].flatten(1, 2), x_g.flatten(0, 1)[None])
        _put(out.W_ih[g], W, rows.input, inputs)
        out.b[g, inputs] = sums
        for k in range(inputs.start):
            torch.sum(own[k], dim=(0, 1), out=out.b[g, k])
        if len(h_g) == 1:
            out.W_hh[g].zero_()
        else:
            recurs, back = own[hidden, 1:].flatten(1, 2), h_g[:-1].flatten(0, 1)[None]
            _put(out.W_hh[g], dense_gradient(recurs, back)[0], rows.hidden, hidden)


def _range(heard: tuple[int | None, ...]) -> slice:
    """The blocks that hear it."""
    there = [k for k, r in enumerate(heard) if r is not None]
    return slice(min(there), max(there) + 1)


def _put(to: Tensor, W: Tensor, heard: tuple[int | None, ...], blocks: slice) -> None:
    """``W [blocks,H,.]`` as the rows ``[R·H,.]`` that the blocks hear."""
    H = W.shape[1]
    for part, r in zip(W, heard[blocks], strict=True):
        assert r is not None
        to[r * H : (r + 1) * H] = part
