"""Natural gradient steps within a Kullback-Leibler radius, as a torch optimiser.

Amari (1998); trust region policy optimisation, Schulman et al. (2015), appendix C. Numbered notes
say where this departs from the latter, or settles what it leaves open.

1. The Fisher matrix is the Gauss-Newton matrix of the mean divergence from the present
   distributions, over all cases of a step; theirs may take a tenth of them.
2. A step is accepted where the loss falls by a share of what its slope foretold and the divergence
   is within the radius; their constant is not given.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from torch import nn

from hfcore.arguments import choice, count, naming_options, nonnegative, number, positive
from hfcore.autograd.data import Closure
from hfcore.autograd.objective import ModuleObjective
from hfcore.distributed.ranks import check_local
from hfcore.flat import FlatParameters, each_listed
from hfcore.optimisers.closure_optimizer import OneGroup
from hfcore.optimisers.divergence import DISTRIBUTIONS, MakesDistribution
from hfcore.optimisers.line_search import LineSearch
from hfcore.optimisers.natural_gradient_step import NaturalGradientStats, NaturalGradientStep
from hfcore.optimisers.watched_step import watched_step


class NaturalGradient(OneGroup):
    """Steps against F⁻¹g, as long as the divergence of what a model predicts allows.

    g is the gradient of the closure's loss and F the Fisher matrix of the distributions that the
    outputs stand for. CG solves (F + λI) s = g; p = −s·√(2·max_kl / sᵀ(F + λI)s) would reach the
    radius if the divergence were quadratic, and is shortened until the divergence is within it
    and the loss has fallen. With the surrogate loss of a policy, −mean(ratio·advantage), this is
    trust region policy optimisation.

    >>> opt = hf.NaturalGradient(policy, "categorical", max_kl=0.01)
    >>> def closure():
    ...     logits = policy(observations)
    ...     ratio = (Categorical(logits=logits).log_prob(actions) - old_log_prob).exp()
    ...     return -(ratio * advantages).mean(), logits
    >>> loss = opt.step(closure)

    Parameters
    ----------
    params : a module, or its parameters, all of one real floating type on one device
    distribution : what outputs stand for: ``"categorical"``, logits ``[…,k]``; ``"bernoulli"``,
        logits ``[…]``; ``"normal"``, ``[…,2k]``, k means and then k logarithms of standard
        deviations; or a function from outputs to a ``torch.distributions.Distribution`` that
        ``kl_divergence`` knows. The divergence is a mean over its batch
    max_kl : radius δ, in nats, a case
    damping : λ, added to F
    cg_max_iter : most iterations of CG
    cg_tolerance : ‖residual‖, relative to ‖g‖, where CG ends
    line_search_decay, line_search_armijo, line_search_max : of backtracking; the loss must fall by
        ``line_search_armijo`` of what its slope foretold
    local : True: a net of this process alone, while torch.distributed runs in several. It has no
        process_group

    ``last_stats`` is what the last step reported, None before the first. Raises TypeError or
    ValueError naming what is wrong.
    """

    mark = "max_kl"
    kept = ("last_stats", "_model", "distribution")
    returned = "(loss, outputs)"

    @naming_options
    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        distribution: str | MakesDistribution,
        *,
        max_kl: float = 0.01,
        damping: float = 0.01,
        cg_max_iter: int = 20,
        cg_tolerance: float = 1e-3,
        line_search_decay: float = 0.8,
        line_search_armijo: float = 0.1,
        line_search_max: int = 15,
        local: bool = False,
    ) -> None:
        given = locals()
        check_local("hf.NaturalGradient", local)
        if not callable(distribution):
            choice("distribution", distribution, DISTRIBUTIONS)
        self.distribution = distribution
        self._model = params if isinstance(params, nn.Module) else each_listed("params", params)
        self._objective: ModuleObjective | None = None
        self.last_stats: NaturalGradientStats | None = None
        options = {name: given[name] for name in OPTIONS}
        super().__init__(FlatParameters(self._model).tensors, options)
        self._checked()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._objective = None

    @watched_step
    def step(self, closure: Closure) -> float:  # type: ignore[override]
        """One step on the loss of ``closure``; gives its value before.

        The closure returns (loss, outputs): a scalar mean that is differentiated by the parameters,
        and the outputs ``[…]`` whose distributions the step may move. It is called again at other
        parameters, and must then return the same function of them. Where nothing is accepted the
        parameters stay, which ``last_stats`` says. Raises ValueError where loss or gradient are
        not finite at the present parameters; nothing has changed then.
        """
        started = time.perf_counter()
        if not callable(closure):
            raise TypeError(f"closure: got {type(closure).__name__}, need a function")
        search = self._checked()
        if self._objective is None:
            # Products are few, so that nothing pays which is prepared for many.
            self._objective = ModuleObjective(self._model, strategy="double_vjp")
        objective, group = self._objective, self.param_groups[0]
        with objective.parameters.lock:
            step = NaturalGradientStep(objective, closure, self.distribution, group)
            step.run(search)
            self._ended(objective.parameters, step.theta if step.alpha else None)
        self.last_stats = step.stats(time.perf_counter() - started)
        return step.loss

    def _checked(self) -> LineSearch:
        """The search of the present options, all of which are checked."""
        self._check_lr()
        group = self.param_groups[0]
        positive("max_kl", group["max_kl"])
        nonnegative("damping", group["damping"])
        count("cg_max_iter", group["cg_max_iter"])
        tolerance = number("cg_tolerance", group["cg_tolerance"])
        if not 0 < tolerance < 1:
            raise ValueError(f"cg_tolerance: got {tolerance}, need a number between 0 and 1")
        return LineSearch(
            number("line_search_decay", group["line_search_decay"]),
            number("line_search_armijo", group["line_search_armijo"]),
            count("line_search_max", group["line_search_max"]),
        )


OPTIONS = (
    "max_kl", "damping", "cg_max_iter", "cg_tolerance", "line_search_decay", "line_search_armijo",
    "line_search_max",
)  # fmt: skip
