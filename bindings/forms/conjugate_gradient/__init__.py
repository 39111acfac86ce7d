"""What every implementation of the CG updates offers, and which module is whose."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from torch import Tensor

from hfcore.bindings.dispatch import Backend


class ConjugateGradientForm(Protocol):
    """Formulas: ``kernels/conjugate_gradient/reference.py``; all vectors are ``[N]``."""

    def cg_update(
        self, x: Tensor, r: Tensor, z: Tensor, p: Tensor, Ap: Tensor, b: Tensor, rz: float,
        preconditioner: Tensor | None,
    ) -> tuple[float, float, float]:  # fmt: skip
        """x, r and z ``[N]`` in place; (pᵀAp, new rᵀz, φ(x))."""

    def cg_direction(self, p: Tensor, z: Tensor, beta: float) -> None:
        """p = z + β p in place, ``[N]``."""

    def dot(self, a: Tensor, b: Tensor) -> float:
        """aᵀb of ``[N]``."""


@cache
def form(backend: Backend) -> ConjugateGradientForm:
    """The module that serves for ``backend``."""
    if backend == "cuda":
        from hfcore.bindings.forms.conjugate_gradient import cuda

        return cuda
    if backend == "cpu":
        from hfcore.bindings.forms.conjugate_gradient import cpu

        return cpu
    from hfcore.bindings.forms.conjugate_gradient import reference

    return reference
