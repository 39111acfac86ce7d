"""The CG updates of the compiled module: CPU, float32 and float64.

Signatures and shapes: ``ConjugateGradientForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings import _native
from hfcore.bindings.native_calls import call
from hfcore.bindings.threads import kernel_threads


def cg_update(
    x: Tensor, r: Tensor, z: Tensor, p: Tensor, Ap: Tensor, b: Tensor, rz: float,
    preconditioner: Tensor | None,
) -> tuple[float, float, float]:  # fmt: skip
    pAp, new_rz, phi = call(
        _native.cg_update,
        x,
        r,
        z,
        p,
        Ap,
        b,
        rz,
        preconditioner,
        kernel_threads(),
    )
    return pAp, new_rz, phi


def cg_direction(p: Tensor, z: Tensor, beta: float) -> None:
    call(_native.cg_direction, p, z, beta, kernel_threads())


def dot(a: Tensor, b: Tensor) -> float:
    return float(call(_native.dot, a, b, kernel_threads()))
