"""Hessian-free optimisation (Martens 2010; Martens & Sutskever 2011, 2012) as a torch optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hfcore.autograd.backward import BackwardObjective
from hfcore.autograd.objective import Closure, ModuleObjective
from hfcore.batches import Batch, Batches
from hfcore.bindings.checks import check_choice
from hfcore.bindings.conjugate_gradient import dot
from hfcore.bindings.threads import among_kernels
from hfcore.checked_objective import checked_objective
from hfcore.curvature.objectives import curvature_of, objective_for
from hfcore.curvature.operator import check_alone, check_nonnegative
from hfcore.curvature.rnn import Normalize, StructuralDistance
from hfcore.flat import FlatParameters
from hfcore.losses import Loss
from hfcore.nets.unaltered import why_not_fused
from hfcore.objective import CURVATURE_KINDS, Curvature, CurvatureKind, Objective
from hfcore.optimisers.backtracking import BACKTRACKING, Backtracking, Schedule
from hfcore.optimisers.damping import (
    DAMPING_RULES,
    RHO_CONVENTIONS,
    LevenbergMarquardt,
)
from hfcore.optimisers.line_search import FixedStep, LineSearch
from hfcore.optimisers.newton_step import NewtonStep, Rules
from hfcore.optimisers.preconditioner import EXPONENTS, DiagonalRule, Preconditioner
from hfcore.optimisers.roles import Roles, prepare_roles
from hfcore.optimisers.statistics import Ledger, StepStats
from hfcore.solvers.conjugate_gradient import StopRule

StepData = tuple[Tensor, ...] | Batch | Sequence[Batch] | Batches | Closure | Any

# D = (diag(G) + κ)^0.75 of scale-sensitive damping: the preconditioner's exponent (M&S 2012 leave
# the choice open).
SCALE_EXPONENT = 0.75
# Seeds of the probes: a generator's 64 bits hold one and the number of the step.
MAX_SEED = 2**31


class HessianFree(torch.optim.Optimizer):
    """Truncated-Newton steps on a damped curvature quadratic, λ by Levenberg-Marquardt.

    Parameters
    ----------
    model : hf.RNN or hf.MLP (fused kernels), any module, or an iterable of parameters (then every
        step brings a closure)
    loss : a matching loss of ``hf.losses``; any module also takes a callable (outputs, targets) →
        mean loss; None with an objective, or when every step brings a closure
    objective : an :class:`hfcore.Objective` of one's own in the loss's place. Its data is what its
        ``prepare`` takes, see :meth:`step`; ``model`` then only holds the parameters
    curvature : ``"ggn"``, ``"hessian"`` (R-op), ``"hessian_fd"`` (finite differences of the
        gradient) or ``"fisher"`` (empirical)
    damping : λ₀; ``"auto"`` is the objective's ``damping_start`` at the first step: 0.1·T of an
        hf.RNN, 1 elsewhere
    damping_window : (low, high): the first step doubles or halves λ₀ until its ρ is inside;
        the author's tuning rule is (0.75, 0.95)
    damping_rule : ``"martens2010"``, ``"rnn2011"`` or ``"chapelle2011"``: sets ``rho`` and the
        factors below that are not given
    scale_damping : κ; damps by λ(diag(G) + κ)^0.75 in place of λI (M&S 2012, section 20.8.3);
        None: off
    structural : μ of structural damping, weight λμ (M&S 2011); or a mapping from the names of
        submodules to ``"identity"``, the matching nonlinearity of that output (``"tanh"``,
        ``"logistic"``, ``"softmax"``), or a pair of it and μ
    trust_radius : first radius of a trust region, which then moves in place of λ (M&S 2012,
        section 20.8.6); None: off
    l2 : weight decay ½·l2·‖θ‖², biases included; None: the objective's own, else 0
    cg_max_iter, cg_tolerance, cg_lookback, cg_residual : CG's stop rules (Martens 2010, section
        4.4); a tolerance of 0 stops where the quadratic no longer falls
    cg_decay : factor on the previous final iterate that starts CG; 0 starts at zero
    cg_restart : CG starts at zero after a rejected step (RNN release); False: as ever (Martens
        2010)
    cg_evaluate_every : CG iterations between iterates that may be chosen; ``"geometric"``:
        ⌈5·1.3^j⌉ (Martens 2010)
    cg_backtracking : ``"best"`` keeps the best evaluated iterate (RNN release), ``"walk"`` walks
        back from the last while the objective does not get worse (Martens 2010), ``"last"`` takes
        the last
    cg_loss_increase_after : stop CG when an evaluation is worse than the one before, from this
        iteration on; None never does (the release's guard of 299)
    preconditioner : None, ``"fisher"``, ``"ggn_diagonal"`` or ``"jacobi"``, see
        ``optimisers/preconditioner.py``; ``preconditioner_exponent`` None is the published one
    diagonal_probes : probes a case where diag(G) is estimated
    rho : ``"damped"``: ρ's model includes the damping terms (RNN release); ``"undamped"``: it does
        not (Martens 2010), which costs one more product
    rho_low, rho_high, damping_up, damping_down, damping_failed : the Levenberg-Marquardt rule;
        ``damping_failed`` is the factor after a rejected step
    step_size : None: the line search; ε: a fixed step (Sutskever et al. 2013, appendix A.6)
    line_search_decay, line_search_armijo, line_search_max : the line search
    normalize, structural_distance : as in :class:`hfcore.GaussNewton`; hf.RNN only
    seed : of the probes
    strategy, chunk_size : how products of any other module are computed, see
        ``autograd/objective.py``; what ``"auto"`` measured to be cheapest at the first step becomes
        the option, so that a resumed run computes as before
    options : further keywords of the model's objective, such as ``memory`` and ``batch_dim``

    The mutable state (λ, CG start, counters) is in ``state_dict()`` and comes back bitwise.
    Raises ValueError or TypeError naming the option that is wrong.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Parameter],
        loss: Any = None,
        *,
        objective: Any = None,
        curvature: CurvatureKind = "ggn",
        damping: float | Literal["auto"] = "auto",
        damping_window: tuple[float, float] | None = None,
        damping_rule: str = "rnn2011",
        scale_damping: float | None = None,
        structural: float | Mapping[str, Any] = 0.0,
        trust_radius: float | None = None,
        l2: float | None = None,
        cg_max_iter: int = 300,
        cg_tolerance: float = 5e-4,
        cg_lookback: int = 10,
        cg_residual: float = 1e-10,
        cg_decay: float = 0.95,
        cg_restart: bool = True,
        cg_evaluate_every: Schedule = 10,
        cg_backtracking: Backtracking = "best",
        cg_loss_increase_after: int | None = None,
        preconditioner: Preconditioner | None = None,
        preconditioner_exponent: float | None = None,
        diagonal_probes: int = 1,
        rho: Literal["damped", "undamped"] | None = None,
        rho_low: float = 0.25,
        rho_high: float = 0.75,
        damping_up: float | None = None,
        damping_down: float | None = None,
        damping_failed: float | None = None,
        step_size: float | None = None,
        line_search_decay: float = 0.8,
        line_search_armijo: float = 0.0,
        line_search_max: int = 50,
        normalize: Normalize = "sequences",
        structural_distance: StructuralDistance = "matching",
        seed: int = 0,
        strategy: str = "auto",
        chunk_size: int | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            model = _parameters(model)
        if not (loss is None or callable(loss) or isinstance(loss, Loss)):
            raise TypeError(
                f"loss: got {type(loss).__name__}, need a loss of hf.losses or a callable"
            )
        own = None if objective is None else checked_objective(objective)
        if own is not None:
            check_alone(
                loss=loss,
                structural=structural,
                normalize=normalize,
                structural_distance=structural_distance,
                strategy=strategy,
                chunk_size=chunk_size,
                **options,
            )
            strategy = getattr(own.given, "strategy", strategy)
        if l2 is None:
            l2 = 0.0 if own is None else own.l2
        check_choice("damping_rule", damping_rule, tuple(DAMPING_RULES))
        rule = DAMPING_RULES[damping_rule]
        defaults: dict[str, Any] = {
            "curvature": curvature,
            "damping": damping,
            "damping_window": None if damping_window is None else tuple(damping_window),
            "scale_damping": scale_damping,
            "structural": dict(structural) if isinstance(structural, Mapping) else structural,
            "trust_radius": trust_radius,
            "l2": l2,
            "cg_max_iter": cg_max_iter,
            "cg_tolerance": cg_tolerance,
            "cg_lookback": cg_lookback,
            "cg_residual": cg_residual,
            "cg_decay": cg_decay,
            "cg_restart": cg_restart,
            "cg_evaluate_every": cg_evaluate_every,
            "cg_backtracking": cg_backtracking,
            "cg_loss_increase_after": cg_loss_increase_after,
            "preconditioner": preconditioner,
            "preconditioner_exponent": preconditioner_exponent,
            "diagonal_probes": diagonal_probes,
            "rho": rule["rho"] if rho is None else rho,
            "rho_low": rho_low,
            "rho_high": rho_high,
            "damping_up": rule["damping_up"] if damping_up is None else damping_up,
            "damping_down": rule["damping_down"] if damping_down is None else damping_down,
            "damping_failed": rule.get("damping_failed")
            if damping_failed is None
            else damping_failed,
            "step_size": step_size,
            "line_search_decay": line_search_decay,
            "line_search_armijo": line_search_armijo,
            "line_search_max": line_search_max,
            "seed": seed,
            "strategy": strategy,
            # fixed once the objective is built; here so that a run folder records and compares them
            "normalize": normalize,
            "structural_distance": structural_distance,
            **options,
        }
        # What the objective is built with; the other options may change between steps.
        self._fixed = {
            name: defaults[name] for name in ("normalize", "structural_distance", *options)
        }
        if isinstance(structural, Mapping):
            self._fixed["structural"] = defaults["structural"]
        _check_options(defaults)
        self._parameters = FlatParameters(model)
        self.loss, self.objective = loss, objective
        super().__init__(self._parameters.tensors, defaults)
        self._rules(first=True)  # refuses impossible numbers now, not at the first step
        self._own = own
        self._objective: Objective | None = own
        self._closures: ModuleObjective | None = None
        self._backward: BackwardObjective | None = None
        if own is not None:
            return
        named = structural if isinstance(structural, Mapping) else None
        self._closures = ModuleObjective(model, l2=l2, structural=named, strategy=strategy)
        self._backward = BackwardObjective(model, l2=l2)
        if loss is not None:
            if not isinstance(model, nn.Module):
                raise TypeError("model: got parameters alone, need a module to go with a loss")
            self._objective = objective_for(
                model,
                loss,
                l2=l2,
                structural=structural,
                normalize=normalize,
                structural_distance=structural_distance,
                strategy=strategy,
                chunk_size=chunk_size,
                **options,
            )

    # ------------------------------------------------------------------------------ state

    @property
    def damping(self) -> float | Literal["auto"]:
        """λ of the next step; ``"auto"`` before the first."""
        value: float | Literal["auto"] = self.param_groups[0]["damping"]
        return value

    @property
    def steps(self) -> int:
        """Steps taken, rejected ones included."""
        return int(self.state[self._parameters.tensors[0]].get("steps", 0))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a state from before an option was there
            for name, value in self.defaults.items():
                if name != "differentiable":  # torch's own, which it adds while it loads
                    group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused with TypeError: all parameters share one curvature matrix."""
        if self.param_groups:
            raise TypeError("add_param_group: got a second group, need all parameters in the model")
        super().add_param_group(param_group)

    def _rules(self, *, first: bool) -> Rules:
        o = self.param_groups[0]
        _check_options(o)
        for name, value in self._fixed.items():
            if o[name] != value:
                raise ValueError(f"{name}: got {o[name]!r}, need {value!r} as it was built with")
        if isinstance(o["structural"], dict) and "structural" not in self._fixed:
            raise ValueError("structural: got a mapping, need a number as it was built with")
        search: LineSearch | FixedStep = LineSearch(
            o["line_search_decay"], o["line_search_armijo"], o["line_search_max"]
        )
        if o["step_size"] is not None:
            search = FixedStep(o["step_size"])
        structural = o["structural"]
        return Rules(
            # With named submodules every μ is in the objective.
            structural=1.0 if isinstance(structural, dict) else structural,
            stop=StopRule(
                max_iterations=o["cg_max_iter"],
                tolerance=o["cg_tolerance"],
                lookback=o["cg_lookback"],
                residual=o["cg_residual"],
            ),
            damping=LevenbergMarquardt(
                o["rho_low"],
                o["rho_high"],
                o["damping_up"],
                o["damping_down"],
                o["damping_failed"],
            ),
            line_search=search,
            evaluate_every=o["cg_evaluate_every"],
            backtracking=o["cg_backtracking"],
            increase_after=o["cg_loss_increase_after"],
            rho=o["rho"],
            preconditioner=self._diagonal_rule(),
            scale_floor=o["scale_damping"],
            damping_window=o["damping_window"] if first else None,
            restart=o["cg_restart"],
            radius=math.inf if o["trust_radius"] is None else o["trust_radius"],
        )

    def _diagonal_rule(self) -> DiagonalRule | None:
        o = self.param_groups[0]
        source, exponent = o["preconditioner"], o["preconditioner_exponent"]
        if source is None:
            return None
        return DiagonalRule(
            source, EXPONENTS[source] if exponent is None else exponent, o["diagonal_probes"]
        )

    def _cg_start(self, theta: Tensor) -> Tensor:
        kept = self.state[self._parameters.tensors[0]].get("cg_last")
        if kept is None:
            return torch.zeros_like(theta)
        start: Tensor = kept.to(theta) * self.param_groups[0]["cg_decay"]
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

        A closure serves every role, as does what an objective of one's own takes and is none of the
        others. It is called with gradients enabled and returns (loss, outputs), or the loss alone:
        then ``curvature`` is ``"hessian"``, which differentiates it twice, or ``"hessian_fd"``,
        which takes gradients by ``backward()``, called by the closure or for it, and nothing else.
        Raises ValueError when the parameters or the objective at them are not finite, or the
        parameters are other ones than at the start; nothing has changed then.
        """
        theta = self._parameters.read()
        objective = self._objective_of(data)
        with among_kernels(theta) if objective.supports_stop else nullcontext():
            return self._step(objective, data, theta)

    def _step(self, objective: Objective, data: StepData, theta: Tensor) -> StepStats:
        ledger = Ledger()
        bad = self._parameters.first_bad(theta)
        if bad is not None:
            raise ValueError(f"model: parameter {bad} holds NaN or Inf, need finite values")
        with ledger.phase("prepare"):
            roles = self._prepare(objective, data)
            damping = self._present_damping(objective, roles)
        with ledger.phase("gradient"):
            loss, gradient = objective.gradient(roles.gradient, theta)
            ledger.gradients += objective.minibatches(roles.gradient)
        norm = math.sqrt(dot(gradient, gradient))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ValueError(
                f"objective.gradient: gave loss {loss}, gradient norm {norm} at the present "
                "parameters, need finite values"
            )
        options = self.param_groups[0]
        with ledger.phase("curvature"):
            curvature = curvature_of(objective, roles.curvature, theta, options["curvature"])
            options["strategy"] = getattr(curvature, "strategy", options["strategy"])
            ledger.messages.extend(getattr(curvature, "messages", ()))
            ledger.objective_evaluations += objective.minibatches(roles.curvature)
        rules = self._rules(first=self.steps == 0)
        with ledger.phase("preconditioner"):
            diagonal, scale = self._diagonals(objective, roles, theta, curvature, rules)
        step = NewtonStep(
            objective,
            roles,
            theta,
            gradient,
            curvature,
            rules,
            ledger,
            diagonal=diagonal,
            scale=scale,
        )
        outcome = step.run(damping, self._cg_start(theta))
        if outcome.move is not None:
            self._parameters.write(theta.add_(outcome.move))
        self._keep_cg(outcome.cg_last)
        options["damping"] = outcome.damping_next
        if options["trust_radius"] is not None:
            options["trust_radius"] = outcome.radius_next
        return outcome.report(loss, norm, ledger)

    def _diagonals(
        self,
        objective: Objective,
        roles: Roles,
        theta: Tensor,
        curvature: Curvature,
        rules: Rules,
    ) -> tuple[Tensor | None, Tensor | None]:
        """(the preconditioner's diagonal, D of scale-sensitive damping), each if asked for."""
        options = self.param_groups[0]
        # A generator of its own for every step: nothing to store, the same on a resume.
        generator = torch.Generator(theta.device).manual_seed(options["seed"] * 2**32 + self.steps)
        diagonal, scale = None, None
        if rules.preconditioner is not None:
            diagonal = rules.preconditioner.diagonal(
                objective, roles.gradient, theta, curvature, generator
            )
        if rules.scale_floor is not None:
            estimate = curvature.diagonal(options["diagonal_probes"], generator)
            scale = (estimate + rules.scale_floor).pow_(SCALE_EXPONENT)
        return diagonal, scale

    def _present_damping(self, objective: Objective, roles: Roles) -> float:
        """λ of this step, resolved at the first."""
        options = self.param_groups[0]
        if options["structural"] and not objective.supports_structural:
            raise ValueError(
                "structural: a number needs an hf.RNN or hf.MLP and batches, whose hidden units "
                "it damps; for another module name its submodules"
            )
        if options["damping"] != "auto":
            return float(options["damping"])
        return objective.damping_start(roles.gradient)

    def _objective_of(self, data: StepData) -> Objective:
        """What serves this data, with the present options."""
        self._parameters.refresh()
        options = self.param_groups[0]
        objective = self._objective
        if self._own is None and callable(data):  # differences need nothing but gradients
            differences = options["curvature"] == "hessian_fd"
            objective = self._backward if differences else self._closures
        if objective is None:
            raise TypeError(
                "step: batches need a module and a loss; without a loss give a closure that "
                "returns (loss, outputs)"
            )
        self._check_unaltered(objective)
        objective.l2 = options["l2"]
        takes_strategy = objective if self._own is None else self._own.given
        if hasattr(takes_strategy, "strategy"):
            takes_strategy.strategy = options["strategy"]
        return objective

    def _prepare(self, objective: Objective, data: StepData) -> Roles:
        if self._own is None and callable(data):
            return Roles(data, data, data, data)
        return prepare_roles(objective, data, any_data=objective is self._own)

    def _check_unaltered(self, objective: Objective) -> None:
        """A fused objective reads parameters alone: refuse what it could not see."""
        model = None if self._closures is None else self._closures.module
        if model is None or isinstance(objective, ModuleObjective | BackwardObjective):
            return
        reason = why_not_fused(model)
        if reason is not None:
            raise ValueError(
                f"model: was altered since the optimiser was built, {reason}; a new optimiser goes "
                "through autograd"
            )


