"""How far to go along a CG step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class LineSearch:
    """Backtracking: try α = first·(1, decay, decay², …), at most ``max_evaluations`` of them.

    Accepts f(α) ≤ f(0) + armijo·α·slope with slope = ∇fᵀp; ``armijo=0`` accepts any decrease, as
    the RNN release does (0.8^i, i < 50). Martens 2010: decay 0.8, armijo 0.01, 60 reductions.
    """

    decay: float = 0.8
    armijo: float = 0.0
    max_evaluations: int = 50
    first: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"line_search_decay: got {self.decay}, need between 0 and 1")
        if not 0 <= self.armijo < 1:
            raise ValueError(f"line_search_armijo: got {self.armijo}, need 0 ≤ armijo < 1")
        if self.max_evaluations < 1:
            raise ValueError(f"line_search_max: got {self.max_evaluations}, need at least 1")

    def search(self, f: Callable[[float], float], f0: float, slope: float) -> tuple[float, float]:
        """(α, f(α)); (0, f0) if nothing was accepted."""
        alpha = self.first
        for _ in range(self.max_evaluations):
            if alpha == 0.0:  # decayed to nothing
                break
            value = f(alpha)
            if math.isfinite(value) and value < f0 and value <= f0 + self.armijo * alpha * slope:
                return alpha, value
            alpha *= self.decay
        return 0.0, f0


@dataclass(frozen=True)
class FixedStep:
    """α = ε whatever f does, as long as it stays finite (Sutskever et al. 2013, appendix A.6)."""

    size: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.size) and self.size > 0):
            raise ValueError(f"step_size: got {self.size}, need a positive finite number or None")

    def search(self, f: Callable[[float], float], f0: float, slope: float) -> tuple[float, float]:
        """(ε, f(ε)); (0, f0) if that is not finite."""
        value = f(self.size)
        return (self.size, value) if math.isfinite(value) else (0.0, f0)


class NoStep:
    """α = 0, of a schedule that has reached 0: nothing moves, and nothing has failed."""

    def search(self, f: Callable[[float], float], f0: float, slope: float) -> tuple[float, float]:
        """(0, f0)."""
        return 0.0, f0
