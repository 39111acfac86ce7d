"""``hf.EmpiricalFisher``: the second moment of the gradients of the cases, as an operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hfcore.curvature.operator import AnyLoss, AnyModel, CurvatureOperator


class EmpiricalFisher(CurvatureOperator):
    """A = mean over cases of g gᵀ + damping·(I + structural·G_S), g the gradient of a case's loss.

    Not centred, and with the given targets (Martens & Sutskever 2012, section 20.11.3, take its
    diagonal). The arguments are those of :class:`hfcore.GaussNewton`; a closure has no cases.
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
