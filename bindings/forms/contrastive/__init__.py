"""What every implementation of contrastive divergence offers, and which module is whose."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from torch import Tensor

from hfcore.bindings.dispatch import Backend


class ContrastiveForm(Protocol):
    """Formulas: ``kernels/dense/reference.py``. Group axes of 1 are shared by all G machines.

    ``v [1 or G,B,n]``, ``noise [1 or G,B,m]``, ``theta [1 or G,N]``; ``visible`` and ``hidden`` are
    activations, ``"logistic"`` or ``"linear"``.
    """

    def contrastive_gradient(
        self, v: Tensor, noise: Tensor, theta: Tensor, visible: str, hidden: str, out: Tensor
    ) -> Tensor:
        """Errors ``[G]`` float64; the gradient goes to ``out [G,N]``."""

    def contrastive_update(
        self, v: Tensor, noise: Tensor, theta: Tensor, velocity: Tensor, visible: str,
        hidden: str, learning_rate: float, momentum: float, weight_cost: float,
    ) -> Tensor:  # fmt: skip
        """Errors ``[G]`` float64 before the update of ``theta``, ``velocity [G,N]`` in place."""


@cache
def form(backend: Backend) -> ContrastiveForm:
    """The module that serves for ``backend``."""
    if backend == "cuda":
        from hfcore.bindings.forms.contrastive import cuda

        return cuda
    if backend == "cpu":
        from hfcore.bindings.forms.contrastive import cpu

        return cpu
    from hfcore.bindings.forms.contrastive import reference

    return reference
