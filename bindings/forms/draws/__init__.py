"""What every implementation of the counted random numbers offers, and which module is whose."""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from hfcore.bindings.dispatch import Backend


class DrawsForm(Protocol):
    """Formulas: ``kernels/draws/reference.py``."""

    def philox(self, seed: int, number: int, count: int, device: torch.device) -> Tensor:
        """The first words of a stream less their lowest bit, int64 ``[count]`` on ``device``."""

    def uniform(self, seed: int, number: int, out: Tensor) -> None:
        """A stream's numbers in [0, 1) into ``out [...]``, contiguous, float32 or float64."""


@cache
def form(backend: Backend) -> DrawsForm:
    """The module that serves for ``backend``."""
    if backend == "cuda":
        from hfcore.bindings.forms.draws import cuda

        return cuda
    if backend == "cpu":
        from hfcore.bindings.forms.draws import cpu

        return cpu
    from hfcore.bindings.forms.draws import reference

    return reference
