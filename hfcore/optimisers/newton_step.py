"""One truncated-Newton step at fixed θ: solve, choose an iterate, ρ, line search.

Numbered notes say where this departs from the papers.

1. The next CG start is the final CG iterate (decayed), even if an earlier one was kept, as in both
   releases; when the line search fails it is dropped (2011) or stays (2010, ``cg_restart`` False).
2. The papers do not say what to do when the curvature or every trial objective is not finite: λ
   grows by its own rule and CG starts afresh, so that a poisoned start cannot fail later steps.
3. Within a trust region CG starts at zero: only from there does ‖x‖ grow monotonically, so that
   the first crossing of the boundary is the solution's (Steihaug 1983).
4. Within a trust region λ stays as it is: the radius moves in its place.
5. The first-step search of λ doubles or halves until ρ is inside the window; where ρ jumps across
   it, the larger λ of the two is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hfcore.bindings.conjugate_gradient import dot
from hfcore.objective import Curvature, Objective
from hfcore.optimisers.backtracking import (
    Backtracking,
    Candidate,
    IterateChooser,
    Schedule,
    evaluation_points,
)
from hfcore.optimisers.damping import LevenbergMarquardt, TrustRadius, reduction_ratio
from hfcore.optimisers.line_search import FixedStep, LineSearch
from hfcore.optimisers.preconditioner import DiagonalRule
from hfcore.optimisers.roles import Roles
from hfcore.optimisers.statistics import Ledger, StepStats
from hfcore.solvers import device_conjugate_gradient as device
from hfcore.solvers.conjugate_gradient import (
    NONPOSITIVE,
    RESIDUAL,
    Solution,
    StopRule,
    conjugate_gradient,
)

# Failed solves (nothing finite to try) before a step is given up.
MAX_RETRIES = 8
# From λ = 0 a raise would stay there.
SMALLEST_RAISED = 1e-6
# Doublings or halvings of λ in the first step's search.
MAX_SEARCH = 30


@dataclass(frozen=True)
class Rules:
    """How a step solves, moves λ and searches."""

    structural: float  # μ
    stop: StopRule
    damping: LevenbergMarquardt
    line_search: LineSearch | FixedStep
    evaluate_every: Schedule
    backtracking: Backtracking
    increase_after: int | None
    rho: str
    preconditioner: DiagonalRule | None = None
    scale_floor: float | None = None  # κ of scale-sensitive damping, None: D = I
    damping_window: tuple[float, float] | None = None  # of ρ at the first step
    restart: bool = True  # CG starts at zero after a rejected step
    radius: float = math.inf
    trust: TrustRadius = field(default_factory=TrustRadius)


@dataclass(frozen=True)
class Proposal:
    """A solve at λ = ``damping``, the iterate that was kept (None: nothing to try) and its ρ."""

    solution: Solution
    kept: Candidate | None
    damping: float
    rho: float


@dataclass(frozen=True)
class Outcome:
    """What a step decided; nothing has been written to the parameters yet.

    ``move [N]`` is αp, or None for a rejected step; ``cg_last [N]`` the final CG iterate, or None
    where the next CG starts at zero.
    """

    move: Tensor | None
    alpha: float
    rho: float
    damping: float
    damping_next: float
    radius_next: float
    solution: Solution
    kept: int
    cg_last: Tensor | None
    f0: float
    f1: float

    def report(self, loss: float, gradient_norm: float, ledger: Ledger) -> StepStats:
        """The statistics of the step; ``loss`` is f(θ) on the gradient data."""
        return StepStats(
            loss=loss,
            line_search_loss=self.f0,
            loss_after=self.f1,
            rho=self.rho,
            damping=self.damping,
            damping_next=self.damping_next,
            cg_iterations=self.solution.iterations,
            cg_stop=self.solution.stop,
            cg_kept=self.kept,
            alpha=self.alpha,
            step_norm=0.0 if self.move is None else math.sqrt(dot(self.move, self.move)),
            gradient_norm=gradient_norm,
            products=ledger.products,
            gradients=ledger.gradients,
            objective_evaluations=ledger.objective_evaluations,
            seconds=ledger.seconds(),
            accepted=self.move is not None,
            messages=tuple(ledger.messages),
        )


class NewtonStep:
    """One step at θ ``[N]`` with gradient ∇f ``[N]`` and the curvature there.

    ``diagonal [N]`` belongs to the preconditioner, ``scale [N]`` is D of scale-sensitive damping.
    """

    def __init__(
        self,
        objective: Objective,
        roles: Roles,
        theta: Tensor,
        gradient: Tensor,
        curvature: Curvature,
        rules: Rules,
        ledger: Ledger,
        *,
        diagonal: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        self.objective = objective
        self.roles = roles
        self.theta = theta
        self.gradient = gradient
        self.curvature = curvature
        self.rules = rules
        self.ledger = ledger
        self.diagonal = diagonal
        self.scale = scale
        self._at = torch.empty_like(theta)

    def run(self, damping: float, start: Tensor) -> Outcome:
        """Solve from ``start [N]`` at λ = ``damping`` and search along the step."""
        if not math.isinf(self.rules.radius):
            start = torch.zeros_like(start)  # note 3
            return replace(
                self._take(self._propose(damping, start)), damping_next=damping
            )  # note 4
        if self.rules.damping_window is not None:
            return self._take(self._search_damping(damping, start, *self.rules.damping_window))
        return self._take(self._propose(damping, start))

    def _propose(self, damping: float, start: Tensor) -> Proposal:
        """Solve at λ; raise λ while nothing is finite."""
        for _ in range(MAX_RETRIES):
            solution, kept = self._solve(damping, start)
            if kept is not None:
                return Proposal(solution, kept, damping, self._ratio(kept))
            if solution.stop == NONPOSITIVE or _nothing_to_solve(solution):
                break
            self._say(f"{solution.stop} at λ = {damping:g}: λ raised, CG starts afresh")  # note 2
            damping = max(damping, SMALLEST_RAISED) * self.rules.damping.up
            start = torch.zeros_like(start)
        return Proposal(solution, None, damping, -math.inf)

    def _search_damping(self, damping: float, start: Tensor, low: float, high: float) -> Proposal:
        """The λ at which the first step's ρ lies in [low, high], by doubling or halving; note 5."""
        best = self._propose(damping, start)
        raising = not best.rho > high  # also where ρ is not a number
        for _ in range(MAX_SEARCH):
            if low <= best.rho <= high:
                break
            factor = 2.0 if raising else 0.5
            trial = self._propose(best.damping * factor, start)
            if not raising and not trial.rho >= low:
                break
            best = trial
            if raising and trial.rho > high:
                break
        self._say(f"first λ: {best.damping:g}, where ρ = {best.rho:.3g}")
        return best

    def _take(self, proposal: Proposal) -> Outcome:
        """The line search along the iterate that was kept."""
        if proposal.kept is None:
            with self.ledger.phase("line_search"):
                f0 = self._evaluate(self.roles.line_search, self.theta)
            if _nothing_to_solve(proposal.solution):
                self._say("the gradient is zero: nothing to do")
                return replace(self._rejected(proposal, f0), damping_next=proposal.damping)
            self._say("CG gave no step with a finite objective: rejected, λ raised")
            return self._rejected(proposal, f0)
        p = proposal.kept.p
        assert p is not None
        with self.ledger.phase("line_search"):
            f0 = self._evaluate(self.roles.line_search, self.theta)
            slope = dot(self.gradient, p)
            alpha, f1 = self.rules.line_search.search(
                lambda a: self._evaluate(self.roles.line_search, self._moved(p, a)), f0, slope
            )
        if alpha == 0.0:
            if not self.rules.restart:
                self._say("line search found no decrease: step rejected")
                return replace(self._rejected(proposal, f0), cg_last=_finite(proposal.solution.x))
            self._say("line search found no decrease: step rejected, CG start dropped")
            return self._rejected(proposal, f0)
        return Outcome(
            move=alpha * p,
            alpha=alpha,
            rho=proposal.rho,
            damping=proposal.damping,
            damping_next=self.rules.damping.next(proposal.damping, proposal.rho),
            radius_next=self._next_radius(proposal),
            solution=proposal.solution,
            kept=proposal.kept.iteration,
            cg_last=_finite(proposal.solution.x),  # note 1
            f0=f0,
            f1=f1,
        )

    def _rejected(self, proposal: Proposal, f0: float) -> Outcome:
        damping, rho = proposal.damping, proposal.rho
        return Outcome(
            move=None,
            alpha=0.0,
            rho=rho,
            damping=damping,
            damping_next=self.rules.damping.next(damping, rho, accepted=False),
            radius_next=self._next_radius(proposal),
            solution=proposal.solution,
            kept=0 if proposal.kept is None else proposal.kept.iteration,
            cg_last=None,
            f0=f0,
            f1=f0,
        )

    def _next_radius(self, proposal: Proposal) -> float:
        if math.isinf(self.rules.radius):
            return math.inf
        p = None if proposal.kept is None else proposal.kept.p
        norm = 0.0 if p is None else math.sqrt(dot(p, p))
        return self.rules.trust.next(self.rules.radius, proposal.rho, norm)

    def _solve(self, damping: float, start: Tensor) -> tuple[Solution, Candidate | None]:
        """CG on (B + λD + λμ G_S) p = −∇f, and the iterate that the true objective prefers."""
        chooser = IterateChooser(
            self._backtracking_loss,
            points=self._points(),
            mode=self.rules.backtracking,
            increase_after=self.rules.increase_after,
        )
        with self.ledger.phase("cg"):
            M = self._preconditioner(damping)
            on_device = device.serves(self.gradient) and math.isinf(self.rules.radius)
            run = self._run_on_device if on_device else self._run_on_host
            solution = run(damping, start, chooser, M)
            if solution.stop == NONPOSITIVE:
                self._say(f"{NONPOSITIVE}; CG ended after {solution.iterations} iterations")
            return solution, chooser.choose(solution)

    def _points(self) -> list[int]:
        if self.rules.backtracking == "last":
            return []
        return evaluation_points(self.rules.evaluate_every, self.rules.stop.max_iterations)

    def _preconditioner(self, damping: float) -> Tensor | None:
        if self.rules.preconditioner is None or self.diagonal is None:
            return None
        weight = damping if self.scale is None else damping * self.scale
        return self.rules.preconditioner.matrix(self.diagonal, weight, self.objective.l2)

    def _run_on_host(
        self, damping: float, start: Tensor, chooser: IterateChooser, M: Tensor | None
    ) -> Solution:
        return conjugate_gradient(
            lambda v, out: self._product(v, out, damping, self.rules.structural),
            -self.gradient,
            start,
            rule=self.rules.stop,
            observer=chooser.observe,
            preconditioner=M,
            radius=self.rules.radius,
        )

    def _run_on_device(
        self, damping: float, start: Tensor, chooser: IterateChooser, M: Tensor | None
    ) -> Solution:
        """The same with CG's scalars on the device; iterates are evaluated when the host looks."""
        stops = self.objective.supports_stop
        solution, products = device.device_conjugate_gradient(
            lambda v, out, stop: self._multiply(
                v, out, damping, self.rules.structural, stop if stops else None
            ),
            -self.gradient,
            start,
            rule=self.rules.stop,
            observer=chooser.observe,
            observe_at=self._points(),
            preconditioner=M,
            # A product that cannot be stopped costs more than a look.
            look_every=device.LOOK_EVERY if stops else 1,
            recorded=stops,
        )
        self._count_products(products)
        return solution

    def _backtracking_loss(self, p: Tensor) -> float:
        with self.ledger.phase("backtracking"):
            return self._evaluate(self.roles.backtracking, self._moved(p, 1.0))

    def _ratio(self, kept: Candidate) -> float:
        """ρ on the curvature data; its base value came with the curvature's activations."""
        p, model_change = kept.p, kept.model_change
        assert p is not None
        with self.ledger.phase("rho"):
            after = self._evaluate(self.roles.curvature, self._moved(p, 1.0))
            if self.rules.rho == "undamped":
                self._count_products(1)
                Bp = self._curvature_product(p, torch.empty_like(p), 0.0, 0.0)
                model_change = 0.5 * dot(p, Bp) + dot(self.gradient, p)
            return reduction_ratio(after - self.curvature.loss, model_change)

    def _product(self, v: Tensor, out: Tensor, damping: float, structural: float) -> Tensor:
        self._count_products(1)
        return self._multiply(v, out, damping, structural)

    def _count_products(self, count: int) -> None:
        self.ledger.products += count * self.objective.minibatches(self.roles.curvature)

    def _multiply(
        self, v: Tensor, out: Tensor, damping: float, structural: float, stop: Tensor | None = None
    ) -> Tensor:
        """(B + λD + λμ G_S) v."""
        if self.scale is None:
            return self._curvature_product(v, out, damping, damping * structural, stop)
        out = self._curvature_product(v, out, 0.0, damping * structural, stop)
        return out.addcmul_(self.scale, v, value=damping)

    def _curvature_product(
        self, v: Tensor, out: Tensor, damping: float, structural: float, stop: Tensor | None = None
    ) -> Tensor:
        with self.ledger.phase("products"):
            return self.curvature.product(
                v, damping=damping, structural=structural, out=out, stop=stop
            )

    def _evaluate(self, data: Any, theta: Tensor) -> float:
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
