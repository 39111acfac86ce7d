"""Gated recurrences, LSTM and GRU: checks of arguments, choice of implementation (``forms/gated``).

Every array carries a leading group axis G; length 1 shares it among the group. Shapes and formulas
are those of ``kernels/gated/reference.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hfcore.bindings.checks import (
    check_choice,
    check_group,
    check_out,
    check_positive,
    check_tensor,
)
from hfcore.bindings.dispatch import choose
from hfcore.bindings.forms.gated import form
from hfcore.kernels.gated import BLOCKS, CELLS, GatedStates, GatedWeights, reference, rows_of

__all__ = [
    "CELLS",
    "GatedStates",
    "GatedWeights",
    "differentiable_h",
    "gated_backward",
    "gated_forward",
    "gated_gradient",
    "gated_tangent",
    "rows_of",
]


class _Sizes(NamedTuple):
    T: int
    B: int
    n: int
    H: int


def gated_forward(
    x: Tensor,
    w: GatedWeights,
    *,
    cell: str,
    states: bool = True,
    out: GatedStates | None = None,
) -> GatedStates:
    """The states of ``x [G,T,B,n]``; without ``states`` h ``[G,T,B,H]`` alone is made.

    ``cell`` is ``"lstm"`` or ``"gru"``. What is in ``out`` is written there; of states that are not
    made there are empty tensors. Raises TypeError or ValueError naming the argument.
    """
    check_choice("cell", cell, CELLS)
    size = _check_weights("w", w, x, cell)
    G = check_group(x=x, **w._asdict())
    shapes = _shapes(G, size, cell)
    if out is None:
        made = [x.new_empty(shape if i == 0 or states else [0]) for i, shape in enumerate(shapes)]
        out = GatedStates(made[0], made[1], made[2] if cell == "lstm" else None)
    else:
        check_out(out.h, shapes[0], x)
    if states:
        check_out(out.gates, shapes[1], x)
        _check_cells(out.cells, cell)
        if out.cells is not None:
            check_out(out.cells, shapes[2], x)
    with torch.no_grad():
        form(choose("gated.gated_forward", x)).gated_forward(x, w, cell, states, out)
    return out


def differentiable_h(x: Tensor, w: GatedWeights, *, cell: str) -> Tensor:
    """h ``[G,T,B,H]`` of ``x [G,T,B,n]`` by torch's own ops, through which autograd goes."""
    check_choice("cell", cell, CELLS)
    _check_weights("w", w, x, cell)
    return reference.gated_forward(x, w, cell).h


