"""The gated ops in plain torch: any device, any floating dtype.

Signatures and shapes: ``GatedForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.kernels.gated import GatedStates, GatedWeights, reference


def gated_forward(x: Tensor, w: GatedWeights, cell: str, states: bool, out: GatedStates) -> None:
    made = reference.gated_forward(x, w, cell)
    out.h.copy_(made.h)
    if states:
        out.gates.copy_(made.gates)
    if states and out.cells is not None and made.cells is not None:
        out.cells.copy_(made.cells)


def gated_tangent(
    x: Tensor, at: GatedStates, Rx: Tensor | None, w: GatedWeights, v: GatedWeights, cell: str,
    out: Tensor,
) -> None:  # fmt: skip
    out.copy_(reference.gated_tangent(x, at, Rx, w, v, cell))


def gated_backward(gh: Tensor, at: GatedStates, W_hh: Tensor, cell: str, out: Tensor) -> None:
    out.copy_(reference.gated_backward(gh, at, W_hh, cell))


def gated_gradient(
    gh: Tensor, x: Tensor, at: GatedStates, W_hh: Tensor, cell: str, out: GatedWeights,
    ga: Tensor | None,
) -> None:  # fmt: skip
    made = reference.gated_backward(gh, at, W_hh, cell)
    for to, value in zip(out, reference.weight_gradient(made, x, at.h, cell), strict=True):
        to.copy_(value)
    if ga is not None:
        ga.copy_(made)
