"""The momentum ops of the compiled module: CPU, float32 and float64.

Arrays go in as capsules: importing a tensor through its __dlpack__ method costs nanobind 2 µs.

Signatures and shapes: ``MomentumForm``.
"""

from __future__ import annotations

from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # not in its __all__

from hfcore.bindings import _native
from hfcore.bindings.checks import dense
from hfcore.bindings.threads import kernel_threads


def momentum_update(
    theta: Tensor, velocity: Tensor, gradient: Tensor, learning_rate: Tensor, momentum: Tensor,
    lookahead: Tensor, l2: Tensor | None, ahead: Tensor | None, active: Tensor | None,
) -> None:  # fmt: skip
    _native.momentum_update(
        to_dlpack(theta),
        to_dlpack(velocity),
        to_dlpack(dense(gradient)),
        to_dlpack(learning_rate),
        to_dlpack(momentum),
        to_dlpack(lookahead),
        None if l2 is None else to_dlpack(l2),
        None if ahead is None else to_dlpack(ahead),
        None if active is None else to_dlpack(active),
        kernel_threads(),
    )


def lookahead_point(
    theta: Tensor, velocity: Tensor, momentum: Tensor, out: Tensor, active: Tensor | None
) -> None:
    _native.lookahead_point(
        to_dlpack(theta),
        to_dlpack(velocity),
        to_dlpack(momentum),
        to_dlpack(out),
        None if active is None else to_dlpack(active),
        kernel_threads(),
    )
