"""``hf.Hessian``: the exact second derivative of a model's objective, as an operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from hfcore.arguments import naming_options_of
from hfcore.autograd.objective import ModuleObjective
from hfcore.bindings.checks import check_choice
from hfcore.curvature.operator import AnyLoss, AnyModel, CurvatureOperator
from hfcore.nets import FusedObjective
from hfcore.objective import CurvatureKind

KINDS: dict[str, CurvatureKind] = {"rop": "hessian", "finite_difference": "hessian_fd"}


class Hessian(CurvatureOperator):
    """A ``[N,N]`` = ∇²f + damping·(I + structural·G_S) at the model's present parameters.

    It may be indefinite. ``method``: ``"rop"``, the R-operator (Pearlmutter 1994; Martens &
    Sutskever 2012, section 20.5), or ``"finite_difference"`` of the gradient, two gradients a
    product and half the digits, without structural damping. The other arguments are those of
    :class:`hfcore.GaussNewton`.
    """

    @naming_options_of(CurvatureOperator, ModuleObjective, FusedObjective)
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
        method: Literal["rop", "finite_difference"] = "rop",
        damping: float = 0.0,
        structural: float | Mapping[str, Any] = 0.0,
        **options: Any,
    ) -> None:
        self.method = check_choice("method", method, tuple(KINDS))
        self.kind = KINDS[method]
        super().__init__(
            model,
            loss,
            inputs,
            targets,
            mask=mask,
            objective=objective,
            theta=theta,
            damping=damping,
            structural=structural,
            **options,
        )
