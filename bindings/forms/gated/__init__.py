"""What every implementation of the gated ops offers, and which module is whose."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from torch import Tensor

from hfcore.bindings.dispatch import Backend
from hfcore.kernels.gated import GatedStates, GatedWeights


class GatedForm(Protocol):
    """Formulas: ``kernels/gated/reference.py``. Group axes of 1 are shared by all G nets."""

    def gated_forward(
        self, x: Tensor, w: GatedWeights, cell: str, states: bool, out: GatedStates
    ) -> None:
        """h ``[G,T,B,H]`` into ``out.h``, with ``states`` the rest into the other buffers."""

    def gated_tangent(
        self, x: Tensor, at: GatedStates, Rx: Tensor | None, w: GatedWeights, v: GatedWeights,
        cell: str, out: Tensor,
    ) -> None:  # fmt: skip
        """Rh into ``out [G,T,B,H]``."""

    def gated_backward(
        self, gh: Tensor, at: GatedStates, W_hh: Tensor, cell: str, out: Tensor
    ) -> None:
        """∂L/∂a into ``out [G,4,T,B,H]``."""

    def gated_gradient(
        self, gh: Tensor, x: Tensor, at: GatedStates, W_hh: Tensor, cell: str, out: GatedWeights,
        ga: Tensor | None,
    ) -> None:  # fmt: skip
        """The gradient at the weights into ``out``, ∂L/∂a into ``ga [G,4,T,B,H]`` if given."""


@cache
def form(backend: Backend) -> GatedForm:
    """The module that serves for ``backend``."""
    if backend == "cuda":
        from hfcore.bindings.forms.gated import cuda

        return cuda
    if backend == "cpu":
        from hfcore.bindings.forms.gated import cpu

        return cpu
    from hfcore.bindings.forms.gated import reference

    return reference
