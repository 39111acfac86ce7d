"""The dense ops in plain torch: any device, any floating dtype.

Signatures and shapes: ``DenseForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.kernels.dense import reference
from hfcore.kernels.scratch import Scratch


def dense_forward(a: Tensor, W: Tensor, b: Tensor, activation: str, out: Tensor) -> Tensor:
    return out.copy_(reference.dense_forward(a.detach(), W.detach(), b.detach(), activation))


def dense_rforward(
    a: Tensor, Ra: Tensor | None, W: Tensor, V: Tensor, v_b: Tensor, y: Tensor, activation: str,
    out: Tensor, stop: Tensor | None,
) -> Tensor:  # fmt: skip
    moved = None if Ra is None else Ra.detach()
    tangent = V.detach(), v_b.detach()
    return out.copy_(
        reference.dense_rforward(a.detach(), moved, W.detach(), *tangent, y.detach(), activation)
    )


def dense_backward(
    delta: Tensor, W: Tensor, y: Tensor, activation: str, add: Tensor | None, out: Tensor,
    stop: Tensor | None,
) -> Tensor:  # fmt: skip
    more = None if add is None else add.detach()
    arrays = delta.detach(), W.detach(), y.detach()
    return out.copy_(reference.dense_backward(*arrays, activation, more))


def dense_gradient(
    delta: Tensor, a: Tensor, scale: float, squared: bool, out: tuple[Tensor, Tensor],
    stop: Tensor | None, scratch: Scratch | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    gW, gb = reference.dense_gradient(delta.detach(), a.detach(), scale, squared)
    return out[0].copy_(gW), out[1].copy_(gb)
