"""The Levenberg-Marquardt rule for λ (Martens 2010, section 4.1; M&S 2012, section 20.8.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

RHO_CONVENTIONS = ("damped", "undamped")


@dataclass(frozen=True)
class LevenbergMarquardt:
    """ρ < low or ρ not a number: λ·up; ρ > high: λ·down. Published: ¼, ¾, 3/2, 2/3."""

    low: float = 0.25
    high: float = 0.75
    up: float = 3 / 2
    down: float = 2 / 3

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"rho_low, rho_high: got {self.low}, {self.high}, need 0 ≤ low ≤ high")
        if not (self.up >= 1 >= self.down > 0):
            raise ValueError(
                f"damping_up, damping_down: got {self.up}, {self.down}, need up ≥ 1 ≥ down > 0"
            )

    def next(self, damping: float, rho: float) -> float:
        """λ for the next step."""
        if math.isnan(rho) or rho < self.low:
            return damping * self.up
        return damping * self.down if rho > self.high else damping


def reduction_ratio(change: float, model_change: float) -> float:
    """ρ = [f(θ+p) − f(θ)] / q(p); −∞ when f rises or is not finite, nan without a model decrease.

    The demo of Martens 2010 sets ρ = −∞ where f rises, whatever the sign of q.
    """
    if not math.isfinite(change) or change > 0:
        return -math.inf
    if not model_change < 0:
        return math.nan
    return change / model_change