def _parameters(model: Any) -> list[nn.Parameter]:
    if isinstance(model, Tensor | str) or not isinstance(model, Iterable):
        raise TypeError(
            f"model: got {type(model).__name__}, need a torch.nn.Module or its parameters"
        )
    return list(model)


def _check_options(o: dict[str, Any]) -> None:
    """What no rule's own class checks."""
    if o["damping"] != "auto":
        check_nonnegative("damping", o["damping"])
    for name in ("l2", "cg_decay"):
        check_nonnegative(name, o[name])
    check_choice("curvature", o["curvature"], CURVATURE_KINDS)
    check_choice("cg_backtracking", o["cg_backtracking"], BACKTRACKING)
    check_choice("rho", o["rho"], RHO_CONVENTIONS)
    if o["preconditioner"] is not None:
        check_choice("preconditioner", o["preconditioner"], tuple(EXPONENTS))
    if not isinstance(o["structural"], dict):
        check_nonnegative("structural", o["structural"])
    for name in ("scale_damping", "preconditioner_exponent"):
        if o[name] is not None:
            check_nonnegative(name, o[name])
    radius = o["trust_radius"]
    if radius is not None and not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"trust_radius: got {radius}, need a positive finite number or None")
    every = o["cg_evaluate_every"]
    if every != "geometric" and not (isinstance(every, int) and every >= 1):
        raise ValueError(f"cg_evaluate_every: got {every!r}, need at least 1 or 'geometric'")
    if o["cg_loss_increase_after"] is not None and o["cg_backtracking"] == "last":
        raise ValueError("cg_loss_increase_after: needs cg_backtracking 'best' or 'walk'")
    if o["diagonal_probes"] < 1:
        raise ValueError(f"diagonal_probes: got {o['diagonal_probes']}, need at least 1")
    if not 0 <= o["seed"] < MAX_SEED:
        raise ValueError(f"seed: got {o['seed']}, need 0 to {MAX_SEED - 1}")
    window = o["damping_window"]
    if window is not None and not (len(window) == 2 and 0 < window[0] < window[1]):
        raise ValueError(f"damping_window: got {window}, need 0 < low < high")
    if window is not None and radius is not None:
        raise ValueError("damping_window: got one with a trust_radius, in which λ stays; need None")
