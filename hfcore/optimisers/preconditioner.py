"""Preconditioners of CG (Martens 2010, section 4.7; M&S 2012, section 20.11).

An operator brings ``apply(r, out)``, M⁻¹ r for a positive definite M, and may bring
``update(...)``, which is called before every solve with those of the keywords ``theta``,
``gradient``, ``curvature`` and ``damping`` that it takes. The diagonal ones are

M = (d + damping + l2)^exponent, with d from one of

- ``"fisher"``: the mean of the squared gradients of the cases in the gradient data;
- ``"ggn_diagonal"``: an unbiased estimate of diag(G) on the curvature data;
- ``"jacobi"``: diag(G) itself, at one backward pass per output.

The published exponent for the Fisher diagonal is 0.75 (Martens 2010), for the estimated diagonal
1 (Chapelle & Erhan 2011), for Jacobi 1 by definition.

What their passes count is in :class:`hfcore.optimisers.statistics.StepStats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hfcore.arguments import choice
from hfcore.checked_objective import takes
from hfcore.objective import Curvature, Objective
from hfcore.solvers.preconditioners import Preconditioner

DiagonalSource = Literal["fisher", "ggn_diagonal", "jacobi"]
EXPONENTS: dict[str, float] = {"fisher": 0.75, "ggn_diagonal": 1.0, "jacobi": 1.0}


# What an operator's ``update`` may take: θ and ∇f ``[N]``, the curvature, whose
# ``product(v, damping=λ)`` is that of the solve without structural and scale-sensitive damping, λ.
UPDATE_KEYWORDS = ("theta", "gradient", "curvature", "damping")


def check_preconditioner(name: str, value: Any) -> Any:
    """None, one of the diagonal ones by name, or an operator. Raises ValueError or TypeError."""
    if value is None or isinstance(value, str):
        return value if value is None else choice(name, value, EXPONENTS)
    if isinstance(value, type) or not callable(getattr(value, "apply", None)):
        raise TypeError(
            f"{name}: got {type(value).__name__}, need one of {', '.join(map(repr, EXPONENTS))}, "
            "or an object with a method apply(r, out)"
        )
    return value


def update(operator: Preconditioner, **known: Any) -> None:
    """Call the operator's ``update``, if it has one, with what it takes of ``known``."""
    method = getattr(operator, "update", None)
    if callable(method):
        method(**{name: known[name] for name in UPDATE_KEYWORDS if takes(method, name)})


@dataclass(frozen=True)
class DiagonalRule:
    """Which diagonal, to which power, from how many probes a case."""

    source: DiagonalSource
    exponent: float
    probes: int

    def diagonal(
        self,
        objective: Objective,
        gradient_data: Any,
        theta: Tensor,
        curvature: Curvature,
        generator: torch.Generator,
    ) -> Tensor:
        """d ``[N]`` at θ."""
        if self.source == "fisher":
            return objective.squared_gradients(gradient_data, theta)
        probes = self.probes if self.source == "ggn_diagonal" else None
        return curvature.diagonal(probes, generator)

    def matrix(self, diagonal: Tensor, damping: Tensor | float, l2: float) -> Tensor:
        """M ``[N]``; ``damping`` is λ, or λD ``[N]`` under scale-sensitive damping."""
        M = (diagonal + (damping + l2)).pow_(self.exponent)
        # A parameter without curvature or damping is left unscaled.
        return M.masked_fill_(M == 0, 1.0)
