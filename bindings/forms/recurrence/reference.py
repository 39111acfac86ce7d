"""The recurrence ops in plain torch: any device, any floating dtype, differentiable.

Signatures and shapes: ``RecurrenceForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings.forms.results import filled
from hfcore.kernels.recurrence import Curvature, ForwardPass, RnnWeights, reference
from hfcore.kernels.scratch import Scratch

RECOMPUTES_STATES = False


def rnn_forward(
    x: Tensor, w: RnnWeights, nonlinearity: str, steps: Tensor | None, G: int, *, states: bool,
    out: Tensor | None,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    h, s = reference.rnn_forward(x, w, nonlinearity, steps)
    return (filled(out, h, G) if states else None), filled(None, s, G)


def linear_scan(
    u: Tensor, d: Tensor, W: Tensor, a: Tensor | None, reverse: bool, G: int, *,
    out: Tensor | None,
) -> Tensor:  # fmt: skip
    return filled(out, reference.linear_scan(u, d, W, a, reverse), G)


def rnn_backward(
    at: ForwardPass, gs: Tensor, size: tuple[int, int], *, out: Tensor | None
) -> Tensor:
    return filled(out, reference.rnn_backward(at, gs), size[0])


def rnn_gauss_newton(
    at: ForwardPass, v: Tensor, curvature: Curvature, size: tuple[int, int], *,
    out: Tensor | None, accumulate: bool, stop: Tensor | None, scratch: Scratch | None,
) -> Tensor:  # fmt: skip
    return filled(out, reference.rnn_gauss_newton(at, v, curvature), size[0], accumulate)
