"""Gauss-Newton steps with Levenberg-Marquardt damping on residuals, as a torch optimiser.

Levenberg (1944), Marquardt (1963); Madsen, Nielsen & Tingleff (2004), "Methods for non-linear least
squares problems", section 3.2, whose choices are the defaults. Numbered notes say where this
departs from them.

1. Damping is λI, and its first value is relative to the curvature along the gradient, which
   products give, in the place of the largest diagonal entry of JᵀJ.
2. ρ's model is that of the step taken, also where CG ended early.
3. A step of zero ends with a message; the caller decides whether that is the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from hfcore.arguments import choice, count, naming_options, nonnegative, number
from hfcore.distributed.ranks import check_local
from hfcore.flat import FlatParameters, each_listed
from hfcore.optimisers.closure_optimizer import OneGroup
from hfcore.optimisers.least_squares_step import LeastSquaresStats, LeastSquaresStep
from hfcore.optimisers.residuals import ResidualClosure, Residuals
from hfcore.optimisers.watched_step import watched_step


class LeastSquares(OneGroup):
    """Minimises ½‖r(θ)‖², the sum over all residuals, as ``scipy.optimize.least_squares`` does.

    A step solves (JᵀJ + λI) p = −Jᵀr, and tries larger λ until the sum of squares falls. Small
    systems are factorised in float64, from all rows of J; larger ones are left to conjugate
    gradients. What pays is small problems to high accuracy, such as physics-informed nets; where
    the cases are many, :class:`hfcore.HessianFree` takes them in batches.

    >>> opt = hf.LeastSquares(model)
    >>> loss = opt.step(lambda: model(x) - y)           # ½‖r‖² before the step
    >>> loss = opt.step(lambda: {"equation": a, "boundary": 10 * b})    # residuals by name

    Parameters
    ----------
    params : a module, or its parameters, all of one real floating type on one device
    space : the system that is solved: ``"parameters"``, N×N; ``"samples"``, M×M for M residuals;
        ``"auto"``: the smaller
    solver : ``"dense"``; ``"cg"``; or ``"auto"``: dense where J has at most 2²⁶ entries and the
        system at most 4,096 rows
    damping : λ₀; ``"auto"``: a thousandth of the curvature along the gradient, gᵀJᵀJg/gᵀg
    damping_rule : ``"nielsen"``, λ·max(⅓, 1 − (2ρ − 1)³); or ``"martens2010"``, 3/2 where ρ < ¼
        and 2/3 where ρ > ¾ (Martens 2010, section 4.1)
    cg_tolerance : ‖residual‖ of the system, relative to its right side, where CG ends
    cg_max_iter : most iterations of CG for one λ
    preconditioner : of CG: None, or ``"nystrom"``, see :class:`hfcore.NystromPreconditioner`
    max_tries : values of λ in one step, at the most
    local : True: a net of this process alone, while torch.distributed runs in several. It has no
        process_group

    ``state_dict`` holds λ, the rule's factor and the number of steps; ``last_stats`` is what the
    last step reported, None before the first. Raises TypeError or ValueError naming what is wrong.
    """

    mark = "max_tries"
    kept = ("last_stats", "_module")
    returned = "residuals"

    @naming_options
    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        *,
        space: Literal["auto", "parameters", "samples"] = "auto",
        solver: Literal["auto", "dense", "cg"] = "auto",
        damping: float | Literal["auto"] = "auto",
        damping_rule: Literal["nielsen", "martens2010"] = "nielsen",
        cg_tolerance: float = 1e-3,
        cg_max_iter: int = 300,
        preconditioner: Literal["nystrom"] | None = None,
        max_tries: int = 20,
        local: bool = False,
    ) -> None:
        given = locals()
        check_local("hf.LeastSquares", local)
        options = {name: given[name] for name in OPTIONS}
        self._module = params if isinstance(params, nn.Module) else None
        self.last_stats: LeastSquaresStats | None = None
        source = params if isinstance(params, nn.Module) else each_listed("params", params)
        super().__init__(FlatParameters(source).tensors, options)
        self._checked()

    @watched_step
    def step(self, closure: ResidualClosure) -> float:  # type: ignore[override]
        """One Gauss-Newton step on the residuals of ``closure``; gives ½‖r‖² before it.

        The closure returns residuals ``[…]``, or a dict of such by name, computed from the
        parameters without ``torch.no_grad``. It is called again at other parameters, and must then
        return the same residuals there. Where no λ gives a decrease the parameters stay, which
        ``last_stats`` says. Raises ValueError where residuals or their derivatives are not finite
        at the present parameters; nothing has changed then.
        """
        started = time.perf_counter()
        self._checked()
        group = self.param_groups[0]
        parameters = FlatParameters(self._module or group["params"])
        residuals = Residuals(closure, parameters, self._module)
        with parameters.lock:
            step = LeastSquaresStep(residuals, parameters.read(), group, self._own_state)
            step.run()
            theta = step.theta if step.accepted else None
            self._ended(parameters, theta, damping=step.damping, growth=step.growth)
        self.last_stats = step.stats(time.perf_counter() - started)
        return step.loss

    def _checked(self) -> None:
        self._check_lr()
        group = self.param_groups[0]
        choice("space", group["space"], ("auto", "parameters", "samples"))
        choice("solver", group["solver"], ("auto", "dense", "cg"))
        choice("damping_rule", group["damping_rule"], ("nielsen", "martens2010"))
        if group["damping"] != "auto":
            nonnegative("damping", group["damping"])
        if not 0 < number("cg_tolerance", group["cg_tolerance"]) < 1:
            raise ValueError(
                f"cg_tolerance: got {group['cg_tolerance']}, need a number between 0 and 1"
            )
        count("cg_max_iter", group["cg_max_iter"])
        count("max_tries", group["max_tries"])
        if group["preconditioner"] is not None:
            choice("preconditioner", group["preconditioner"], ("nystrom",))
            if group["solver"] == "dense":
                raise ValueError("preconditioner: belongs to solver='cg', which solver rules out")


OPTIONS = (
    "space", "solver", "damping", "damping_rule", "cg_tolerance", "cg_max_iter", "preconditioner",
    "max_tries",
)  # fmt: skip
