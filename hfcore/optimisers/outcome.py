"""What a step proposes, and what it decides."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from hfcore.bindings.conjugate_gradient import dot
from hfcore.optimisers.backtracking import Candidate
from hfcore.optimisers.statistics import Ledger, StepStats
from hfcore.solvers.conjugate_gradient import Solution


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
    where the next CG starts at zero; ``curvature_scale`` that of :class:`DampingBounds`.
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
    curvature_scale: float
    converged: bool = False

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
            converged=self.converged,
            messages=tuple(ledger.messages),
        )
