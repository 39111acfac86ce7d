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
   c = dᵀBd / dᵀDd ≤ −λ, λ is raised to 2|c|, and the step says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hfcore.bindings.conjugate_gradient import dot
from hfcore.objective import Curvature, Objective
from hfcore.optimisers.backtracking import Candidate, IterateChooser, evaluation_points
from hfcore.optimisers.damped_curvature import DampedCurvature
from hfcore.optimisers.damping import DampingBounds, TrustRadius, reduction_ratio
from hfcore.optimisers.line_search import NoStep
from hfcore.optimisers.options import Options
from hfcore.optimisers.outcome import Outcome, Proposal
from hfcore.optimisers.preconditioner import update
from hfcore.optimisers.roles import Roles, same_data
from hfcore.optimisers.statistics import Ledger
from hfcore.solvers import device_conjugate_gradient as device
from hfcore.solvers.conjugate_gradient import (
    BOUNDARY,
    NONPOSITIVE,
    RESIDUAL,
    Observer,
    Solution,
    StopRule,
    applied,
    conjugate_gradient,
)
from hfcore.solvers.preconditioners import Preconditioner
from hfcore.step_interrupt import check_interrupt

# Failed solves (nothing finite to try) before a step is given up.
MAX_RETRIES = 8
# Values of ρ that are no ratio, and what they say.
RHO_SAYS = {
    "-inf": "ρ = −∞: at full length the step raises the objective on the curvature's data",
    "nan": "ρ is not a number: the quadratic foretells no decrease to compare with",
}
# From λ = 0 a raise would stay there.
SMALLEST_RAISED = 1e-6
# Doublings or halvings of λ in the first step's search.
MAX_SEARCH = 30


