"""What every implementation of the ops on whole nets offers, and which module is whose."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from hfcore.bindings.dispatch import Backend
from hfcore.bindings.momentum import Rates, Step

if TYPE_CHECKING:
    from hfcore.bindings.net import Net


class NetForm(Protocol):
    """Formulas: ``kernels/dense/reference.py``. Group axes of 1 are shared by all G nets.

    ``x [1 or G,B,n]``; ``targets`` ``[1 or G,B,k]``, or classes ``[1 or G,B]`` for softmax.
    """

    def net_gradient(
        self, net: Net, x: Tensor, targets: Tensor, theta: Tensor, scale: float, out: Tensor
    ) -> Tensor:
        """Losses ``[G]`` float64; the gradient at ``theta [1 or G,N]`` to ``out [G,N]``."""

    def net_update(
        self, net: Net, x: Tensor, targets: Tensor, theta: Tensor, velocity: Tensor, step: Step,
        rates: Rates, scale: float, active: Tensor | None, out: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Losses ``[G]`` float64 before the update of ``theta``, ``velocity`` ``[G,N]`` in place.

        ``rates``: the coefficients of ``step`` as tensors.
        """


@cache
def form(backend: Backend) -> NetForm:
    """The module that serves for ``backend``."""
    if backend == "cuda":
        from hfcore.bindings.forms.net import cuda

        return cuda
    if backend == "cpu":
        from hfcore.bindings.forms.net import cpu

        return cpu
    from hfcore.bindings.forms.net import reference

    return reference
