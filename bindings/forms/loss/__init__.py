"""What every implementation of the loss ops offers, and which module is whose."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from torch import Tensor

from hfcore.bindings.dispatch import Backend
from hfcore.kernels.loss.reference import RankOne


class LossForm(Protocol):
    """Formulas: ``kernels/loss/reference.py``. Group axes of 1 are shared by all G nets.

    All look at values: a class that is not one of the k outputs, a weight that is negative or not
    finite is a ValueError. Results are ``[G,...]``, in ``out`` if that is given.
    """

    def loss_value(
        self, kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float,
        delta: float, G: int,
    ) -> Tensor:  # fmt: skip
        """``[G]`` float64 from ``s [G,T,B,k]``."""

    def loss_gradient(
        self, kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float,
        delta: float, G: int, out: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """``[G,T,B,k]``; ``out`` may be s itself."""

    def loss_curvature(
        self, kind: str, s: Tensor, targets: Tensor | None, mask: Tensor | None, delta: float,
        G: int, out: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """c ``[G,T,B,k]``; ``targets`` are there where c depends on them."""

    def loss_hessian_product(
        self, c: Tensor, Rs: Tensor, rank_one: RankOne, scale: float, G: int,
        out: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """``[G,T,B,k]`` from ``c, Rs [G,T,B,k]``; ``out`` may be either of them."""


@cache
def form(backend: Backend) -> LossForm:
    """The module that serves for ``backend``."""
    if backend == "cuda":
        from hfcore.bindings.forms.loss import cuda

        return cuda
    if backend == "cpu":
        from hfcore.bindings.forms.loss import cpu

        return cpu
    from hfcore.bindings.forms.loss import reference

    return reference
