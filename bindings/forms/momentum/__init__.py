"""What every implementation of the momentum ops offers, and which module is whose."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from torch import Tensor

from hfcore.bindings.dispatch import Backend


class MomentumForm(Protocol):
    """Formulas: ``kernels/momentum/reference.py``.

    Nets ``[G,N]``, coefficients ``[G]`` float64 and ``active [G]`` bool on the data's device.
    """

    def momentum_update(
        self, theta: Tensor, velocity: Tensor, gradient: Tensor, learning_rate: Tensor,
        momentum: Tensor, lookahead: Tensor, l2: Tensor | None, ahead: Tensor | None,
        active: Tensor | None,
    ) -> None:  # fmt: skip
        """theta, velocity and ahead in place; ``gradient [1 or G,N]``."""

    def lookahead_point(
        self, theta: Tensor, velocity: Tensor, momentum: Tensor, out: Tensor,
        active: Tensor | None,
    ) -> None:  # fmt: skip
        """θ + μ v to ``out [G,N]``."""


@cache
def form(backend: Backend) -> MomentumForm:
    """The module that serves for ``backend``."""
    if backend == "cuda":
        from hfcore.bindings.forms.momentum import cuda

        return cuda
    if backend == "cpu":
        from hfcore.bindings.forms.momentum import cpu

        return cpu
    from hfcore.bindings.forms.momentum import reference

    return reference
