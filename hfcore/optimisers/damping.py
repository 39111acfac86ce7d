"""How λ and the trust radius follow the reduction ratio ρ.

Levenberg-Marquardt: Martens 2010, section 4.1; M&S 2012, section 20.8.5. Trust region: M&S 2012,
section 20.8.6, with the radius rule of Nocedal & Wright, algorithm 4.1, and the norm of Steihaug
(1983).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

RHO_CONVENTIONS = ("damped", "undamped")

# The published conventions by name, as options of hf.HessianFree. Martens 2010 leaves the damping
# out of ρ's model, the RNN release of 2011 keeps it in; Chapelle & Erhan 2011 move λ by 2 and
# quadruple it after a failed step.
DAMPING_RULES: dict[str, dict[str, Any]] = {
    "martens2010": {"rho": "undamped", "damping_up": 3 / 2, "damping_down": 2 / 3},
    "rnn2011": {"rho": "damped", "damping_up": 3 / 2, "damping_down": 2 / 3},
    "chapelle2011": {
        "rho": "undamped",
        "damping_up": 2.0,
        "damping_down": 1 / 2,
        "damping_failed": 4.0,
    },
}


# Of the curvature's scale: what λ is raised to from 0, and what it is raised to at least. Below, it
# has no effect on a step, and factors would take dozens of steps to where it has.
FROM_ZERO, RAISED = 1e-3, 1e-6
# Before the curvature's scale is known: from λ = 0 a raise by factors would stay there.
SMALLEST_RAISED = 1e-6


@dataclass(frozen=True)
class DampingBounds:
    """Between what values factors may move λ, relative to the curvature along the steps.

    ``scale`` is s = pᵀAp/pᵀp of the last step p in which λ was at most half of it (of the first
    step, before there was one), ``eps`` the machine's for the parameters' dtype. λ is not lowered
    below eps·s, where it drowns in the rounding of products, nor raised above s/eps, where the step
    does. A λ that was given is left beyond them.
    """

    scale: float
    eps: float

    @property
    def lowest(self) -> float:
        return self.eps * self.scale

    @property
    def highest(self) -> float:
        return self.scale / self.eps

    def moved(self, damping: float, factor: float) -> float:
        """λ·factor within the bounds."""
        if factor > 1:
            least = (FROM_ZERO if damping == 0 else RAISED) * self.scale
            return min(max(damping * factor, least), max(damping, self.highest))
        return max(damping * factor, min(damping, self.lowest))


@dataclass(frozen=True)
class LevenbergMarquardt:
    """ρ < low or ρ not a number: λ·up; ρ > high: λ·down. Published: ¼, ¾, 3/2, 2/3.

    ``failed`` takes the place of ``up`` after a rejected step; None: no difference.
    """

    low: float = 0.25
    high: float = 0.75
    up: float = 3 / 2
    down: float = 2 / 3
    failed: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"rho_low, rho_high: got {self.low}, {self.high}, need 0 ≤ low ≤ high")
        if not (self.up >= 1 >= self.down > 0):
            raise ValueError(
                f"damping_up, damping_down: got {self.up}, {self.down}, need up ≥ 1 ≥ down > 0"
            )
        if self.failed is not None and not self.failed >= 1:
            raise ValueError(f"damping_failed: got {self.failed}, need at least 1 or None")

    def next(
        self,
        damping: float,
        rho: float,
        *,
        accepted: bool = True,
        bounds: DampingBounds | None = None,
    ) -> float:
        """λ for the next step."""
        factor = 1.0
        if not accepted and self.failed is not None:
            factor = self.failed
        elif math.isnan(rho) or rho < self.low:
            factor = self.up
        elif rho > self.high:
            factor = self.down
        return damping * factor if bounds is None else bounds.moved(damping, factor)


@dataclass(frozen=True)
class Nielsen:
    """λ·max(⅓, 1 − (2ρ − 1)³) after a step; λ·2, λ·4, λ·8, … after failures that follow each other.

    Nielsen (1999), "Damping parameter in Marquardt's method", equation 2.4b: no jumps where ρ
    passes a threshold. ``growth`` is the factor of the next failure, 2 after every step.
    """

    growth: float = 2.0

    def next(self, damping: float, rho: float, *, accepted: bool) -> tuple[float, Nielsen]:
        """λ for what is tried next, and the rule from there on."""
        if accepted:
            return damping * max(1 / 3, 1 - (2 * rho - 1) ** 3), Nielsen()
        return damping * self.growth, Nielsen(2 * self.growth)


@dataclass(frozen=True)
class TrustRadius:
    """ρ < ¼ or not a number: radius ¼‖p‖; ρ > ¾ on the boundary: twice the radius.

    Norms are those of the region: the preconditioner's, where there is one.
    """

    low: float = 0.25
    high: float = 0.75

    def next(
        self, radius: float, rho: float, step_norm: float, *, on_boundary: bool = False
    ) -> float:
        """The radius of the next step.

        ``step_norm`` is ‖p‖ before the line search, 0 for none; ``on_boundary``: CG ended there,
        at p.
        """
        if math.isnan(rho) or rho < self.low:
            return 0.25 * (step_norm if step_norm > 0 else radius)
        return 2.0 * radius if rho > self.high and on_boundary else radius


def reduction_ratio(change: float, model_change: float) -> float:
    """ρ = [f(θ+p) − f(θ)] / q(p); −∞ when f rises or is not finite, nan without a model decrease.

    The demo of Martens 2010 sets ρ = −∞ where f rises, whatever the sign of q.
    """
    if not math.isfinite(change) or change > 0:
        return -math.inf
    if not model_change < 0:
        return math.nan
    return change / model_change
