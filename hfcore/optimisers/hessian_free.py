"""Hessian-free optimisation (Martens 2010; Martens & Sutskever 2011, 2012) as a torch optimiser.

1. Without a preset the options are those of the RNN release of 2011 for every model, feed-forward
   nets included; only ``damping="auto"`` looks at the model. Martens (2010) is
   ``hf.presets.martens2010_curves`` and its like.
2. ``l2`` penalises biases too, as the demo of 2010 does; the starred runs of that paper have it on
   the connection weights.
Further notes are in :mod:`hfcore.optimisers.newton_step`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hfcore.autograd.calls import Select
from hfcore.autograd.objective import Closure
from hfcore.batches import Batch, Batches
from hfcore.bindings.conjugate_gradient import dot
from hfcore.bindings.threads import among_kernels
from hfcore.checked_objective import checked_objective
from hfcore.curvature.operator import check_alone
from hfcore.distributed.group import Group, group_of
from hfcore.flat import FlatParameters, each_listed
from hfcore.losses.checks import check_loss
from hfcore.nets.objective import Normalize
from hfcore.nets.rnn import StructuralDistance
from hfcore.objective import Curvature, CurvatureKind, Objective
from hfcore.objective_factory import curvature_of, naming_objective_options
from hfcore.optimisers.backtracking import Backtracking, EvaluateEvery
from hfcore.optimisers.hessian_free_state import packed, unpacked
from hfcore.optimisers.lasting_solves import LastingSolves
from hfcore.optimisers.newton_step import NewtonStep
from hfcore.optimisers.options import Options, by_rule, names
from hfcore.optimisers.outcome import Outcome
from hfcore.optimisers.preconditioner import DiagonalSource
from hfcore.optimisers.roles import Roles
from hfcore.optimisers.serving import Serving
from hfcore.optimisers.statistics import Ledger, StepStats
from hfcore.optimisers.step_point import StepPoint
from hfcore.optimisers.together import Together
from hfcore.optimisers.watched_step import watched_step
from hfcore.seeding import generator_of
from hfcore.solvers.preconditioners import Preconditioner
from hfcore.step_interrupt import interruptible_step

StepData = tuple[Tensor, ...] | Batch | Sequence[Batch] | Batches | Closure | Any

# D = (diag(G) + κ)^0.75 of scale-sensitive damping: the preconditioner's exponent (M&S 2012 leave
# the choice open).
SCALE_EXPONENT = 0.75
OPTIONS = frozenset(names())


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
        gradient) or ``"fisher"`` (empirical). Hessians may be indefinite: a step whose CG has no
        positive curvature in its first direction raises λ past what is there, and says so
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
        section 20.8.6), in the preconditioner's norm (Steihaug 1983); None: off
    l2 : weight decay ½·l2·‖θ‖², biases included (note 2); None: the objective's own, else 0
    cg_max_iter, cg_tolerance, cg_lookback : CG stops where the quadratic makes too little progress
        (Martens 2010, section 4.4); a tolerance of 0 stops where it no longer falls
    cg_residual : CG stops at ‖r‖ below it (RNN release); ``"relative"``: below min(½, ‖g‖^½)·‖g‖ of
        standard truncated Newton, against which Martens 2010, section 4.4, argues
    cg_decay : factor on the previous final iterate that starts CG; 0 starts at zero
    cg_restart : CG starts at zero after a rejected step (RNN release); False: as ever (Martens
        2010)
    cg_evaluate_every : CG iterations between iterates that may be chosen; ``"powers"``: those at
        ⌈1.3^j⌉ (Martens 2010, section 4.6), ``"geometric"``: at ⌈5·1.3^j⌉ (its demo)
    cg_backtracking : ``"best"`` keeps the best evaluated iterate (RNN release), ``"walk"`` walks
        back from the last while the objective does not get worse (Martens 2010), ``"last"`` takes
        the last
    cg_loss_increase_after : stop CG when an evaluation is worse than the one before, from this
        iteration on; None never does (the release's guard of 299)
    preconditioner : None, ``"fisher"``, ``"ggn_diagonal"`` or ``"jacobi"``, or an object with
        ``apply(r, out)``, M⁻¹ r, see ``optimisers/preconditioner.py``;
        ``preconditioner_exponent`` None is the published one
    diagonal_probes : probes a case where diag(G) is estimated
    rho : ``"damped"``: ρ's model includes the damping terms (RNN release); ``"undamped"``: it does
        not (Martens 2010), which costs one more product. ρ's data: :class:`hfcore.Batches`
    rho_low, rho_high, damping_up, damping_down, damping_failed : the Levenberg-Marquardt rule;
        ``damping_failed`` is the factor after a rejected step. λ moves within bounds relative to
        the curvature, see :class:`hfcore.optimisers.damping.DampingBounds`
    step_size : None: the line search; ε: a fixed step (Sutskever et al. 2013, appendix A.6)
    lr : factor on the step, for torch's schedulers: the fixed step is lr·ε, the line search begins
        at lr. 0 is a step of zero
    line_search_decay, line_search_armijo, line_search_max : the line search
    normalize, structural_distance : as in :class:`hfcore.GaussNewton`; hf.RNN only
    seed : of the probes
    strategy, chunk_size : how products of any other module are computed, see
        ``autograd/objective.py``; what ``"measure"`` found to be cheapest at the first step becomes
        the option, so that a resumed run computes as before
    process_group : of torch.distributed: its processes train one net together. Each makes the same
        calls; losses, gradients, products and diagonals are summed over them, everything else is
        done by each on the same bits. At its first step the parameters, buffers and state of the
        first are sent to all, at every step they are compared. None: one process; of several,
        ``local`` must say so
    cases : ``"shared"``, every process is given the same data and takes its share of the cases; or
        ``"own"``, every process is given cases of its own, of length 0 where it has none in a role.
        A closure's loss and gradient are averaged over the processes; those of an objective of
        one's own, always with data of its own, by ``objective.counted(data)``, 1 without that
    reduction : ``"exact"``: the cases are cut into shards by the data's shape alone and summed in
        one order, so that any number of processes gives the same bits, also one without a group;
        ``"fast"``: one all-reduce a sum. None: exact on gloo, fast on NCCL
    local : True: a net of this process alone, while torch.distributed runs in several
    options : further keywords of the model's objective, such as ``memory``, ``batch_dim`` and
        ``outputs``

    The mutable state (λ, CG start, counters) is in ``state_dict()`` and comes back bitwise;
    ``last_stats`` is what the last step reported, None before the first. The optimiser may be
    copied, pickled and saved together with its model. Raises ValueError or TypeError naming the
    option that is wrong.
    """

    @naming_objective_options
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
        cg_residual: float | Literal["relative"] = 1e-10,
        cg_decay: float = 0.95,
        cg_restart: bool = True,
        cg_evaluate_every: EvaluateEvery = 10,
        cg_backtracking: Backtracking = "best",
        cg_loss_increase_after: int | None = None,
        preconditioner: DiagonalSource | Preconditioner | None = None,
        preconditioner_exponent: float | None = None,
        diagonal_probes: int = 1,
        rho: Literal["damped", "undamped"] | None = None,
        rho_low: float = 0.25,
        rho_high: float = 0.75,
        damping_up: float | None = None,
        damping_down: float | None = None,
        damping_failed: float | None = None,
        step_size: float | None = None,
        lr: float = 1.0,
        line_search_decay: float = 0.8,
        line_search_armijo: float = 0.0,
        line_search_max: int = 50,
        normalize: Normalize = "sequences",
        structural_distance: StructuralDistance = "matching",
        seed: int = 0,
        strategy: str = "auto",
        chunk_size: int | None = None,
        process_group: Any = None,
        cases: Literal["shared", "own"] = "shared",
        reduction: Literal["exact", "fast"] | None = None,
        local: bool = False,
        **options: Any,
    ) -> None:
        flat = {name: value for name, value in locals().items() if name in OPTIONS}
        group = group_of(
            "hf.HessianFree",
            process_group,
            reduction,
            cases=cases,
            local=local,
            model=model,
            serves_parts=flat["curvature"] == "hessian_fd" and loss is None and objective is None,
        )
        self._together = Together(group, local=local)
        built_with = {
            "normalize": normalize,
            "structural_distance": structural_distance,
            "chunk_size": chunk_size,
            **options,
        }
        if not isinstance(model, nn.Module):
            model = each_listed("model", model)
        if loss is not None:
            check_loss(loss)
        if objective is not None:
            check_alone(loss=loss, structural=structural, strategy=strategy, **built_with)
            strategy = getattr(objective, "strategy", strategy)
        if l2 is None:
            flat["l2"] = 0.0 if objective is None else checked_objective(objective).l2
        if isinstance(structural, Mapping):
            built_with["structural"] = dict(structural)
        flat = Options.of(by_rule(damping_rule, flat)).flat()
        self._built_with = built_with
        self._model, self.loss, self.objective = model, loss, objective
        self.last_stats: StepStats | None = None
        # What the objective is built with is here so that a run folder records and compares it.
        recorded = {
            name: value
            for name, value in built_with.items()
            if name != "chunk_size" and not callable(value)
        }
        recorded |= self._together.recorded()
        super().__init__(FlatParameters(model).tensors, {**flat, "strategy": strategy, **recorded})
        self._build()

    def _build(self) -> None:
        """Make what is made of the model, the loss and the options."""
        group, options = self.param_groups[0], dict(self._built_with)
        self._parameters = FlatParameters(self._model)
        self._lasting = LastingSolves()
        self._serving = Serving(
            self._model,
            self.loss,
            self.objective,
            l2=group["l2"],
            structural=options.pop("structural", group["structural"]),
            strategy=group["strategy"],
            options=options,
            group=self._together.group,
        )

    # ------------------------------------------------------------------------------ state

    @property
    def damping(self) -> float | Literal["auto"]:
        """λ of the next step; ``"auto"`` before the first."""
        value: float | Literal["auto"] = self.param_groups[0]["damping"]
        return value

    @property
    def group(self) -> Group | None:
        """The processes that train together, None for this one alone."""
        return self._together.group

    @property
    def steps(self) -> int:
        """Steps taken, rejected ones included."""
        return int(self._own_state.get("steps", 0))

    @property
    def _own_state(self) -> dict[str, Any]:
        """That of the whole optimiser, which is kept with the first parameter."""
        state: dict[str, Any] = self.state[self._parameters.tensors[0]]
        return state

    @property
    def outputs(self) -> Select | None:
        """Which of the things that the model returns the loss takes, as it was built with."""
        return self._built_with.get("outputs")

    def __getstate__(self) -> dict[str, Any]:
        mine = ("_model", "loss", "objective", "_built_with", "_together", "last_stats")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in mine}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_model" in state:  # a copy, or from a file
            self._build()
        for group in self.param_groups:  # a state from before an option was there
            for name, value in self.defaults.items():
                if name != "differentiable":  # torch's own, which it adds while it loads
                    group.setdefault(name, value)

    def state_dict(self) -> dict[str, Any]:
        """As torch's optimisers: the options, steps taken, CG's last iterate.

        A preconditioner that is an operator is not in it, but what its own ``state_dict`` gives.
        """
        return packed(super().state_dict(), self._parameters.tensors)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state; a preconditioner that is an operator must have been given again.

        Raises ValueError for the state of another kind of optimiser or of another net, whose
        parameters have other shapes or another dtype.
        """
        operator = self.param_groups[0]["preconditioner"]
        state, keeps = unpacked(state_dict, self._parameters.tensors, operator)
        super().load_state_dict(state)
        if keeps:
            self.param_groups[0]["preconditioner"] = operator

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused with TypeError: all parameters share one curvature matrix."""
        if self.param_groups:
            raise TypeError("add_param_group: got a second group, need all parameters in the model")
        super().add_param_group(param_group)

    def _options(self) -> Options:
        """The present options, checked."""
        group = self.param_groups[0]
        for name, value in self._built_with.items():
            if group.get(name, value) != value:
                raise ValueError(
                    f"{name}: got {group[name]!r}, need {value!r} as it was built with"
                )
        if isinstance(group["structural"], Mapping) and "structural" not in self._built_with:
            raise ValueError("structural: got a mapping, need a number as it was built with")
        return Options.of(group)

    def _cg_start(self, theta: Tensor) -> Tensor:
        last = self._own_state.get("cg_last")
        if last is None:
            return torch.zeros_like(theta)
        start: Tensor = last.to(theta) * self.param_groups[0]["cg_decay"]
        return start

    def _remember(self, outcome: Outcome) -> None:
        """The state after a step."""
        state, group = self._own_state, self.param_groups[0]
        state["steps"] = state.get("steps", 0) + 1
        state["curvature_scale"] = outcome.curvature_scale
        if outcome.cg_last is None:
            state.pop("cg_last", None)
        else:
            state["cg_last"] = outcome.cg_last.clone()
        group["damping"] = outcome.damping_next
        if group["trust_radius"] is not None:
            group["trust_radius"] = outcome.radius_next

    # ------------------------------------------------------------------------------- step

    @watched_step
    def step(  # type: ignore[override]
        self, data: StepData = None, *, closure: Closure | None = None
    ) -> StepStats:
        """One step on ``(x, y, mask)``, a list of batches, :class:`hfcore.Batches`, or a closure.

        A closure, also by keyword, serves every role, as does what an objective of one's own takes
        and is none of the others. It is called with gradients enabled and returns (loss, outputs),
        or the loss alone: then ``curvature`` is ``"hessian"``, which differentiates it twice, or
        ``"hessian_fd"``, which takes gradients by ``backward()``, called by the closure or for it,
        and nothing else. Raises ValueError when the parameters or the objective at them are not
        finite, or the parameters are other ones than at the start; nothing has changed then. Nor
        after Ctrl-C, which ends a step between two iterations of CG with
        :class:`hfcore.StepInterrupted`, a KeyboardInterrupt.
        """
        if (data is None) == (closure is None):
            what = "nothing" if data is None else "data and a closure"
            raise TypeError(f"step: got {what}, need data or a closure")
        data = closure if data is None else data
        options = self._options()
        self._parameters.refresh()
        if self._together.begin(self._parameters, self._own_state, self.param_groups[0]):
            options = self._options()  # those of the first rank
        objective = self._serving.objective(data, options, self.param_groups[0]["strategy"])
        theta = self._parameters.read()
        among = among_kernels(theta) if objective.supports_stop else nullcontext()
        agreed = self._together.several
        with torch.no_grad(), among, interruptible_step(agreed=agreed):
            ledger = Ledger()
            point, loss, damping = self._prepared(objective, data, theta, options, ledger)
            step = NewtonStep(point, first=self.steps == 0)
            outcome = step.run(damping, self._cg_start(theta))
            if outcome.move is not None:
                self._parameters.write(theta.add_(outcome.move))
            self._remember(outcome)
            norm = math.sqrt(dot(point.gradient, point.gradient))
            self.last_stats = outcome.report(loss, norm, ledger)
        return self.last_stats

    def _prepared(
        self,
        objective: Objective,
        data: StepData,
        theta: Tensor,
        options: Options,
        ledger: Ledger,
    ) -> tuple[StepPoint, float, float]:
        """(the point with gradient and curvature, the loss there, λ)."""
        bad = self._parameters.first_bad(theta)
        if bad is not None:
            raise ValueError(f"model: parameter {bad} holds NaN or Inf, need finite values")
        group = self.param_groups[0]
        with ledger.phase("prepare"):
            roles = self._together.work(lambda: self._serving.roles(objective, data))
            self._together.compare(theta, self._own_state, group, data)
            damping = _present_damping(objective, roles, options)
        with ledger.phase("gradient"):
            loss, gradient = objective.gradient(roles.gradient, theta)
            ledger.gradients += objective.minibatches(roles.gradient)
        norm = math.sqrt(dot(gradient, gradient))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ValueError(
                f"objective.gradient: gave loss {loss}, gradient norm {norm} at the present "
                "parameters, need finite values"
            )
        with ledger.phase("curvature"):
            kind = options.function.curvature
            curvature = curvature_of(objective, roles.curvature, theta, kind)
            if group["strategy"] == "measure":  # recorded: a resumed run computes as before
                group["strategy"] = getattr(curvature, "strategy", "measure")
            ledger.messages.extend(getattr(curvature, "messages", ()))
            ledger.objective_evaluations += objective.minibatches(roles.curvature)
        with ledger.phase("preconditioner"):
            diagonal, scale = self._diagonals(objective, roles, theta, curvature, options)
            _count_diagonals(ledger, objective, roles, options)
        point = StepPoint(
            objective,
            roles,
            theta,
            gradient,
            curvature,
            options,
            ledger,
            diagonal=diagonal,
            scale=scale,
            curvature_scale=self._own_state.get("curvature_scale"),
            lasting=self._lasting,
        )
        return point, loss, damping

    def _diagonals(
        self,
        objective: Objective,
        roles: Roles,
        theta: Tensor,
        curvature: Curvature,
        options: Options,
    ) -> tuple[Tensor | None, Tensor | None]:
        """(the preconditioner's diagonal, D of scale-sensitive damping), each if asked for."""
        estimating, kappa = options.preconditioning, options.damping.scale_damping
        # A generator of its own for every step: nothing to store, the same on a resume.
        generator = generator_of(estimating.seed, self.steps, device=theta.device)
        diagonal, scale = None, None
        if estimating.diagonal is not None:
            diagonal = estimating.diagonal.diagonal(
                objective, roles.gradient, theta, curvature, generator
            )
        if kappa is not None:
            estimate = curvature.diagonal(estimating.diagonal_probes, generator)
            scale = (estimate + kappa).pow_(SCALE_EXPONENT)
        return diagonal, scale


def _count_diagonals(ledger: Ledger, objective: Objective, roles: Roles, options: Options) -> None:
    """The passes that diagonals take: the Fisher matrix's one over the gradient data, others one a
    probe over the curvature data. The exact one counts as one probe, whatever the outputs."""
    rule = options.preconditioning.diagonal
    probes = 0
    if rule is not None and rule.source == "fisher":
        ledger.gradients += objective.minibatches(roles.gradient)
    elif rule is not None:
        probes += rule.probes if rule.source == "ggn_diagonal" else 1
    if options.damping.scale_damping is not None:
        probes += options.preconditioning.diagonal_probes
    ledger.products += probes * objective.minibatches(roles.curvature)


def _present_damping(objective: Objective, roles: Roles, options: Options) -> float:
    """λ of this step, resolved at the first."""
    if options.damping.structural and not objective.supports_structural:
        raise ValueError(
            "structural: a number needs an hf.RNN or hf.MLP and batches, whose hidden units "
            "it damps; for another module name its submodules"
        )
    given = options.damping.damping
    return objective.damping_start(roles.gradient) if isinstance(given, str) else given
