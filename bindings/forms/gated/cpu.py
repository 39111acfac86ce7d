"""The gated ops of the compiled module: CPU, float32 and float64.

Signatures and shapes: ``GatedForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings import _native
from hfcore.bindings.checks import dense
from hfcore.bindings.forms.gated.products import gradient_by_products
from hfcore.bindings.native_calls import call
from hfcore.bindings.threads import kernel_threads
from hfcore.kernels.gated import BLOCKS, CELLS, GatedStates, GatedWeights


def gated_forward(x: Tensor, w: GatedWeights, cell: str, states: bool, out: GatedStates) -> None:
    h, gates, cells = out
    kept = (gates, cells) if states else (None, None)
    number = CELLS.index(cell)
    call(_native.gated_forward, dense(x), *map(dense, w), number, h, *kept, kernel_threads())


def gated_tangent(
    x: Tensor, at: GatedStates, Rx: Tensor | None, w: GatedWeights, v: GatedWeights, cell: str,
    out: Tensor,
) -> None:  # fmt: skip
    call(
        _native.gated_tangent,
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
    call(
        _native.gated_backward, dense(gh), *_states(at), dense(W_hh), number, out, kernel_threads()
    )


# Bytes of a tile's sums up to which they are made on the way back: larger ones leave the caches
# with every few steps, and products of all of ga are as fast.
SUMS_BYTES = 4 << 20


def gated_gradient(
    gh: Tensor, x: Tensor, at: GatedStates, W_hh: Tensor, cell: str, out: GatedWeights,
    ga: Tensor | None,
) -> None:  # fmt: skip
    H, n = out.b.shape[-1], x.shape[-1]
    if BLOCKS * H * (H + n + 1) * x.element_size() > SUMS_BYTES:
        gradient_by_products(gated_backward, gh, x, at, W_hh, cell, out, ga)
        return
    number, threads = CELLS.index(cell), kernel_threads()
    arguments = dense(gh), dense(x), *_states(at), dense(W_hh), number, *out, ga, threads
    call(_native.gated_gradient, *arguments)


def _states(at: GatedStates) -> tuple[Tensor, Tensor, Tensor | None]:
    return dense(at.h), dense(at.gates), None if at.cells is None else dense(at.cells)
