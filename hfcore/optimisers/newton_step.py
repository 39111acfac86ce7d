"""One truncated-Newton step at fixed θ: solve, choose an iterate, ρ, line search.

Numbered notes say where this departs from the papers.

1. The next CG start is the final CG iterate (decayed), even if an earlier one was kept, as in both
   releases; when the line search fails it is dropped (2011) or stays (2010, ``cg_restart`` False).
2. The papers do not say what to do when the curvature or every trial objective is not finite: λ
   grows by its own rule and CG starts afresh, so that a poisoned start cannot fail later steps.
3. Within a trust region CG starts at zero: only from there does ‖x‖ grow monotonically, in the norm
   of the preconditioner, so that the first crossing of the boundary is the solution's (Steihaug
   1983). The radius is in that norm.
4. Within a trust region λ stays as it is: the radius moves in its place.
5. The first-step search of λ doubles or halves until ρ is inside the window; where ρ jumps across
   it, the larger λ of the two is taken.
6. A step without decrease that was predicted to be smaller than the rounding of f says nothing of
   λ, which stays: the step reports that it has converged.
7. After a rejected step λ follows ρ as after any other, in both releases and here: where ρ, which
   is on other data than the line search, is above ¾ it falls. ``damping_failed`` is another factor
   for such steps (Chapelle & Erhan 2011).
8. λ has bounds, see :class:`hfcore.optimisers.damping.DampingBounds`; the releases have none, and
   their λ goes on falling late in a run.
9. Where the curvature is indefinite (the Hessian, exact or by differences) and CG meets it in its
   first direction d, there is nothing to try, and factors of 3/2 would reject steps for long. CG
   starts afresh from zero within the step; where its first direction from there has
   c = dᵀBd / dᵀDd ≤ −λ, λ is raised to 2|c|, and the step says so. Where CG meets it later and
   the step is rejected, the next one begins with λ = 2|c| of the direction where CG ended.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from hfcore.bindings.conjugate_gradient import dot
from hfcore.optimisers.damping import SMALLEST_RAISED, DampingBounds, TrustRadius
from hfcore.optimisers.inner_solve import InnerSolve
from hfcore.optimisers.line_search import NoStep
from hfcore.optimisers.outcome import Outcome, Proposal
from hfcore.optimisers.proposals import Proposals, nothing_to_solve
from hfcore.optimisers.step_point import StepPoint
from hfcore.optimisers.trial_losses import TrialLosses
from hfcore.solvers.conjugate_gradient import BOUNDARY

# Values of ρ that are no ratio, and what they say.
RHO_SAYS = {
    "-inf": "ρ = −∞: at full length the step raises the objective on the curvature's data",
    "nan": "ρ is not a number: the quadratic foretells no decrease to compare with",
}


class NewtonStep:
    """One step at a point. ``first``: λ may be searched for."""

    def __init__(self, point: StepPoint, *, first: bool = False) -> None:
        self._point = point
        self._first = first
        self._losses = TrialLosses(point.objective, point.theta, point.ledger)
        self._proposals = Proposals(point, InnerSolve(point), self._losses)

    def run(self, damping: float, start: Tensor) -> Outcome:
        """Solve from ``start [N]`` at λ = ``damping`` and search along the step."""
        options = self._point.options.damping
        if options.trust_radius is not None:
            start = torch.zeros_like(start)  # note 3
            outcome = self._take(self._proposals.at(damping, start))
            return replace(outcome, damping_next=damping)  # note 4
        if self._first and options.damping_window is not None:
            return self._take(self._proposals.first(damping, start, *options.damping_window))
        return self._take(self._proposals.at(damping, start))

    def _take(self, proposal: Proposal) -> Outcome:
        """The line search along the iterate that was kept."""
        search = self._point.options.step.search
        with self._point.ledger.phase("line_search"):
            f0 = self._losses.at_start(self._point.roles.line_search)
        if proposal.kept is None:
            if nothing_to_solve(proposal.solution):
                self._point.say("the gradient is zero: nothing to do")
                return self._converged(self._rejected(proposal, f0, self._bounds(proposal, None)))
            self._point.say("CG gave no step with a finite objective: rejected, λ raised")
            rejected = self._rejected(proposal, f0, self._bounds(proposal, None))
            return self._past_negative_curvature(rejected, proposal)
        p = proposal.kept.p
        assert p is not None
        slope = dot(self._point.gradient, p)
        bounds = self._bounds(proposal, slope)
        with self._point.ledger.phase("line_search"):
            alpha, f1 = search.search(
                lambda a: self._losses.moved(self._point.roles.line_search, p, a), f0, slope
            )
        if alpha == 0.0 and not isinstance(search, NoStep):
            return self._without_decrease(proposal, f0, bounds)
        rule = self._point.options.damping.rule
        damping_next = rule.next(proposal.damping, proposal.rho, bounds=bounds)
        if (why := RHO_SAYS.get(str(proposal.rho))) is not None:
            self._point.say(why)
        return Outcome(
            move=alpha * p,
            alpha=alpha,
            rho=proposal.rho,
            damping=proposal.damping,
            damping_next=self._said(bounds, proposal.damping, damping_next),
            radius_next=self._next_radius(proposal),
            solution=proposal.solution,
            kept=proposal.kept.iteration,
            cg_last=_finite(proposal.solution.x),  # note 1
            f0=f0,
            f1=f1,
            curvature_scale=bounds.scale,
        )

    def _without_decrease(self, proposal: Proposal, f0: float, bounds: DampingBounds) -> Outcome:
        """The line search found nothing."""
        rejected = self._rejected(proposal, f0, bounds)
        assert proposal.kept is not None
        if abs(proposal.kept.model_change) <= bounds.eps * abs(f0):  # note 6
            self._point.say(
                f"converged: the quadratic falls by {abs(proposal.kept.model_change):.1e}, which "
                f"drowns in the rounding of the objective {f0:.6g}"
            )
            return self._converged(rejected)
        rejected = self._past_negative_curvature(rejected, proposal)
        if self._point.options.cg.cg_restart:
            self._point.say("line search found no decrease: step rejected, CG start dropped")
            return rejected
        self._point.say("line search found no decrease: step rejected")
        return replace(rejected, cg_last=_finite(proposal.solution.x))

    def _rejected(self, proposal: Proposal, f0: float, bounds: DampingBounds) -> Outcome:
        damping, rho = proposal.damping, proposal.rho
        rule = self._point.options.damping.rule
        damping_next = rule.next(damping, rho, accepted=False, bounds=bounds)
        at_end = damping >= bounds.highest and math.isinf(self._point.options.damping.radius)
        if at_end:
            self._point.say(f"converged: no step helps at λ = {damping:g}, the upper bound")
        return Outcome(
            move=None,
            alpha=0.0,
            rho=rho,
            damping=damping,
            damping_next=damping_next,
            radius_next=self._next_radius(proposal),
            solution=proposal.solution,
            kept=0 if proposal.kept is None else proposal.kept.iteration,
            cg_last=None,
            f0=f0,
            f1=f0,
            curvature_scale=bounds.scale,
            converged=at_end,
        )

    def _past_negative_curvature(self, rejected: Outcome, proposal: Proposal) -> Outcome:
        """The same with a larger λ, where negative curvature ended CG; note 9."""
        raised = self._proposals.past_negative_curvature(proposal)
        return replace(rejected, damping_next=max(raised, rejected.damping_next))

    def _converged(self, rejected: Outcome) -> Outcome:
        """The same, where no λ would help."""
        radius = self._point.options.damping.radius
        return replace(rejected, damping_next=rejected.damping, radius_next=radius, converged=True)

    def _bounds(self, proposal: Proposal, slope: float | None) -> DampingBounds:
        """λ's bounds, from pᵀAp/pᵀp along the step where λ is not most of it."""
        eps = torch.finfo(self._point.gradient.dtype).eps
        known, damping = self._point.curvature_scale, proposal.damping
        kept = proposal.kept
        if kept is not None and kept.p is not None and slope is not None:
            # q(p) = gᵀp + ½ pᵀAp
            size = dot(kept.p, kept.p)
            scale = 2.0 * (kept.model_change - slope) / size if size > 0.0 else 0.0
            if 0.0 < scale < math.inf and (known is None or damping <= 0.5 * scale):
                return DampingBounds(scale, eps)
        return DampingBounds(known or max(damping, SMALLEST_RAISED), eps)

    def _said(self, bounds: DampingBounds, before: float, damping: float) -> float:
        """λ of the next step, with a word where it has come to a bound."""
        if damping == bounds.lowest < before:
            self._point.say(
                f"λ stays at {damping:g}, the lower bound: less would drown in rounding"
            )
        return damping

    def _next_radius(self, proposal: Proposal) -> float:
        radius = self._point.options.damping.radius
        if math.isinf(radius):
            return math.inf
        solution, kept = proposal.solution, proposal.kept
        norm = 0.0 if kept is None else solution.norms[kept.iteration]
        on_boundary = (
            kept is not None and solution.stop == BOUNDARY and kept.iteration == solution.iterations
        )
        smallest = torch.finfo(self._point.gradient.dtype).tiny
        following = TrustRadius().next(radius, proposal.rho, norm, on_boundary=on_boundary)
        return max(following, smallest)


def _finite(x: Tensor) -> Tensor | None:
    return x if bool(torch.isfinite(x).all()) else None
