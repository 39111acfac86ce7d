"""Choosing among the iterates of CG by the true objective (Martens 2010, section 4.6; M&S 2012,
section 20.8.7).

1. The paper of 2010 stores iterates at ⌈1.3^j⌉, ``"powers"``; its demo, whose settings the presets
   are, at ⌈5·1.3^j⌉, ``"geometric"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hfcore.solvers.conjugate_gradient import NONFINITE, Solution

Backtracking = Literal["best", "walk", "last"]
BACKTRACKING = ("best", "walk", "last")

EvaluateEvery = int | Literal["geometric", "powers"]
GEOMETRIC: dict[str, float] = {"geometric": 5.0, "powers": 1.0}  # c of ⌈c·1.3^j⌉
GROWTH = 1.3


def evaluation_points(schedule: EvaluateEvery, iterations: int) -> Sequence[int]:
    """The iterations up to ``iterations`` whose iterate may be chosen, the last one apart.

    An int k: every k-th. ``"geometric"``: ⌈5·1.3^j⌉, j = 0, 1, …; ``"powers"``: ⌈1.3^j⌉ (note 1).
    """
    if isinstance(schedule, int):
        return range(schedule, iterations + 1, schedule)
    points, first, j = [], GEOMETRIC[schedule], 0
    while (point := math.ceil(first * GROWTH**j)) <= iterations:
        points.append(point)
        j += 1
    return list(dict.fromkeys(points))  # small powers meet in one integer


@dataclass
class Candidate:
    """A CG iterate: its index, p ``[N]`` (None once dropped), q(p) of the damped model, f(θ+p).

    The objective is None until it is evaluated.
    """

    iteration: int
    p: Tensor | None
    model_change: float
    loss: float | None = None


class IterateChooser:
    """Evaluates f(θ + x_i) along CG and picks the iterate to try.

    ``evaluate(p)`` gives f(θ + p) on the backtracking data; candidates are the iterations in
    ``points`` and the last. ``"best"`` evaluates each and keeps the best (RNN release, 2011),
    holding one vector; ``"walk"`` walks back from the last while f does not get worse (Martens
    2010), evaluating only where it comes by and holding all; ``"last"`` takes the last and
    evaluates nothing. With ``increase_after``, CG ends when an evaluation is worse than the one
    before, from that iteration on.
    """

    def __init__(
        self,
        evaluate: Callable[[Tensor], float],
        *,
        points: Sequence[int],
        mode: Backtracking,
        increase_after: int | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._points: Sequence[int] = () if mode == "last" else points
        self._mode = mode
        self._increase_after = increase_after
        self._candidates: list[Candidate] = []

    def observe(self, iteration: int, x: Tensor, phi: float) -> bool:
        """What :func:`conjugate_gradient` calls after each iteration with ``x [N]`` and φ(x).

        True ends the solve.
        """
        if iteration not in self._points:
            return False
        after = self._increase_after
        self._consider(Candidate(iteration, x, phi))
        if after is None or iteration < after or len(self._candidates) < 2:
            return False
        before, now = self._candidates[-2:]
        return self._loss(now) > self._loss(before)

    def _consider(self, candidate: Candidate) -> None:
        """Keep a copy of the iterate for as long as it can still be chosen."""
        assert candidate.p is not None
        if self._mode == "best":
            best = min((self._loss(c) for c in self._candidates), default=math.inf)
            if not (self._loss(candidate) < best or not self._candidates):
                candidate.p = None
            else:
                for other in self._candidates:
                    other.p = None
        elif self._increase_after is not None:
            self._loss(candidate)  # before x moves on
        if candidate.p is not None:
            candidate.p = candidate.p.clone()
        self._candidates.append(candidate)

    def _loss(self, candidate: Candidate) -> float:
        """f(θ + p), evaluated once; ∞ where it is not finite."""
        if candidate.loss is None:
            assert candidate.p is not None
            value = self._evaluate(candidate.p)
            candidate.loss = value if math.isfinite(value) else math.inf
        return candidate.loss

    def choose(self, solution: Solution) -> Candidate | None:
        """The iterate to try, or None if none has a finite objective (``"last"``: is finite)."""
        i = solution.iterations
        evaluated = self._candidates[-1].iteration if self._candidates else 0
        if i > evaluated and solution.stop != NONFINITE:
            self._consider(Candidate(i, solution.x, solution.history[-1]))
        held = [c for c in self._candidates if c.p is not None]
        if not held:
            return None
        if self._mode == "last":
            return held[-1]
        chosen = held[-1]
        for earlier in reversed(held[:-1]):
            if self._loss(earlier) > self._loss(chosen):
                break
            chosen = earlier
        return chosen if math.isfinite(self._loss(chosen)) else None
