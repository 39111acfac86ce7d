"""What every implementation of the sparse ops offers, and which module is whose."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from torch import Tensor

from hfcore.bindings.dispatch import Backend
from hfcore.kernels.sparse import EllPattern


class SparseForm(Protocol):
    """Formulas: ``kernels/sparse/reference.py``; group axes of 1 are shared. All fill ``out``."""

    def ell_matmul(self, x: Tensor, value: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
        """x Wᵀ ``[G,B,m]`` from ``x [G,B,n]``, ``value [G,m,K]``."""

    def ell_matmul_t(self, g: Tensor, value: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
        """g W ``[G,B,n]`` from ``g [G,B,m]``, ``value [G,m,K]``."""

    def ell_gradient(self, g: Tensor, x: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
        """gᵀx at the entries, ``[G,m,K]``, from ``g [G,B,m]``, ``x [G,B,n]``."""

    def ell_scan(
        self, u: Tensor, d: Tensor, value: Tensor, pattern: EllPattern, a: Tensor | None,
        transposed: bool, reverse: bool, out: Tensor,
    ) -> Tensor:  # fmt: skip
        """y ``[G,T,B,H]`` from ``u, d, a [G,T,B,H]``, ``value [G,H,K]``."""

    def ell_hidden(
        self, u: Tensor, value: Tensor, pattern: EllPattern, nonlinearity: str, out: Tensor
    ) -> Tensor:
        """h ``[G,T,B,H]`` from ``u [G,T,B,H]``, ``value [G,H,K]``."""


@cache
def form(backend: Backend) -> SparseForm:
    """The module that serves for ``backend``."""
    if backend == "cuda":
        from hfcore.bindings.forms.sparse import cuda

        return cuda
    if backend == "cpu":
        from hfcore.bindings.forms.sparse import cpu

        return cpu
    from hfcore.bindings.forms.sparse import reference

    return reference
