"""``hf.EmpiricalFisher``: the second moment of the gradients of the cases, as an operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfcore.curvature import estimators
from hfcore.curvature.operator import AnyLoss, AnyModel, CurvatureOperator


class EmpiricalFisher(CurvatureOperator):
    """A ``[N,N]`` = mean over cases of g gᵀ + damping·(I + structural·G_S).

    g is the gradient of a case's loss, not centred, and with the given targets (Martens &
    Sutskever 2012, section 20.11.3, take its diagonal). The arguments are those of
    :class:`hfcore.GaussNewton`; a closure has no cases.
    """

    def __init__(
        self,
        model: AnyModel | None = None,
        loss: AnyLoss = None,
        inputs: Any = None,
        targets: Any = None,
        *,
        mask: Tensor | None = None,
        objective: Any = None,
        theta: Tensor | None = None,
        damping: float = 0.0,
        structural: float | Mapping[str, Any] = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(
            "fisher",
            model,
            loss,
            inputs,
            targets,
            mask,
            objective=objective,
            theta=theta,
            damping=damping,
            structural=structural,
            **options,
        )
        # An objective of one's own need not have the squares of its cases' gradients.
        self._has_squares = objective is None

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag A ``[N]``: exact for ``probes`` None, else an unbiased estimate.

        Exact without structural damping from the squared gradients of the cases; else, and where
        the objective is one of your own, from products.
        """
        estimators.check_probes(probes, generator)
        if probes is not None or self.damping * self._mu or not self._has_squares:
            return super().diagonal(probes, generator)
        squares = self._objective.squared_gradients(self._data, self._theta)
        return squares + (self.damping + self._objective.l2)
