"""The CG updates of the compiled module: CPU, float32 and float64.

Vectors go in as capsules: importing a tensor through its __dlpack__ method costs nanobind 2 µs.

Signatures and shapes: ``ConjugateGradientForm``.
"""

from __future__ import annotations

from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # not in its __all__

from hfcore.bindings import _native
from hfcore.bindings.threads import kernel_threads


def cg_update(
    x: Tensor, r: Tensor, z: Tensor, p: Tensor, Ap: Tensor, b: Tensor, rz: float,
    preconditioner: Tensor | None,
) -> tuple[float, float, float]:  # fmt: skip
    pAp, new_rz, phi = _native.cg_update(
        to_dlpack(x),
        to_dlpack(r),
        to_dlpack(z),
        to_dlpack(p),
        to_dlpack(Ap),
        to_dlpack(b),
        rz,
        None if preconditioner is None else to_dlpack(preconditioner),
        kernel_threads(),
    )
    return pAp, new_rz, phi


def cg_direction(p: Tensor, z: Tensor, beta: float) -> None:
    _native.cg_direction(to_dlpack(p), to_dlpack(z), beta, kernel_threads())


def dot(a: Tensor, b: Tensor) -> float:
    return float(_native.dot(to_dlpack(a), to_dlpack(b), kernel_threads()))
