"""The gated ops of the compiled module: CPU, float32 and float64.

Signatures and shapes: ``GatedForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings import _native
from hfcore.bindings.checks import dense
from hfcore.bindings.threads import kernel_threads
from hfcore.kernels.gated import CELLS, GatedStates, GatedWeights


def gated_forward(x: Tensor, w: GatedWeights, cell: str, states: bool, out: GatedStates) -> None:
    h, gates, cells = out
    kept = (gates, cells) if states else (None, None)
    number = CELLS.index(cell)
    _native.gated_forward(dense(x), *map(dense, w), number, h, *kept, kernel_threads())


def gated_tangent(
    x: Tensor, at: GatedStates, Rx: Tensor | None, w: GatedWeights, v: GatedWeights, cell: str,
    out: Tensor,
) -> None:  # fmt: skip
    _native.gated_tangent(
        dense(x),
        *_states(at),
        None if Rx is None else dense(Rx),
        dense(w.W_ih),
        dense(w.W_hh),
        *map(dense, v),
        CELLS.index(cell),
        out,
        kernel_threads(),
    )


def gated_backward(gh: Tensor, at: GatedStates, W_hh: Tensor, cell: str, out: Tensor) -> None:
    number = CELLS.index(cell)
    _native.gated_backward(dense(gh), *_states(at), dense(W_hh), number, out, kernel_threads())


def _states(at: GatedStates) -> tuple[Tensor, Tensor, Tensor | None]:
    return dense(at.h), dense(at.gates), None if at.cells is None else dense(at.cells)
