"""One truncated-Newton step at fixed θ: solve, choose an iterate, ρ, line search.

Numbered notes say where this departs from the papers.

1. The next CG start is the final CG iterate (decayed), even if an earlier one was kept, as in both
   releases; it is dropped when the line search fails.
2. The papers do not say what to do when the curvature or every trial objective is not finite: λ
   grows by its own rule and CG starts afresh, so that a poisoned start cannot fail later steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfcore.bindings.conjugate_gradient import dot
from hfcore.objective import Curvature, Objective
from hfcore.optimisers.backtracking import Backtracking, Candidate, IterateChooser
from hfcore.optimisers.damping import LevenbergMarquardt, reduction_ratio
from hfcore.optimisers.line_search import LineSearch
from hfcore.optimisers.roles import Roles
from hfcore.optimisers.statistics import Ledger, StepStats
from hfcore.solvers import device_conjugate_gradient as device
from hfcore.solvers.conjugate_gradient import NONPOSITIVE, Solution, StopRule, conjugate_gradient

# Failed solves (nothing finite to try) before a step is given up.
MAX_RETRIES = 8
# From λ = 0 a raise would stay there.
SMALLEST_RAISED = 1e-6


@dataclass(frozen=True)
class Rules:
    """How a step solves, moves λ and searches."""

    structural: float  # μ
    stop: StopRule
    damping: LevenbergMarquardt
    line_search: LineSearch
    evaluate_every: int
    backtracking: Backtracking
    increase_after: int | None
    rho: str


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
    """One step at θ ``[N]`` with gradient ∇f ``[N]`` and the curvature there."""

    def __init__(
        self,
        objective: Objective,
        roles: Roles,
        theta: Tensor,
        gradient: Tensor,
        curvature: Curvature,
        rules: Rules,
        ledger: Ledger,
    ) -> None:
        self.objective = objective
        self.roles = roles
        self.theta = theta
        self.gradient = gradient
        self.curvature = curvature
        self.rules = rules
        self.ledger = ledger
        self._at = torch.empty_like(theta)

    def run(self, damping: float, start: Tensor) -> Outcome:
        """Solve from ``start [N]`` at λ = ``damping``; raise λ while nothing is finite."""
        for _ in range(MAX_RETRIES):
            solution, kept = self._solve(damping, start)
            if kept is not None:
                return self._try(kept, solution, damping)
            if solution.stop == NONPOSITIVE:
                break
            self._say(f"{solution.stop} at λ = {damping:g}: λ raised, CG starts afresh")  # note 2
            damping = max(damping, SMALLEST_RAISED) * self.rules.damping.up
            start = torch.zeros_like(start)
        self._say("CG gave no step with a finite objective: rejected, λ raised")
        with self.ledger.phase("line_search"):
            f0 = self._evaluate(self.roles.line_search, self.theta)
        return self._outcome(solution, damping, -math.inf, 0, f0)

    def _try(self, kept: Candidate, solution: Solution, damping: float) -> Outcome:
        """ρ and the line search along the iterate that was kept."""
        assert kept.p is not None
        p = kept.p
        rho = self._ratio(p, kept.model_change)
        with self.ledger.phase("line_search"):
            f0 = self._evaluate(self.roles.line_search, self.theta)
            slope = dot(self.gradient, p)
            alpha, f1 = self.rules.line_search.search(
                lambda a: self._evaluate(self.roles.line_search, self._moved(p, a)), f0, slope
            )
        if alpha == 0.0:
            self._say("line search found no decrease: step rejected, CG start dropped")
            return self._outcome(solution, damping, rho, kept.iteration, f0)
        return Outcome(
            move=alpha * p,
            alpha=alpha,
            rho=rho,
            damping=damping,
            damping_next=self.rules.damping.next(damping, rho),
            solution=solution,
            kept=kept.iteration,
            cg_last=solution.x if bool(torch.isfinite(solution.x).all()) else None,  # note 1
            f0=f0,
            f1=f1,
        )

    def _outcome(
        self, solution: Solution, damping: float, rho: float, kept: int, f0: float
    ) -> Outcome:
        """A rejected step."""
        following = self.rules.damping.next(damping, rho)
        return Outcome(None, 0.0, rho, damping, following, solution, kept, None, f0, f0)

    def _solve(self, damping: float, start: Tensor) -> tuple[Solution, Candidate | None]:
        """CG on (B + λI + λμ G_S) p = −∇f, and the iterate that the true objective prefers."""
        chooser = IterateChooser(
            self._backtracking_loss,
            every=self.rules.evaluate_every,
            mode=self.rules.backtracking,
            increase_after=self.rules.increase_after,
        )
        with self.ledger.phase("cg"):
            run = self._run_on_device if device.serves(self.gradient) else self._run_on_host
            solution = run(damping, start, chooser)
            if solution.stop == NONPOSITIVE:
                self._say(f"{NONPOSITIVE}; CG ended after {solution.iterations} iterations")
            return solution, chooser.choose(solution)

    def _run_on_host(self, damping: float, start: Tensor, chooser: IterateChooser) -> Solution:
        return conjugate_gradient(
            lambda v, out: self._product(v, out, damping, self.rules.structural),
            -self.gradient,
            start,
            rule=self.rules.stop,
            observer=chooser.observe,
        )

    def _run_on_device(self, damping: float, start: Tensor, chooser: IterateChooser) -> Solution:
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
            observe_every=self.rules.evaluate_every,
            # A product that cannot be stopped costs more than a look.
            look_every=device.LOOK_EVERY if stops else 1,
        )
        self._count_products(products)
        return solution

    def _backtracking_loss(self, p: Tensor) -> float:
        with self.ledger.phase("backtracking"):
            return self._evaluate(self.roles.backtracking, self._moved(p, 1.0))

    def _ratio(self, p: Tensor, model_change: float) -> float:
        """ρ on the curvature data; its base value came with the curvature's activations."""
        with self.ledger.phase("rho"):
            after = self._evaluate(self.roles.curvature, self._moved(p, 1.0))
            if self.rules.rho == "undamped":
                Bp = self._product(p, torch.empty_like(p), 0.0, 0.0)
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
        with self.ledger.phase("products"):
            return self.curvature.product(
                v, damping=damping, structural=damping * structural, out=out, stop=stop
            )

    def _evaluate(self, data: Any, theta: Tensor) -> float:
        self.ledger.objective_evaluations += self.objective.minibatches(data)
        return self.objective.loss(data, theta)

    def _moved(self, p: Tensor, alpha: float) -> Tensor:
        """θ + αp in a buffer that the next call overwrites."""
        return torch.add(self.theta, p, alpha=alpha, out=self._at)

    def _say(self, message: str) -> None:
        self.ledger.messages.append(message)
