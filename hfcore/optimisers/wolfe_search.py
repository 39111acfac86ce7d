"""A line search that brackets a minimum and interpolates, to the strong Wolfe conditions.

It plays the part of Rasmussen's ``minimize`` in the fine-tuning of Hinton & Salakhutdinov (2006),
with his constants; the bracketing is that of Nocedal & Wright (2006, algorithms 3.5 and 3.6).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hfcore.arguments import count, number

# Of the way to a point where the function is not finite, what is tried next.
RETREAT = 0.1


@dataclass(frozen=True)
class Trial:
    """f(θ + αp) and its slope ∇fᵀp at one α."""

    alpha: float
    value: float
    slope: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.slope)


@dataclass(frozen=True)
class WolfeSearch:
    """Looks for α with f(α) ≤ f(0) + ρ α f'(0) and |f'(α)| ≤ σ |f'(0)|.

    Args:
        sufficient_decrease: ρ, below σ.
        curvature: σ, below 1.
        max_evaluations: trials of one search; at its end the best one is taken.
        margin: a trial between two others keeps this share of their distance from each.
        extrapolation: a trial beyond the last one is at most so many times as far.

    Raises TypeError or ValueError naming the option.
    """

    sufficient_decrease: float = 0.05
    curvature: float = 0.1
    max_evaluations: int = 20
    margin: float = 0.1
    extrapolation: float = 3.0

    def __post_init__(self) -> None:
        rho = number("sufficient_decrease", self.sufficient_decrease)
        sigma = number("curvature", self.curvature)
        if not 0 < rho < sigma < 1:
            raise ValueError(
                f"sufficient_decrease, curvature: got {rho} and {sigma}, need "
                "0 < sufficient_decrease < curvature < 1"
            )
        count("max_evaluations", self.max_evaluations)
        if not 0 < number("margin", self.margin) < 0.5:
            raise ValueError(f"margin: got {self.margin}, need between 0 and 0.5")
        if not 1 < number("extrapolation", self.extrapolation) < math.inf:
            raise ValueError(f"extrapolation: got {self.extrapolation}, need above 1 and finite")

    def search(
        self,
        f: Callable[[float], Trial],
        start: Trial,
        first: float,
        keep: Callable[[Trial], None],
    ) -> Trial:
        """The α that was found; ``start`` (α = 0) where no trial decreased f.

        ``start`` must have a negative slope. ``first`` is tried first. ``keep`` is called with
        every trial that becomes the best, before the next one: the last of them is the result.
        """
        before = low = start  # low: the best so far, with sufficient decrease
        high: Trial | None = None  # a minimum lies between low and it
        alpha = first
        for _ in range(self.max_evaluations):
            trial = f(alpha)
            enough = start.value + self.sufficient_decrease * alpha * start.slope
            if not trial.finite or trial.value > enough or trial.value >= low.value:
                high = trial
            else:
                keep(trial)
                if abs(trial.slope) <= -self.curvature * start.slope:
                    return trial
                if trial.slope * ((alpha if high is None else high.alpha) - low.alpha) >= 0:
                    high = low
                before, low = low, trial
            alpha = self._beyond(before, low) if high is None else self._between(low, high)
            if high is not None and alpha in (low.alpha, high.alpha):  # no number lies between
                break
        return low

    def _beyond(self, before: Trial, last: Trial) -> float:
        """A trial further on, while f still falls at the last one."""
        step = last.alpha - before.alpha
        least, most = last.alpha + self.margin * step, self.extrapolation * last.alpha
        alpha = cubic_minimum(before, last)
        return most if alpha is None or alpha <= last.alpha else min(max(alpha, least), most)

    def _between(self, low: Trial, high: Trial) -> float:
        """A trial between two, on either side of a minimum."""
        width = high.alpha - low.alpha
        if not high.finite:
            return low.alpha + RETREAT * width
        alpha = cubic_minimum(low, high)
        share = 0.5 if alpha is None else (alpha - low.alpha) / width
        return low.alpha + min(max(share, self.margin), 1 - self.margin) * width


def cubic_minimum(a: Trial, b: Trial) -> float | None:
    """Where the cubic with these values and slopes has its minimum; None where it has none."""
    width = b.alpha - a.alpha
    bend = a.slope + b.slope - 3 * (b.value - a.value) / width
    inside = bend * bend - a.slope * b.slope
    if not inside >= 0:
        return None
    root = math.copysign(math.sqrt(inside), width)
    below = b.slope - a.slope + 2 * root
    if below == 0:
        return None
    alpha = b.alpha - width * (b.slope + root - bend) / below
    return alpha if math.isfinite(alpha) else None