def gated_tangent(
    x: Tensor,
    at: GatedStates,
    w: GatedWeights,
    v: GatedWeights,
    *,
    cell: str,
    Rx: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Rh ``[G,T,B,H]`` in the direction ``v``, and Rx ``[G,T,B,n]`` of the inputs (None: zero).

    ``at`` are the states that :func:`gated_forward` gave for the same ``x [G,T,B,n]`` and ``w``.
    """
    check_choice("cell", cell, CELLS)
    size = _check_weights("w", w, x, cell)
    _check_weights("v", v, x, cell, size.H)
    _check_states(at, size, cell, x)
    if Rx is not None:
        check_tensor("Rx", Rx, ["G", *x.shape[1:]], like=x)
    both = {f"{name}.{k}": t for name, u in (("w", w), ("v", v)) for k, t in u._asdict().items()}
    G = check_group(x=x, Rx=Rx, **at._asdict(), **both)
    out = check_out(out, (G, size.T, size.B, size.H), x)
    with torch.no_grad():
        form(choose("gated.gated_tangent", x)).gated_tangent(x, at, Rx, w, v, cell, out)
    return out


def gated_backward(
    gh: Tensor, at: GatedStates, W_hh: Tensor, *, cell: str, out: Tensor | None = None
) -> Tensor:
    """∂L/∂a ``[G,4,T,B,H]`` of the blocks, from ``gh [G,T,B,H]``, what reaches h past the scan.

    ``at`` are the states of :func:`gated_forward`, ``W_hh [G,R·H,H]`` the weight that made them.
    """
    check_choice("cell", cell, CELLS)
    T, B, _, H = _check_gh(gh, at, W_hh, cell)
    G = check_group(gh=gh, W_hh=W_hh, **at._asdict())
    out = check_out(out, (G, BLOCKS, T, B, H), gh)
    with torch.no_grad():
        form(choose("gated.gated_backward", gh)).gated_backward(gh, at, W_hh, cell, out)
    return out


def gated_gradient(
    gh: Tensor,
    x: Tensor,
    at: GatedStates,
    W_hh: Tensor,
    *,
    cell: str,
    ga: Tensor | None = None,
    out: GatedWeights | None = None,
) -> GatedWeights:
    """The gradient at the weights of a layer, from ``gh [G,T,B,H]`` as in :func:`gated_backward`.

    ``x [G,T,B,n]`` are the inputs that made ``at``; ``ga [G,4,T,B,H]`` takes ∂L/∂a, which a layer
    below needs.
    """
    check_choice("cell", cell, CELLS)
    size = _check_gh(gh, at, W_hh, cell)
    check_tensor("x", x, ["G", size.T, size.B, "n"], like=gh)
    check_positive(n=x.shape[3])
    G = check_group(gh=gh, x=x, W_hh=W_hh, **at._asdict())
    rows = rows_of(cell).blocks * size.H
    shapes = (G, rows, x.shape[3]), (G, rows, size.H), (G, BLOCKS, size.H)
    given = (None, None, None) if out is None else out
    out = GatedWeights(*(check_out(t, shape, gh) for t, shape in zip(given, shapes, strict=True)))
    if ga is not None:
        ga = check_out(ga, (G, BLOCKS, size.T, size.B, size.H), gh)
    with torch.no_grad():
        form(choose("gated.gated_gradient", gh)).gated_gradient(gh, x, at, W_hh, cell, out, ga)
    return out


# ---------------------------------------------------------------------------- checks


def _check_floating(name: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise TypeError(f"{name}: got {value.dtype}, need a floating-point dtype")


def _check_gh(gh: Tensor, at: GatedStates, W_hh: Tensor, cell: str) -> _Sizes:
    check_tensor("gh", gh, ["G", "T", "B", "H"])
    _check_floating("gh", gh)
    T, B, H = gh.shape[1:]
    check_positive(T=T, B=B, H=H)
    check_tensor("W_hh", W_hh, ["G", rows_of(cell).blocks * H, H], like=gh)
    size = _Sizes(T, B, 1, H)
    _check_states(at, size, cell, gh)
    return size


def _check_weights(
    name: str, w: GatedWeights, x: Tensor, cell: str, H: int | None = None
) -> _Sizes:
    """Check ``x [G,T,B,n]`` and weights against it."""
    check_tensor("x", x, ["G", "T", "B", "n"])
    _check_floating("x", x)
    T, B, n = x.shape[1:]
    if not isinstance(w, GatedWeights):
        raise TypeError(f"{name}: got {type(w).__name__}, need GatedWeights")
    check_tensor(f"{name}.b", w.b, ["G", BLOCKS, "H" if H is None else H], like=x)
    H = w.b.shape[-1]
    check_positive(T=T, B=B, n=n, H=H)
    rows = rows_of(cell).blocks * H
    check_tensor(f"{name}.W_ih", w.W_ih, ["G", rows, n], like=x)
    check_tensor(f"{name}.W_hh", w.W_hh, ["G", rows, H], like=x)
    return _Sizes(T, B, n, H)


def _shapes(G: int, size: _Sizes, cell: str) -> list[tuple[int, ...]]:
    """Those of h, gates and cells."""
    T, B, _, H = size
    return [(G, T, B, H), (G, BLOCKS, T, B, H), (G, 2, T, B, H)]


def _check_states(at: GatedStates, size: _Sizes, cell: str, like: Tensor) -> None:
    if not isinstance(at, GatedStates):
        raise TypeError(f"at: got {type(at).__name__}, need GatedStates")
    _check_cells(at.cells, cell)
    for name, value, shape in zip(at._fields, at, _shapes(1, size, cell), strict=True):
        if value is not None:
            check_tensor(name, value, ["G", *shape[1:]], like=like)


def _check_cells(cells: Tensor | None, cell: str) -> None:
    if (cells is None) != (cell == "gru"):
        need = "those of gated_forward" if cells is None else "None for a GRU"
        got = "None" if cells is None else "a tensor"
        raise ValueError(f"cells: got {got}, need {need}")
