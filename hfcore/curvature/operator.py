"""A curvature matrix of a model at its present parameters, as a linear operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.batches import Batch
from hfcore.curvature.linear_operator import LinearOperator
from hfcore.curvature.objectives import curvature_of, objective_for
from hfcore.flat import FlatParameters
from hfcore.losses import Loss
from hfcore.objective import CurvatureKind

AnyLoss = Loss | Callable[..., Tensor] | None
AnyModel = nn.Module | Iterable[nn.Parameter]


def check_nonnegative(name: str, value: float) -> float:
    """Check a damping-like number: finite and not negative. Raises ValueError."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: got {value}, need a finite number that is not negative")
    return float(value)


class CurvatureOperator(LinearOperator):
    """A = B + damping·(I + structural·G_S) at the model's present parameters, symmetric ``[N,N]``.

    B is a curvature of the mean loss (with the objective's L2, if any). Vectors are flat, in the
    order of ``model.parameters()``; activations are cached once, so that an operator outlives later
    changes of the parameters and stays at the old ones. The subclasses say what B is and take the
    data; ``loss`` is the objective there.
    """

    def __init__(
        self,
        kind: CurvatureKind,
        model: AnyModel,
        loss: AnyLoss,
        inputs: Any,
        targets: Any,
        mask: Tensor | None,
        *,
        damping: float,
        structural: float | Mapping[str, Any],
        **options: Any,
    ) -> None:
        self.damping = check_nonnegative("damping", damping)
        self.structural = structural
        # With named submodules every μ is in the objective.
        self._mu = 1.0
        if not isinstance(structural, Mapping):
            self._mu = self.structural = check_nonnegative("structural", structural)
        if not isinstance(model, nn.Module):
            model = list(model)
        self._objective = objective_for(model, loss, structural=structural, **options)
        parameters = FlatParameters(model)
        theta = parameters.read()
        bad = parameters.first_bad(theta)
        if bad is not None:
            raise ValueError(f"model: parameter {bad} holds NaN or Inf, need finite values")
        self._data = self._objective.prepare(_data(inputs, targets, mask))
        self._curvature = curvature_of(self._objective, self._data, theta, kind)
        self._theta = theta
        self.parameter_slices = parameters.slices()
        self.loss = self._curvature.loss

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N) for N parameters."""
        return (self._theta.numel(), self._theta.numel())

    @property
    def dtype(self) -> torch.dtype:
        return self._theta.dtype

    @property
    def device(self) -> torch.device:
        return self._theta.device

    @property
    def strategy(self) -> str:
        """How products are computed: ``"fused"``, or a strategy of ``autograd/strategies.py``."""
        return getattr(self._curvature, "strategy", "fused")

    @property
    def identity_part(self) -> float:  # type: ignore[override]
        """damping + l2, both of which are multiples of I."""
        return self.damping + self._objective.l2

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        return self._curvature.product(
            v, damping=self.damping, structural=self.damping * self._mu, out=out
        )

    def _products(self, V: Tensor) -> Tensor:
        return self._curvature.products(V, self.damping, self.damping * self._mu)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, "
            f"damping={self.damping}, structural={self.structural})"
        )


def _data(inputs: Any, targets: Any, mask: Tensor | None) -> Any:
    """Inputs with targets are one batch; alone they are a list of batches, or a closure."""
    if targets is not None or isinstance(inputs, Tensor):
        return Batch(inputs, targets, mask)
    if mask is not None:
        raise ValueError("mask: belongs to inputs and targets; a batch or a closure has its own")
    return inputs
