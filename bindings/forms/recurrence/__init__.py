"""What every implementation of the recurrence ops offers, and which module is whose."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from torch import Tensor

from hfcore.bindings.dispatch import Backend
from hfcore.kernels.recurrence import Curvature, ForwardPass, RnnWeights
from hfcore.kernels.scratch import Scratch


class RecurrenceForm(Protocol):
    """Formulas: ``kernels/recurrence/reference.py``. Group axes of 1 are shared by all G nets.

    ``RECOMPUTES_STATES``: ``rnn_gauss_newton`` needs no h. Results are ``[G,...]``, in ``out`` if
    that is given.
    """

    @property
    def RECOMPUTES_STATES(self) -> bool: ...

    def rnn_forward(
        self, x: Tensor, w: RnnWeights, nonlinearity: str, steps: Tensor | None, G: int, *,
        states: bool, out: Tensor | None,
    ) -> tuple[Tensor | None, Tensor]:  # fmt: skip
        """h ``[G,T,B,H]``, None unless ``states``, and s ``[G,T_out,B,k]``."""

    def linear_scan(
        self, u: Tensor, d: Tensor, W: Tensor, a: Tensor | None, reverse: bool, G: int, *,
        out: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """y ``[G,T,B,H]``."""

    def rnn_backward(
        self, at: ForwardPass, gs: Tensor, size: tuple[int, int], *, out: Tensor | None
    ) -> Tensor:
        """``[G,N]``, which is ``size``, from ``gs [G,T_out,B,k]``."""

    def rnn_gauss_newton(
        self, at: ForwardPass, v: Tensor, curvature: Curvature, size: tuple[int, int], *,
        out: Tensor | None, accumulate: bool, stop: Tensor | None, scratch: Scratch | None,
    ) -> Tensor:  # fmt: skip
        """``[G,N]``, which is ``size``, from ``v [1 or G,N]``; ``accumulate`` adds to ``out``."""


@cache
def form(backend: Backend) -> RecurrenceForm:
    """The module that serves for ``backend``."""
    if backend == "cuda":
        from hfcore.bindings.forms.recurrence import cuda

        return cuda
    if backend == "cpu":
        from hfcore.bindings.forms.recurrence import cpu

        return cpu
    from hfcore.bindings.forms.recurrence import reference

    return reference
