"""The dense ops of the compiled module: CPU, float32 and float64.

Signatures and shapes: ``DenseForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings import _native
from hfcore.bindings.checks import nets
from hfcore.bindings.native_calls import call
from hfcore.bindings.threads import kernel_threads
from hfcore.kernels.dense.reference import ACTIVATIONS
from hfcore.kernels.scratch import Scratch


def dense_forward(a: Tensor, W: Tensor, b: Tensor, activation: str, out: Tensor) -> Tensor:
    call(
        _native.dense_forward,
        nets(a),
        nets(W),
        nets(b),
        ACTIVATIONS.index(activation),
        out,
        kernel_threads(),
    )
    return out


def dense_rforward(
    a: Tensor, Ra: Tensor | None, W: Tensor, V: Tensor, v_b: Tensor, y: Tensor, activation: str,
    out: Tensor, stop: Tensor | None,
) -> Tensor:  # fmt: skip
    call(
        _native.dense_rforward,
        nets(a),
        None if Ra is None else nets(Ra),
        nets(W),
        nets(V),
        nets(v_b),
        nets(y),
        ACTIVATIONS.index(activation),
        out,
        kernel_threads(),
    )
    return out


def dense_backward(
    delta: Tensor, W: Tensor, y: Tensor, activation: str, add: Tensor | None, out: Tensor,
    stop: Tensor | None,
) -> Tensor:  # fmt: skip
    call(
        _native.dense_backward,
        nets(delta),
        nets(W),
        nets(y),
        ACTIVATIONS.index(activation),
        None if add is None else nets(add),
        out,
        kernel_threads(),
    )
    return out


def dense_gradient(
    delta: Tensor, a: Tensor, scale: float, squared: bool, out: tuple[Tensor, Tensor],
    stop: Tensor | None, scratch: Scratch | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    call(_native.dense_gradient, nets(delta), nets(a), scale, squared, *out, kernel_threads())
    return out
