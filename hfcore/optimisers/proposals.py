"""What a step may take: an iterate of CG at some λ, with its ρ.

Notes are those of :mod:`hfcore.optimisers.newton_step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hfcore.bindings.conjugate_gradient import dot
from hfcore.optimisers.backtracking import Candidate, IterateChooser
from hfcore.optimisers.damping import SMALLEST_RAISED, DampingBounds, reduction_ratio
from hfcore.optimisers.inner_solve import InnerSolve
from hfcore.optimisers.outcome import Proposal
from hfcore.optimisers.roles import same_data
from hfcore.optimisers.step_point import StepPoint
from hfcore.optimisers.trial_losses import TrialLosses
from hfcore.solvers.conjugate_gradient import NONPOSITIVE, RESIDUAL, Solution

# Failed solves (nothing finite to try) before a step is given up.
MAX_RETRIES = 8
# Doublings or halvings of λ in the first step's search.
MAX_SEARCH = 30


class Proposals:
    """Solves at λ and at what it is raised to, at one point."""

    def __init__(self, point: StepPoint, inner: InnerSolve, losses: TrialLosses) -> None:
        self._point, self._inner, self._losses = point, inner, losses

    def at(self, damping: float, start: Tensor) -> Proposal:
        """Solve at λ from ``start [N]``; raise λ while nothing is finite."""
        for _ in range(MAX_RETRIES):
            chooser = self._chooser()
            solution = self._inner.solve(damping, start, observer=chooser.observe)
            with self._point.ledger.phase("cg"):
                kept = chooser.choose(solution)
            if solution.stop == NONPOSITIVE:
                self._point.say(f"{NONPOSITIVE}; CG ended after {solution.iterations} iterations")
            if kept is not None:
                return Proposal(solution, kept, damping, self._ratio(kept))
            if solution.stop == NONPOSITIVE and solution.iterations == 0:
                raised = self._past_first_direction(damping, start)
                if raised is None:
                    break
                damping, start = raised, torch.zeros_like(start)
                continue
            if solution.stop == NONPOSITIVE or nothing_to_solve(solution):
                break
            self._point.say(
                f"{solution.stop} at λ = {damping:g}: λ raised, CG starts afresh"
            )  # note 2
            damping = max(damping, SMALLEST_RAISED) * self._point.options.damping.damping_up
            start = torch.zeros_like(start)
        return Proposal(solution, None, damping, -math.inf)

    def first(self, damping: float, start: Tensor, low: float, high: float) -> Proposal:
        """The λ at which the first step's ρ lies in [low, high], by doubling or halving; note 5."""
        best = self.at(damping, start)
        raising = not best.rho > high  # also where ρ is not a number
        for _ in range(MAX_SEARCH):
            if low <= best.rho <= high:
                break
            factor = 2.0 if raising else 0.5
            trial = self.at(best.damping * factor, start)
            if not raising and not (trial.rho >= low and trial.damping < best.damping):
                break
            best = trial
            if raising and trial.rho > high:
                break
        self._point.say(f"first λ: {best.damping:g}, where ρ = {best.rho:.3g}")
        return best

    def past_negative_curvature(self, proposal: Proposal) -> float:
        """λ for the step after one whose CG ended at a direction of negative curvature; note 9.

        0 where CG ended otherwise.
        """
        direction = proposal.solution.direction
        curvature = None if direction is None else self._inner.curvature_along(direction)
        if curvature is None or not -math.inf < curvature < 0:
            return 0.0
        raised = self._raised(curvature, proposal.damping)
        self._point.say(f"curvature {curvature:.3g} where CG ended: λ raised to {raised:g}")
        return raised

    def _past_first_direction(self, damping: float, start: Tensor) -> float | None:
        """λ for a new try after CG's first direction from ``start [N]`` had none that is positive.

        None where a larger λ would not help; see note 9.
        """
        curvature = self._inner.curvature_along(self._inner.first_direction(damping))
        if curvature is None:  # of a gradient whose square no float holds
            return None
        if damping + curvature > 0 and bool(start.any()):
            self._point.say("CG starts afresh at zero")
            return damping
        if not -math.inf < curvature < 0:
            return None
        raised = self._raised(curvature, damping)
        self._point.say(
            f"curvature {curvature:.3g} along the gradient, for which λ = {damping:g} is too small"
            f": λ raised to {raised:g}, CG starts afresh at zero"
        )
        return raised

    def _raised(self, curvature: float, damping: float) -> float:
        """λ past a curvature below −λ."""
        eps = torch.finfo(self._point.gradient.dtype).eps
        bounds = DampingBounds(self._point.curvature_scale or SMALLEST_RAISED, eps)
        return max(
            2.0 * abs(curvature), bounds.moved(damping, self._point.options.damping.damping_up)
        )

    def _chooser(self) -> IterateChooser:
        """Picks the iterate that the true objective prefers."""
        cg = self._point.options.cg
        return IterateChooser(
            self._backtracking_loss(),
            points=self._inner.points(),
            mode=cg.cg_backtracking,
            increase_after=cg.cg_loss_increase_after,
        )

    def _backtracking_loss(self) -> Callable[[Tensor], float]:
        def loss(p: Tensor) -> float:
            with self._point.ledger.phase("backtracking"):
                return self._losses.moved(self._point.roles.backtracking, p)

        return loss

    def _ratio(self, kept: Candidate) -> float:
        """ρ: f on its data, where a value that is known is not computed again; q on the
        curvature's."""
        p, model_change, data = kept.p, kept.model_change, self._point.roles.rho
        assert p is not None
        with self._point.ledger.phase("rho"):
            if same_data(data, self._point.roles.curvature):
                before = self._point.curvature.loss  # came with its activations
            else:
                before = self._losses.at_start(data)
            if kept.loss is not None and same_data(data, self._point.roles.backtracking):
                after = kept.loss
            else:
                after = self._losses.moved(data, p)
            if self._point.options.damping.rho == "undamped":
                Bp = self._inner.matrix(0.0)(p, torch.empty_like(p))
                model_change = 0.5 * dot(p, Bp) + dot(self._point.gradient, p)
            return reduction_ratio(after - before, model_change)


def nothing_to_solve(solution: Solution) -> bool:
    """Whether the gradient is zero, or as good as that."""
    return solution.stop == RESIDUAL and solution.iterations == 0
