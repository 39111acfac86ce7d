"""Nonlinear conjugate gradients (Polak & Ribière 1969), the fine-tuning of Martens' baseline.

Numbered notes say where this departs from the ``minimize`` of Rasmussen, as it is remembered, with
which Hinton & Salakhutdinov (2006) fine-tuned their autoencoders, or settles what it leaves open.

1. β is max(0, β_PR) (Powell 1984); theirs restarts only where the direction does not descend.
2. A search that finds no decrease is followed by one along the gradient itself, as theirs; if that
   finds none either, the step ends where it is.
3. Line searches are counted; theirs may count evaluations instead.
4. The search is not theirs, see ``wolfe_search.py``; its constants are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hfcore.arguments import (
    count,
    flag,
    naming_options,
    nonnegative,
    number,
    optimiser_state,
)
from hfcore.distributed.ranks import check_local
from hfcore.flat import FlatParameters, listed
from hfcore.optimisers.closure_optimizer import ClosureOptimizer
from hfcore.optimisers.descent import Decay, Descent, DescentMemory
from hfcore.optimisers.watched_step import watched_step
from hfcore.optimisers.wolfe_search import WolfeSearch

NO_DECREASE = "no decrease along the gradient: the step is zero"


@dataclass(frozen=True)
class LineSearchStats:
    """One step of :class:`NonlinearCG` in numbers; ``dataclasses.asdict`` of it is JSON."""

    loss: float  # with weight decay, before the step
    loss_after: float  # with weight decay, after the step
    gradient_norm: float  # before the step
    line_searches: int  # of this step
    line_searches_failed: int  # those that found no decrease
    alpha: float  # of the last one, in units of its direction; 0: it found no decrease
    evaluations: int  # of the closure
    accepted: bool  # the parameters have moved
    converged: bool  # they have not: there is no decrease even along the gradient
    seconds: dict[str, float]  # of the closure, and "total"
    messages: tuple[str, ...]  # sentences on what was out of the ordinary


class NonlinearCG(ClosureOptimizer):
    """Polak–Ribière+ directions, each followed to a strong Wolfe point.

    A step is some line searches on one function, that of its closure: by default three, begun with
    steepest descent, for a batch of its own (Hinton & Salakhutdinov 2006: three on every batch of
    1000 cases).

    >>> opt = hf.NonlinearCG(model)
    >>> loss = opt.step(closure)                # a closure as for torch.optim.LBFGS

    Args:
        params: a module, or its parameters or groups of them, all of one real floating type on one
            device.
        line_searches: of a step, at the most.
        restart: a step begins with steepest descent; False: with the direction that the last one
            ended with, for a function that stays the same.
        weight_decay: weight of ½‖θ‖² in the function that is minimised; of a group its own.
        sufficient_decrease, curvature: ρ and σ of the Wolfe conditions.
        max_evaluations: of the closure, in one line search.
        margin, extrapolation: of its trials, see :class:`hfcore.optimisers.wolfe_search`.
        slope_ratio: a search begins at most so many times as far as the last one ended.
        local: True: a net of this process alone, while torch.distributed runs in several. It has
            no process_group; in ``hf.train`` it minimises the function that all of them compute.

    ``state_dict`` holds the number of steps, with ``restart=False`` also the direction ``[N]``, α
    and the slope; ``last_stats`` is what the last step reported, None before the first. Raises
    TypeError or ValueError naming what is wrong.
    """

    mark = "line_searches"

    @naming_options
    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        *,
        line_searches: int = 3,
        restart: bool = True,
        weight_decay: float = 0.0,
        sufficient_decrease: float = 0.05,
        curvature: float = 0.1,
        max_evaluations: int = 20,
        margin: float = 0.1,
        extrapolation: float = 3.0,
        slope_ratio: float = 10.0,
        local: bool = False,
    ) -> None:
        given = locals()
        check_local("hf.NonlinearCG", local)
        options = {name: given[name] for name in OPTIONS}
        if isinstance(params, nn.Module):
            params = FlatParameters(params).tensors
        self.last_stats: LineSearchStats | None = None
        self._memory: DescentMemory | None = None
        super().__init__(listed("params", params), options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Another group, with a ``weight_decay`` of its own; all else belongs to the whole.

        Raises ValueError for other options of its own and for parameters of another type or device.
        """
        super().add_param_group(param_group)
        try:
            self._checked()
            FlatParameters(self._parameters())
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._memory = None

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As torch's optimisers. Raises ValueError for the state of another kind or another net."""
        optimiser_state(state_dict)
        N = sum(p.numel() for p in self._parameters())
        for entry in state_dict["state"].values():
            direction = entry.get("direction")
            if direction is not None and list(direction.shape) != [N]:
                raise ValueError(
                    f"state_dict: its direction has shape {list(direction.shape)}, need [{N}]"
                )
        super().load_state_dict(state_dict)

    @watched_step
    def step(self, closure: Callable[[], Any]) -> float:  # type: ignore[override]
        """Line searches on the function of ``closure``; gives its value before them.

        The closure gives the loss and leaves its gradients, and is called with other parameters in
        the module. Where no decrease is found the parameters stay, which ``last_stats`` says.
        Raises ValueError where loss or gradient are not finite at the present parameters; nothing
        has changed then.
        """
        if not callable(closure):
            raise TypeError(f"closure: got {type(closure).__name__}, need a function")
        group, search = self.param_groups[0], self._checked()
        parameters = FlatParameters(self._parameters())
        if self._memory is None or not self._memory.fits(parameters):
            self._memory = DescentMemory(parameters)
        with torch.no_grad(), parameters.lock:
            descent = Descent(parameters, self._memory, closure, self._decays())
            start = descent.begin({} if group["restart"] else self._own_state)
            for k in range(group["line_searches"]):
                last = group["restart"] and k + 1 == group["line_searches"]
                if not descent.advance(search, group["slope_ratio"], turn=not last):
                    break
            following = {} if group["restart"] else descent.direction()
            self._ended(parameters, descent.theta if descent.moved else None, **following)
        self.last_stats = LineSearchStats(
            loss=start.value,
            loss_after=descent.value,
            gradient_norm=start.gradient_norm,
            line_searches=descent.searches,
            line_searches_failed=descent.failed,
            alpha=descent.alpha,
            evaluations=descent.evaluations,
            accepted=descent.moved,
            converged=not descent.moved,
            seconds=descent.seconds(),
            messages=() if descent.moved else (NO_DECREASE,),
        )
        return start.value

    def _parameters(self) -> list[nn.Parameter]:
        """Of all groups; those that are frozen stay out."""
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _decays(self) -> list[Decay]:
        """Which parts of the flat vector have a weight decay."""
        found, at = [], 0
        for group in self.param_groups:
            size = sum(p.numel() for p in group["params"] if p.requires_grad)
            if group["weight_decay"]:
                found.append(Decay(float(group["weight_decay"]), slice(at, at + size)))
            at += size
        return found

    def _checked(self) -> WolfeSearch:
        """The search of the present options, all of which are checked."""
        self._check_lr()
        first = self.param_groups[0]
        for group in self.param_groups:
            nonnegative("weight_decay", group["weight_decay"])
        search = WolfeSearch(**{name: first[name] for name in SEARCH_OPTIONS})
        count("line_searches", first["line_searches"])
        flag("restart", first["restart"])
        ratio = number("slope_ratio", first["slope_ratio"])
        if not 1 <= ratio < float("inf"):
            raise ValueError(f"slope_ratio: got {ratio}, need at least 1 and finite")
        for group in self.param_groups[1:]:
            for name in COMMON_OPTIONS:
                _check_common(name, group[name], first[name])
        return search


def _check_common(name: str, value: Any, first: Any) -> None:
    """Raise ValueError where a group has another value of an option of the whole."""
    if not isinstance(value, bool | int | float) or value != first:
        raise ValueError(
            f"{name}: got {value!r} in one group and {first!r} in another, need one value: a line "
            "search is of all parameters together"
        )


SEARCH_OPTIONS = (
    "sufficient_decrease", "curvature", "max_evaluations", "margin", "extrapolation"
)  # fmt: skip
COMMON_OPTIONS = ("line_searches", "restart", "slope_ratio", *SEARCH_OPTIONS)
OPTIONS = ("weight_decay", *COMMON_OPTIONS)
