"""What every implementation of the dense ops offers, and which module is whose."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from torch import Tensor

from hfcore.bindings.dispatch import Backend
from hfcore.kernels.scratch import Scratch


class DenseForm(Protocol):
    """Formulas: ``kernels/dense/reference.py``; group axes of 1 are shared.

    All fill ``out``. Where the int32 ``stop [1]`` is not zero CUDA forms do nothing; the others
    do not look at it.
    """

    def dense_forward(
        self, a: Tensor, W: Tensor, b: Tensor, activation: str, out: Tensor
    ) -> Tensor:
        """y ``[G,B,m]`` from ``a [G,B,n]``, ``W [G,m,n]``, ``b [G,m]``."""

    def dense_rforward(
        self, a: Tensor, Ra: Tensor | None, W: Tensor, V: Tensor, v_b: Tensor, y: Tensor,
        activation: str, out: Tensor, stop: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Ry ``[G,B,m]`` from ``a, Ra [G,B,n]``, ``W, V [G,m,n]``, ``v_b [G,m]``, ``y [G,B,m]``."""

    def dense_backward(
        self, delta: Tensor, W: Tensor, y: Tensor, activation: str, add: Tensor | None,
        out: Tensor, stop: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """``[G,B,n]`` from ``delta [G,B,m]``, ``W [G,m,n]``, ``y, add [G,B,n]``."""

    def dense_gradient(
        self, delta: Tensor, a: Tensor, scale: float, squared: bool, out: tuple[Tensor, Tensor],
        stop: Tensor | None, scratch: Scratch | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """gW ``[G,m,n]`` and gb ``[G,m]`` from ``delta [G,B,m]``, ``a [G,B,n]``."""


@cache
def form(backend: Backend) -> DenseForm:
    """The module that serves for ``backend``."""
    if backend == "cuda":
        from hfcore.bindings.forms.dense import cuda

        return cuda
    if backend == "cpu":
        from hfcore.bindings.forms.dense import cpu

        return cpu
    from hfcore.bindings.forms.dense import reference

    return reference
