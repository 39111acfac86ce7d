"""Hessian-free optimisation (Martens 2010; Martens & Sutskever 2011, 2012) as a torch optimiser.

Numbered notes say where this departs from the papers.

1. The curvature, ρ, backtracking and line search data default to the first, first, second and third
   gradient batch, as in the original RNN release; the paper leaves this open.
2. The next CG start is decay × the final CG iterate, even if an earlier one was kept or the step
   was rejected by backtracking (as in both releases); it is zeroed when the line search fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hfcore.batches import Batch, Batches
from hfcore.curvature.gauss_newton import check_nonnegative
from hfcore.curvature.module import Closure, ModuleObjective
from hfcore.curvature.rnn import Normalize, RnnObjective, StructuralDistance
from hfcore.bindings.checks import check_choice
from hfcore.flat import FlatParameters
from hfcore.losses import Loss
from hfcore.models.rnn import RNN
from hfcore.objective import Curvature, Objective
from hfcore.optimisers.damping import RHO_CONVENTIONS, LevenbergMarquardt, reduction_ratio
from hfcore.optimisers.line_search import LineSearch
from hfcore.optimisers.statistics import Ledger, StepStats
from hfcore.solvers.conjugate_gradient import (
    NONFINITE,
    NONPOSITIVE,
    Solution,
    StopRule,
    conjugate_gradient,
)

StepData = tuple[Tensor, ...] | Batch | Sequence[Batch] | Batches | Closure

# λ0 = 0.1·T when none is given: the supplement of M&S 2011 as remembered, and the release's comment.
DAMPING_PER_STEP = 0.1
# Failed solves (non-finite curvature or loss everywhere) before a step is given up.
MAX_RETRIES = 8


@dataclass
class _Roles:
    """Prepared data of one step by role."""

    gradient: Any
    curvature: Any
    backtracking: Any
    line_search: Any


@dataclass
class _Candidate:
    """The CG iterate to be tried: its index, p, q(p) of the damped model, f on backtracking data."""

    iteration: int
    p: Tensor
    model_change: float
    loss: float


class HessianFree(torch.optim.Optimizer):
    """Truncated-Newton steps on the damped Gauss-Newton quadratic, λ by Levenberg-Marquardt.

    Parameters
    ----------
    model : hf.RNN (fused kernels, all of the recipe) or any module (steps by closure)
    loss : a matching loss of ``hf.losses``; None when every step brings a closure
    damping : λ₀ (Tikhonov); ``"auto"`` is 0.1·T at the first step (1.0 for a closure)
    structural : μ of structural damping, weight λμ (M&S 2011); RNN only
    l2 : weight decay ½·l2·‖θ‖², biases included
    cg_max_iter, cg_tolerance, cg_lookback : CG's stop rules (Martens 2010, section 4.4)
    cg_decay : factor on the previous final iterate that starts CG; 0 starts at zero
    cg_evaluate_every : CG iterations between evaluations of the true objective
    cg_backtracking : ``"best"`` keeps the best evaluated iterate (RNN release), ``"walk"`` walks
        back from the last while the objective does not get worse (Martens 2010)
    cg_loss_increase_after : stop CG when an evaluation is worse than the one before, from this
        iteration on; None never does (the release's guard of 299)
    rho : ``"damped"``: ρ's model includes the damping terms (RNN release); ``"undamped"``: it does
        not (Martens 2010), which costs one more product
    rho_low, rho_high, damping_up, damping_down : the Levenberg-Marquardt rule
    line_search_decay, line_search_armijo, line_search_max : the line search
    normalize, structural_distance : as in :class:`hfcore.GaussNewton`

    The mutable state (λ, CG start, counters) is in ``state_dict()`` and comes back bitwise.
    Raises ValueError or TypeError naming the option that is wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None = None,
        *,
        damping: float | Literal["auto"] = "auto",
        structural: float = 0.0,
        l2: float = 0.0,
        cg_max_iter: int = 300,
        cg_tolerance: float = 5e-4,
        cg_lookback: int = 10,
        cg_decay: float = 0.95,
        cg_evaluate_every: int = 10,
        cg_backtracking: Literal["best", "walk"] = "best",
        cg_loss_increase_after: int | None = None,
        rho: Literal["damped", "undamped"] = "damped",
        rho_low: float = 0.25,
        rho_high: float = 0.75,
        damping_up: float = 3 / 2,
        damping_down: float = 2 / 3,
        line_search_decay: float = 0.8,
        line_search_armijo: float = 0.0,
        line_search_max: int = 50,
        normalize: Normalize = "sequences",
        structural_distance: StructuralDistance = "matching",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, need a torch.nn.Module")
        if loss is not None and not isinstance(loss, Loss):
            raise TypeError(f"loss: got {type(loss).__name__}, need a loss of hf.losses")
        if damping != "auto":
            check_nonnegative("damping", damping)
        for name, value in (("structural", structural), ("l2", l2), ("cg_decay", cg_decay)):
            check_nonnegative(name, value)
        if cg_evaluate_every < 1:
            raise ValueError(f"cg_evaluate_every: got {cg_evaluate_every}, need at least 1")
        check_choice("cg_backtracking", cg_backtracking, ("best", "walk"))
        check_choice("rho", rho, RHO_CONVENTIONS)
        self._parameters = FlatParameters(model)
        defaults = {
            "damping": damping if damping == "auto" else float(damping),
            "structural": float(structural),
            "cg_max_iter": cg_max_iter,
            "cg_tolerance": cg_tolerance,
            "cg_lookback": cg_lookback,
            "cg_decay": cg_decay,
            "cg_evaluate_every": cg_evaluate_every,
            "cg_backtracking": cg_backtracking,
            "cg_loss_increase_after": cg_loss_increase_after,
            "rho": rho,
            "rho_low": rho_low,
            "rho_high": rho_high,
            "damping_up": damping_up,
            "damping_down": damping_down,
            "line_search_decay": line_search_decay,
            "line_search_armijo": line_search_armijo,
            "line_search_max": line_search_max,
            # fixed once the objective is built; here so that a run folder records and compares them
            "l2": float(l2),
            "normalize": normalize,
            "structural_distance": structural_distance,
        }
        super().__init__(self._parameters.tensors, defaults)
        self._rules()  # refuses impossible numbers now, not at the first step
        self._module_objective = ModuleObjective(model, l2=l2)
        self._rnn_objective: RnnObjective | None = None
        if isinstance(model, RNN) and loss is not None:
            if len(self._parameters.tensors) != len(list(model.parameters())):
                raise ValueError(
                    "model: some parameters of the RNN are frozen; the fused path trains all six"
                )
            self._rnn_objective = RnnObjective(
                model,
                loss,
                l2=l2,
                normalize=normalize,
                structural_distance=structural_distance,
            )

    # ------------------------------------------------------------------------------ state

    @property
    def damping(self) -> float | Literal["auto"]:
        """λ of the next step; ``"auto"`` before the first."""
        value: float | Literal["auto"] = self.param_groups[0]["damping"]
        return value

    def _rules(self) -> tuple[StopRule, LevenbergMarquardt, LineSearch]:
        o = self.param_groups[0]
        return (
            StopRule(o["cg_max_iter"], 1, o["cg_tolerance"], o["cg_lookback"]),
            LevenbergMarquardt(o["rho_low"], o["rho_high"], o["damping_up"], o["damping_down"]),
            LineSearch(o["line_search_decay"], o["line_search_armijo"], o["line_search_max"]),
        )

    def _cg_start(self, theta: Tensor) -> Tensor:
        kept = self.state[self._parameters.tensors[0]].get("cg_last")
        if kept is None:
            return torch.zeros_like(theta)
        start: Tensor = kept * self.param_groups[0]["cg_decay"]
        return start

    def _keep_cg(self, last: Tensor | None) -> None:
        state = self.state[self._parameters.tensors[0]]
        state["steps"] = state.get("steps", 0) + 1
        if last is None:
            state.pop("cg_last", None)
        else:
            state["cg_last"] = last.clone()

    # ------------------------------------------------------------------------------- step

    @torch.no_grad()
    def step(self, data: StepData) -> StepStats:  # type: ignore[override]
        """One step on ``(x, y, mask)``, a list of batches, :class:`hfcore.Batches`, or a closure.

        A closure returns (loss, outputs) and serves every role. Raises ValueError when the
        parameters or the objective at them are not finite; nothing has changed then.
        """
        ledger = Ledger()
        theta = self._parameters.read()
        bad = self._parameters.first_bad(theta)
        if bad is not None:
            raise ValueError(f"model: parameter {bad} holds NaN or Inf, need finite values")
        with ledger.phase("prepare"):
            objective, roles = self._prepare(data)
            options = self._options(objective, data)
        with ledger.phase("gradient"):
            loss, gradient = objective.gradient(roles.gradient, theta)
            ledger.gradients += objective.minibatches(roles.gradient)
        norm = float(gradient.double().norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ValueError(
                f"objective: loss {loss}, gradient norm {norm} at the present parameters, "
                "need finite values"
            )
        with ledger.phase("curvature"):
            curvature = objective.curvature(roles.curvature, theta)
            ledger.objective_evaluations += objective.minibatches(roles.curvature)
        stats = _Step(objective, roles, theta, gradient, curvature, options, ledger).run(
            self._cg_start(theta), self._rules()
        )
        if stats.accepted:
            self._parameters.write(theta.add_(stats.p, alpha=stats.alpha))
        self._keep_cg(stats.cg_last)
        self.param_groups[0]["damping"] = stats.damping_next
        return stats.report(loss, norm, ledger)

    def _options(self, objective: Objective, data: StepData) -> dict[str, Any]:
        options = self.param_groups[0]
        if options["structural"] and not objective.supports_structural:
            raise ValueError("structural: needs an hf.RNN and batches; a closure has no hidden states")
        if options["damping"] == "auto":
            options["damping"] = self._first_damping(data)
        return options

    def _first_damping(self, data: StepData) -> float:
        if callable(data):
            return 1.0
        first = _as_batches(data).gradient
        first = first if isinstance(first, Batch) else first[0]
        return DAMPING_PER_STEP * first[0].shape[0]

    def _prepare(self, data: StepData) -> tuple[Objective, _Roles]:
        if callable(data):
            return self._module_objective, _Roles(data, data, data, data)
        if self._rnn_objective is None:
            raise TypeError(
                "step: batches need an hf.RNN and a loss of hf.losses; for any other module give "
                "a closure that returns (loss, outputs)"
            )
        batches = _as_batches(data)
        objective = self._rnn_objective
        prepared: dict[int, Any] = {}  # one batch in several roles is checked once

        def prepare(role: Sequence[Batch]) -> list[Any]:
            out = []
            for batch in role:
                if id(batch) not in prepared:
                    prepared[id(batch)] = objective.prepare(batch)[0]
                out.append(prepared[id(batch)])
            if not out:
                raise ValueError("data: a role got no batch, need at least one")
            return out

        gradient = _as_list(batches.gradient)
        return objective, _Roles(
            prepare(gradient),
            prepare(_role(batches.curvature, gradient, 0)),
            prepare(_role(batches.backtracking, gradient, 1)),
            prepare(_role(batches.line_search, gradient, 2)),
        )


def _as_batches(data: Any) -> Batches:
    if isinstance(data, Batches):
        return data
    if isinstance(data, Batch):
        return Batches(gradient=data)
    if isinstance(data, (tuple, list)) and len(data) > 0:
        if isinstance(data[0], Tensor):
            if len(data) not in (2, 3):
                raise TypeError(f"step: got a tuple of {len(data)}, need (x, y) or (x, y, mask)")
            return Batches(gradient=Batch(*data))
        return Batches(gradient=list(data))
    raise TypeError(
        f"step: got {type(data).__name__}, need (x, y, mask), hf.Batches or a closure"
    )


def _as_list(role: Sequence[Batch] | Batch) -> list[Batch]:
    if isinstance(role, Batch):
        return [role]
    batches = list(role)
    if not batches:
        raise ValueError("gradient: got no batch, need at least one")
    return batches


def _role(given: Sequence[Batch] | Batch | None, gradient: list[Batch], index: int) -> list[Batch]:
    """The batches of a role, by default the gradient batch of that index (or the last)."""
    return [gradient[min(index, len(gradient) - 1)]] if given is None else _as_list(given)


@dataclass
class _Outcome:
    """What a step decided, before it is written to the parameters."""

    p: Tensor
    alpha: float
    accepted: bool
    rho: float
    damping: float
    damping_next: float
    solution: Solution
    kept: int
    cg_last: Tensor | None
    f0: float
    f1: float

    def report(self, loss: float, gradient_norm: float, ledger: Ledger) -> StepStats:
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
            step_norm=self.alpha * float(self.p.double().norm()),
            gradient_norm=gradient_norm,
            products=ledger.products,
            gradients=ledger.gradients,
            objective_evaluations=ledger.objective_evaluations,
            seconds=ledger.seconds(),
            accepted=self.accepted,
            messages=tuple(ledger.messages),
        )


class _Step:
    """One step at fixed θ: solve, choose an iterate, ρ, line search."""

    def __init__(
        self,
        objective: Objective,
        roles: _Roles,
        theta: Tensor,
        gradient: Tensor,
        curvature: Curvature,
        options: dict[str, Any],
        ledger: Ledger,
    ) -> None:
        self.objective = objective
        self.roles = roles
        self.theta = theta
        self.gradient = gradient
        self.curvature = curvature
        self.options = options
        self.ledger = ledger
        self._at = torch.empty_like(theta)

    def run(
        self, start: Tensor, rules: tuple[StopRule, LevenbergMarquardt, LineSearch]
    ) -> _Outcome:
        stop_rule, rule, line_search = rules
        damping: float = self.options["damping"]
        for _ in range(MAX_RETRIES):
            solution, kept = self.solve(damping, start, stop_rule)
            if kept is not None or solution.stop == NONPOSITIVE:
                break
            # Note 3: the papers do not say what to do here; λ grows by its own rule and CG starts
            # afresh, so that a poisoned start cannot fail every step after.
            self.say(f"{solution.stop} at λ = {damping:g}: λ raised, solved again from zero")
            damping = max(damping, 1e-6) * rule.up
            start = torch.zeros_like(start)
        if kept is None:
            return self.rejected(damping, rule, solution)
        rho = self.ratio(kept, damping)
        with self.ledger.phase("line_search"):
            f0 = self.evaluate(self.roles.line_search, self.theta)
            slope = float(self.gradient.double() @ kept.p.double())
            alpha, f1, _ = line_search.search(
                lambda a: self.evaluate(self.roles.line_search, self.moved(kept.p, a)), f0, slope
            )
        if alpha == 0.0:
            self.say("line search found no decrease: step rejected, CG start reset")
        last = solution.x if alpha > 0.0 and bool(torch.isfinite(solution.x).all()) else None
        return _Outcome(
            p=kept.p,
            alpha=alpha,
            accepted=alpha > 0.0,
            rho=rho,
            damping=damping,
            damping_next=rule.next(damping, rho),
            solution=solution,
            kept=kept.iteration,
            cg_last=last,
            f0=f0,
            f1=f1,
        )

    def solve(
        self, damping: float, start: Tensor, rule: StopRule
    ) -> tuple[Solution, _Candidate | None]:
        """CG on (B + λI + λμ G_S) p = −∇f, and the iterate that the true objective prefers."""
        chooser = _Chooser(self, start)
        with self.ledger.phase("cg"):
            solution = conjugate_gradient(
                lambda v, out: self.product(v, out, damping, self.options["structural"]),
                -self.gradient,
                start,
                rule=rule,
                observer=chooser.observe,
            )
            if solution.stop == NONPOSITIVE:
                self.say(f"{NONPOSITIVE}; CG ended after {solution.iterations} iterations")
            return solution, chooser.choose(solution)

    def ratio(self, kept: _Candidate, damping: float) -> float:
        """ρ on the curvature data; its base value was computed with the curvature's activations."""
        with self.ledger.phase("rho"):
            change = (
                self.evaluate(self.roles.curvature, self.moved(kept.p, 1.0)) - self.curvature.loss
            )
            model_change = kept.model_change
            if self.options["rho"] == "undamped":
                Bp = self.product(kept.p, torch.empty_like(kept.p), 0.0, 0.0)
                p = kept.p.double()
                model_change = 0.5 * float(p @ Bp.double()) + float(self.gradient.double() @ p)
            return reduction_ratio(change, model_change)

    def rejected(
        self, damping: float, rule: LevenbergMarquardt, solution: Solution
    ) -> _Outcome:
        self.say("no CG iterate improved the objective: step rejected, λ raised, CG start reset")
        f0 = self.evaluate(self.roles.line_search, self.theta)
        return _Outcome(
            p=torch.zeros_like(self.theta),
            alpha=0.0,
            accepted=False,
            rho=-math.inf,
            damping=damping,
            damping_next=rule.next(damping, -math.inf),
            solution=solution,
            kept=0,
            cg_last=None,
            f0=f0,
            f1=f0,
        )

    def product(self, v: Tensor, out: Tensor, damping: float, structural: float) -> Tensor:
        with self.ledger.phase("products"):
            self.ledger.products += self.objective.minibatches(self.roles.curvature)
            return self.curvature.product(
                v, damping=damping, structural=damping * structural, out=out
            )

    def evaluate(self, data: Any, theta: Tensor) -> float:
        self.ledger.objective_evaluations += self.objective.minibatches(data)
        return self.objective.loss(data, theta)

    def moved(self, p: Tensor, alpha: float) -> Tensor:
        """θ + αp in a buffer that the next call overwrites."""
        return torch.add(self.theta, p, alpha=alpha, out=self._at)

    def say(self, message: str) -> None:
        self.ledger.messages.append(message)


class _Chooser:
    """Evaluates the true objective along CG and picks the iterate to try."""

    def __init__(self, step: _Step, start: Tensor) -> None:
        self.step = step
        self.every: int = step.options["cg_evaluate_every"]
        self.increase_after: int | None = step.options["cg_loss_increase_after"]
        self.walk: bool = step.options["cg_backtracking"] == "walk"
        self.candidates: list[_Candidate] = []
        self.last_phi = math.nan

    def observe(self, iteration: int, x: Tensor, phi: float) -> bool:
        self.last_phi = phi
        if iteration % self.every:
            return False
        before = self.candidates[-1].loss if self.candidates else math.inf
        self.consider(iteration, x, phi)
        worse = self.candidates[-1].loss > before
        return self.increase_after is not None and iteration >= self.increase_after and worse

    def consider(self, iteration: int, x: Tensor, phi: float) -> None:
        """Evaluate an iterate; in ``best`` mode only the best one's vector is held."""
        with self.step.ledger.phase("backtracking"):
            loss = self.step.evaluate(self.step.roles.backtracking, self.step.moved(x, 1.0))
        loss = loss if math.isfinite(loss) else math.inf
        if not self.walk:
            best = min((c.loss for c in self.candidates if c.p.numel()), default=math.inf)
            if loss < best:
                for c in self.candidates:
                    c.p = c.p.new_empty(0)
        hold = self.walk or loss < math.inf and not any(c.p.numel() for c in self.candidates)
        p = x.clone() if hold else x.new_empty(0)
        self.candidates.append(_Candidate(iteration, p, phi, loss))

    def choose(self, solution: Solution) -> _Candidate | None:
        """The iterate to try, or None if no iterate has a finite objective."""
        i = solution.iterations
        usable = solution.stop != NONFINITE and i > 0
        if usable and (not self.candidates or self.candidates[-1].iteration != i):
            self.consider(i, solution.x, solution.history[-1])
        finite = [c for c in self.candidates if math.isfinite(c.loss) and c.p.numel()]
        if not finite:
            return None
        if not self.walk:
            return min(finite, key=lambda c: c.loss)
        chosen = finite[-1]
        for earlier in reversed(finite[:-1]):
            if earlier.loss > chosen.loss:
                break
            chosen = earlier
        return chosen


