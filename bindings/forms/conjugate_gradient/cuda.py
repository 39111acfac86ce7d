"""The CG updates on Triton kernels, float32 and float64; a result waits for the device.

Signatures and shapes: ``ConjugateGradientForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings.triton_backend import serving
from hfcore.kernels.conjugate_gradient import gpu_triton


def cg_update(
    x: Tensor, r: Tensor, z: Tensor, p: Tensor, Ap: Tensor, b: Tensor, rz: float,
    preconditioner: Tensor | None,
) -> tuple[float, float, float]:  # fmt: skip
    with serving("conjugate_gradient.cg_update", x.device):
        return gpu_triton.cg_update(x, r, z, p, Ap, b, rz, preconditioner)


def cg_direction(p: Tensor, z: Tensor, beta: float) -> None:
    with serving("conjugate_gradient.cg_direction", p.device):
        gpu_triton.cg_direction(p, z, beta)


def dot(a: Tensor, b: Tensor) -> float:
    with serving("conjugate_gradient.dot", a.device):
        return gpu_triton.dot(a, b)