class NewtonStep:
    """One step at θ ``[N]`` with gradient ∇f ``[N]`` and the curvature there.

    ``diagonal [N]`` belongs to a diagonal preconditioner, ``scale [N]`` is D of scale-sensitive
    damping. ``first``: λ may be searched for; ``curvature_scale`` is that of the step before.
    """

    def __init__(
        self,
        objective: Objective,
        roles: Roles,
        theta: Tensor,
        gradient: Tensor,
        curvature: Curvature,
        options: Options,
        ledger: Ledger,
        *,
        diagonal: Tensor | None = None,
        scale: Tensor | None = None,
        first: bool = False,
        curvature_scale: float | None = None,
    ) -> None:
        self.objective = objective
        self.roles = roles
        self.theta = theta
        self.gradient = gradient
        self.curvature = curvature
        self.options = options
        self.ledger = ledger
        self.diagonal = diagonal
        self.scale = scale
        self.first = first
        self.curvature_scale = curvature_scale
        self._at = torch.empty_like(theta)
        self._at_start: list[tuple[Any, float]] = []  # (data, f(θ) on them)

    def run(self, damping: float, start: Tensor) -> Outcome:
        """Solve from ``start [N]`` at λ = ``damping`` and search along the step."""
        options = self.options.damping
        if options.trust_radius is not None:
            start = torch.zeros_like(start)  # note 3
            outcome = self._take(self._propose(damping, start))
            return replace(outcome, damping_next=damping)  # note 4
        proposal = self._propose(damping, start)
        if self.first and options.damping_window is not None:
            proposal = self._search_damping(proposal, start, *options.damping_window)
        return self._take(proposal)

    def _propose(self, damping: float, start: Tensor) -> Proposal:
        """Solve at λ; raise λ while nothing is finite."""
        for _ in range(MAX_RETRIES):
            chooser = self._chooser()
            with self.ledger.phase("preconditioner"):
                solve = self._solver(damping)
            with self.ledger.phase("cg"):
                solution = solve(start, observer=chooser.observe)
                kept = chooser.choose(solution)
            if solution.stop == NONPOSITIVE:
                self._say(f"{NONPOSITIVE}; CG ended after {solution.iterations} iterations")
            if kept is not None:
                return Proposal(solution, kept, damping, self._ratio(kept))
            if solution.stop == NONPOSITIVE and solution.iterations == 0:
                raised = self._past_negative_curvature(damping, start)
                if raised is None:
                    break
                damping, start = raised, torch.zeros_like(start)
                continue
            if solution.stop == NONPOSITIVE or _nothing_to_solve(solution):
                break
            self._say(f"{solution.stop} at λ = {damping:g}: λ raised, CG starts afresh")  # note 2
            damping = max(damping, SMALLEST_RAISED) * self.options.damping.damping_up
            start = torch.zeros_like(start)
        return Proposal(solution, None, damping, -math.inf)

    def _past_negative_curvature(self, damping: float, start: Tensor) -> float | None:
        """λ for a new try after CG's first direction from ``start [N]`` had none that is positive.

        None where a larger λ would not help; see note 9.
        """
        d, D = self._first_direction(damping), self.scale
        Bd = self._matrix(0.0)(d, torch.empty_like(d))
        size = dot(d, d) if D is None else dot(d, D * d)
        if size == 0:  # of a gradient whose square no float holds
            return None
        curvature = dot(d, Bd) / size
        if damping + curvature > 0 and bool(start.any()):
            self._say("CG starts afresh at zero")
            return damping
        if not -math.inf < curvature < 0:
            return None
        eps = torch.finfo(self.theta.dtype).eps
        bounds = DampingBounds(self.curvature_scale or SMALLEST_RAISED, eps)
        raised = max(2.0 * abs(curvature), bounds.moved(damping, self.options.damping.damping_up))
        self._say(
            f"curvature {curvature:.3g} along the gradient, for which λ = {damping:g} is too small"
            f": λ raised to {raised:g}, CG starts afresh at zero"
        )
        return raised

    def _first_direction(self, damping: float) -> Tensor:
        """M⁻¹ times −∇f ``[N]``, where CG goes from zero; an operator M is as last updated."""
        operator = self.options.preconditioning.operator
        if operator is not None:
            return applied(operator, -self.gradient, torch.empty_like(self.theta))
        M = self._preconditioner(damping)
        return -self.gradient if M is None else -self.gradient / M  # type: ignore[operator]

    def _search_damping(self, best: Proposal, start: Tensor, low: float, high: float) -> Proposal:
        """The λ at which the first step's ρ lies in [low, high], by doubling or halving; note 5."""
        raising = not best.rho > high  # also where ρ is not a number
        for _ in range(MAX_SEARCH):
            if low <= best.rho <= high:
                break
            factor = 2.0 if raising else 0.5
            trial = self._propose(best.damping * factor, start)
            if not raising and not (trial.rho >= low and trial.damping < best.damping):
                break
            best = trial
            if raising and trial.rho > high:
                break
        self._say(f"first λ: {best.damping:g}, where ρ = {best.rho:.3g}")
        return best

    def _take(self, proposal: Proposal) -> Outcome:
        """The line search along the iterate that was kept."""
        search = self.options.step.search
        with self.ledger.phase("line_search"):
            f0 = self._loss_at_start(self.roles.line_search)
        if proposal.kept is None:
            if _nothing_to_solve(proposal.solution):
                self._say("the gradient is zero: nothing to do")
                return self._converged(self._rejected(proposal, f0, self._bounds(proposal, None)))
            self._say("CG gave no step with a finite objective: rejected, λ raised")
            return self._rejected(proposal, f0, self._bounds(proposal, None))
        p = proposal.kept.p
        assert p is not None
        slope = dot(self.gradient, p)
        bounds = self._bounds(proposal, slope)
        with self.ledger.phase("line_search"):
            alpha, f1 = search.search(
                lambda a: self._evaluate(self.roles.line_search, self._moved(p, a)), f0, slope
            )
        if alpha == 0.0 and not isinstance(search, NoStep):
            return self._without_decrease(proposal, f0, bounds)
        rule = self.options.damping.rule
        damping_next = rule.next(proposal.damping, proposal.rho, bounds=bounds)
        if (why := RHO_SAYS.get(str(proposal.rho))) is not None:
            self._say(why)
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
            self._say(
                f"converged: the quadratic falls by {abs(proposal.kept.model_change):.1e}, which "
                f"drowns in the rounding of the objective {f0:.6g}"
            )
            return self._converged(rejected)
        if self.options.cg.cg_restart:
            self._say("line search found no decrease: step rejected, CG start dropped")
            return rejected
        self._say("line search found no decrease: step rejected")
        return replace(rejected, cg_last=_finite(proposal.solution.x))

    def _rejected(self, proposal: Proposal, f0: float, bounds: DampingBounds) -> Outcome:
        damping, rho = proposal.damping, proposal.rho
        rule = self.options.damping.rule
        damping_next = rule.next(damping, rho, accepted=False, bounds=bounds)
        at_end = damping >= bounds.highest and math.isinf(self.options.damping.radius)
        if at_end:
            self._say(f"converged: no step helps at λ = {damping:g}, the upper bound")
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

    def _converged(self, rejected: Outcome) -> Outcome:
        """The same, where no λ would help."""
        radius = self.options.damping.radius
        return replace(rejected, damping_next=rejected.damping, radius_next=radius, converged=True)

    def _bounds(self, proposal: Proposal, slope: float | None) -> DampingBounds:
        """λ's bounds, from pᵀAp/pᵀp along the step where λ is not most of it."""
        eps = torch.finfo(self.theta.dtype).eps
        known, damping = self.curvature_scale, proposal.damping
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
            self._say(f"λ stays at {damping:g}, the lower bound: less would drown in rounding")
        return damping

    def _next_radius(self, proposal: Proposal) -> float:
        radius = self.options.damping.radius
        if math.isinf(radius):
            return math.inf
        solution, kept = proposal.solution, proposal.kept
        norm = 0.0 if kept is None else solution.norms[kept.iteration]
        on_boundary = (
            kept is not None and solution.stop == BOUNDARY and kept.iteration == solution.iterations
        )
        smallest = torch.finfo(self.theta.dtype).tiny
        following = TrustRadius().next(radius, proposal.rho, norm, on_boundary=on_boundary)
        return max(following, smallest)

    def _chooser(self) -> IterateChooser:
        """Picks the iterate that the true objective prefers."""
        cg = self.options.cg
        return IterateChooser(
            self._backtracking_loss,
            points=self._points(),
            mode=cg.cg_backtracking,
            increase_after=cg.cg_loss_increase_after,
        )

    def _solver(self, damping: float) -> Callable[..., Solution]:
        """CG on (B + λD + λμ G_S) p = −∇f, which takes a start ``[N]`` and ``observer``."""
        radius, M = self.options.damping.radius, self._preconditioner(damping)
        if device.serves(self.gradient) and math.isinf(radius):
            return partial(self._solve_on_device, damping, M)
        return partial(
            conjugate_gradient,
            self._matrix(damping),
            -self.gradient,
            rule=self._stop_rule(),
            preconditioner=M,
            radius=radius,
        )

    def _stop_rule(self) -> StopRule:
        return self.options.cg.stop(math.sqrt(dot(self.gradient, self.gradient)))

    def _points(self) -> Sequence[int]:
        cg = self.options.cg
        if cg.cg_backtracking == "last":
            return []
        return evaluation_points(cg.cg_evaluate_every, cg.cg_max_iter)

    def _matrix(self, damping: float, *, counting: bool = True) -> DampedCurvature:
        """A = B + λD + λμ G_S."""
        return DampedCurvature(
            self.curvature,
            self.ledger,
            self.objective.minibatches(self.roles.curvature),
            damping=damping,
            structural=damping * self.options.damping.mu,
            scale=self.scale,
            counting=counting,
        )

    def _preconditioner(self, damping: float) -> Tensor | Preconditioner | None:
        options = self.options.preconditioning
        if options.operator is not None:
            update(
                options.operator,
                theta=self.theta,
                gradient=self.gradient,
                curvature=self.curvature,
                damping=damping,
            )
            return options.operator
        rule = options.diagonal
        if rule is None or self.diagonal is None:
            return None
        weight = damping if self.scale is None else damping * self.scale
        return rule.matrix(self.diagonal, weight, self.objective.l2)

    def _solve_on_device(
        self,
        damping: float,
        M: Tensor | Preconditioner | None,
        start: Tensor,
        *,
        observer: Observer,
    ) -> Solution:
        """The same with CG's scalars on the device; iterates are evaluated when the host looks."""
        stops = self.objective.supports_stop
        matrix = self._matrix(damping, counting=False)
        solution, products = device.device_conjugate_gradient(
            matrix if stops else lambda v, out, stop: matrix(v, out),
            -self.gradient,
            start,
            rule=self._stop_rule(),
            observer=observer,
            observe_at=self._points(),
            preconditioner=M,
            # A product that cannot be stopped costs more than a look.
            look_every=device.LOOK_EVERY if stops else 1,
            recorded=stops and (M is None or isinstance(M, Tensor)),
        )
        self.ledger.products += products * self.objective.minibatches(self.roles.curvature)
        return solution

    def _backtracking_loss(self, p: Tensor) -> float:
        with self.ledger.phase("backtracking"):
            return self._evaluate(self.roles.backtracking, self._moved(p, 1.0))

    def _ratio(self, kept: Candidate) -> float:
        """ρ: f on its data, where a value that is known is not computed again; q on the
        curvature's."""
        p, model_change, data = kept.p, kept.model_change, self.roles.rho
        assert p is not None
        with self.ledger.phase("rho"):
            if same_data(data, self.roles.curvature):
                before = self.curvature.loss  # came with its activations
            else:
                before = self._loss_at_start(data)
            if kept.loss is not None and same_data(data, self.roles.backtracking):
                after = kept.loss
            else:
                after = self._evaluate(data, self._moved(p, 1.0))
            if self.options.damping.rho == "undamped":
                Bp = self._matrix(0.0)(p, torch.empty_like(p))
                model_change = 0.5 * dot(p, Bp) + dot(self.gradient, p)
            return reduction_ratio(after - before, model_change)

    def _loss_at_start(self, data: Any) -> float:
        """f(θ) on the data, evaluated once."""
        for known, value in self._at_start:
            if same_data(known, data):
                return value
        value = self._evaluate(data, self.theta)
        self._at_start.append((data, value))
        return value

    def _evaluate(self, data: Any, theta: Tensor) -> float:
        check_interrupt()
        self.ledger.objective_evaluations += self.objective.minibatches(data)
        return self.objective.loss(data, theta)

    def _moved(self, p: Tensor, alpha: float) -> Tensor:
        """θ + αp in a buffer that the next call overwrites."""
        return torch.add(self.theta, p, alpha=alpha, out=self._at)

    def _say(self, message: str) -> None:
        self.ledger.messages.append(message)


def _nothing_to_solve(solution: Solution) -> bool:
    return solution.stop == RESIDUAL and solution.iterations == 0


def _finite(x: Tensor) -> Tensor | None:
    return x if bool(torch.isfinite(x).all()) else None
