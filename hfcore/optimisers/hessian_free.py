"""Hessian-free optimisation (Martens 2010; Martens & Sutskever 2011, 2012) as a torch optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hfcore.batches import Batch, Batches
from hfcore.bindings.checks import check_choice
from hfcore.bindings.conjugate_gradient import dot
from hfcore.curvature.gauss_newton import check_nonnegative
from hfcore.curvature.module import Closure, ModuleObjective
from hfcore.curvature.rnn import Normalize, RnnObjective, StructuralDistance
from hfcore.flat import FlatParameters
from hfcore.losses import Loss
from hfcore.models.rnn import RNN
from hfcore.objective import Objective
from hfcore.optimisers.damping import RHO_CONVENTIONS, LevenbergMarquardt
from hfcore.optimisers.line_search import LineSearch
from hfcore.optimisers.newton_step import NewtonStep, Rules
from hfcore.optimisers.roles import Roles, as_batches, first_length, prepare_roles
from hfcore.optimisers.statistics import Ledger, StepStats
from hfcore.solvers.conjugate_gradient import StopRule

StepData = tuple[Tensor, ...] | Batch | Sequence[Batch] | Batches | Closure

# λ0 = 0.1·T when none is given: a comment in the original RNN release, and the supplement of
# M&S 2011 as it is remembered.
DAMPING_PER_STEP = 0.1


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

    def _rules(self) -> Rules:
        o = self.param_groups[0]
        return Rules(
            structural=o["structural"],
            stop=StopRule(
                max_iterations=o["cg_max_iter"],
                tolerance=o["cg_tolerance"],
                lookback=o["cg_lookback"],
            ),
            damping=LevenbergMarquardt(
                o["rho_low"], o["rho_high"], o["damping_up"], o["damping_down"]
            ),
            line_search=LineSearch(
                o["line_search_decay"], o["line_search_armijo"], o["line_search_max"]
            ),
            evaluate_every=o["cg_evaluate_every"],
            backtracking=o["cg_backtracking"],
            increase_after=o["cg_loss_increase_after"],
            rho=o["rho"],
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
            damping = self._present_damping(objective, data)
        with ledger.phase("gradient"):
            loss, gradient = objective.gradient(roles.gradient, theta)
            ledger.gradients += objective.minibatches(roles.gradient)
        norm = math.sqrt(dot(gradient, gradient))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ValueError(
                f"objective: loss {loss}, gradient norm {norm} at the present parameters, "
                "need finite values"
            )
        with ledger.phase("curvature"):
            curvature = objective.curvature(roles.curvature, theta)
            ledger.objective_evaluations += objective.minibatches(roles.curvature)
        step = NewtonStep(objective, roles, theta, gradient, curvature, self._rules(), ledger)
        outcome = step.run(damping, self._cg_start(theta))
        if outcome.move is not None:
            self._parameters.write(theta.add_(outcome.move))
        self._keep_cg(outcome.cg_last)
        self.param_groups[0]["damping"] = outcome.damping_next
        return outcome.report(loss, norm, ledger)

    def _present_damping(self, objective: Objective, data: StepData) -> float:
        """λ of this step, resolved at the first."""
        options = self.param_groups[0]
        if options["structural"] and not objective.supports_structural:
            raise ValueError(
                "structural: needs an hf.RNN and batches; a closure has no hidden states"
            )
        if options["damping"] == "auto":
            return 1.0 if callable(data) else DAMPING_PER_STEP * first_length(data)
        return float(options["damping"])

    def _prepare(self, data: StepData) -> tuple[Objective, Roles]:
        if callable(data):
            return self._module_objective, Roles(data, data, data, data)
        if self._rnn_objective is None:
            raise TypeError(
                "step: batches need an hf.RNN and a loss of hf.losses; for any other module give "
                "a closure that returns (loss, outputs)"
            )
        return self._rnn_objective, prepare_roles(self._rnn_objective, as_batches(data))
