"""Choosing among the iterates of CG by the true objective (M&S 2012, section 20.8.7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hfcore.solvers.conjugate_gradient import NONFINITE, Solution

Backtracking = Literal["best", "walk"]


@dataclass
class Candidate:
    """A CG iterate: its index, p ``[N]`` (None once dropped), q(p) of the damped model, f(θ+p)."""

    iteration: int
    p: Tensor | None
    model_change: float
    loss: float


class IterateChooser:
    """Evaluates f(θ + x_i) along CG and picks the iterate to try.

    ``evaluate(p)`` gives f(θ + p) on the backtracking data; it is asked every ``every`` iterations
    and at the last. ``"best"`` keeps the best (RNN release, 2011) and holds one vector;
    ``"walk"`` walks back from the last while f does not get worse (Martens 2010) and holds all.
    With ``increase_after``, CG ends when an evaluation is worse than the one before, from that
    iteration on.
    """

    def __init__(
        self,
        evaluate: Callable[[Tensor], float],
        *,
        every: int,
        mode: Backtracking,
        increase_after: int | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._every = every
        self._mode = mode
        self._increase_after = increase_after
        self._candidates: list[Candidate] = []

    def observe(self, iteration: int, x: Tensor, phi: float) -> bool:
        """What :func:`conjugate_gradient` calls after each iteration; True ends the solve."""
        if iteration % self._every:
            return False
        before = self._candidates[-1].loss if self._candidates else math.inf
        now = self._consider(iteration, x, phi).loss
        after = self._increase_after
        return after is not None and iteration >= after and now > before

    def _consider(self, iteration: int, x: Tensor, phi: float) -> Candidate:
        loss = self._evaluate(x)
        candidate = Candidate(iteration, None, phi, loss if math.isfinite(loss) else math.inf)
        if self._mode == "walk":
            candidate.p = x.clone()
        elif all(candidate.loss < other.loss for other in self._candidates):
            for other in self._candidates:
                other.p = None
            candidate.p = x.clone()
        self._candidates.append(candidate)
        return candidate

    def choose(self, solution: Solution) -> Candidate | None:
        """The iterate to try, or None if none has a finite objective."""
        i = solution.iterations
        evaluated = self._candidates[-1].iteration if self._candidates else 0
        if i > evaluated and solution.stop != NONFINITE:
            self._consider(i, solution.x, solution.history[-1])
        held = [c for c in self._candidates if c.p is not None and math.isfinite(c.loss)]
        if not held:
            return None
        chosen = held[-1]
        for earlier in reversed(held[:-1]):
            if earlier.loss > chosen.loss:
                break
            chosen = earlier
        return chosen
