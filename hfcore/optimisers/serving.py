"""Which objective serves the data of a step of hf.HessianFree."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from hfcore.autograd.backward import BackwardObjective
from hfcore.autograd.objective import ModuleObjective
from hfcore.checked_objective import checked_objective
from hfcore.distributed.group import Group
from hfcore.distributed.objective import DistributedObjective, distributed
from hfcore.distributed.ranks import unwrapped
from hfcore.flat import FlatParameters
from hfcore.nets.registry import why_altered
from hfcore.objective import Objective
from hfcore.objective_factory import objective_for
from hfcore.optimisers.options import Options
from hfcore.optimisers.roles import Roles, prepare_roles


class Serving:
    """The objectives of one optimiser: one of the caller's own, which serves everything; or that
    of the model and its loss for batches, and two for closures.

    ``model``: a module, or parameters alone. ``structural`` is a mapping from submodules or μ;
    ``options`` are the further keywords of :func:`hfcore.objective_for`; with a ``group`` the
    objectives are those of all its processes.
    """

    def __init__(
        self,
        model: nn.Module | list[nn.Parameter],
        loss: Any,
        own: Any,
        *,
        l2: float,
        structural: float | Mapping[str, Any],
        strategy: str,
        options: Mapping[str, Any],
        group: Group | None = None,
    ) -> None:
        model = unwrapped(model)
        parameters = FlatParameters(model)
        self._is_cut = parameters.are_cut
        on_cuda = parameters.device.type == "cuda"
        together = partial(distributed, group=group, on_cuda=on_cuda)
        self._own: Any = None if own is None else together(checked_objective(own))
        if self._own is not None:
            return
        named = structural if isinstance(structural, Mapping) else None
        closures = ModuleObjective(model, l2=l2, structural=named, strategy=strategy)
        self._module = closures.module
        self._closures = together(closures)
        self._backward = together(BackwardObjective(model, l2=l2))
        self._batches: Objective | None = None
        if loss is None:
            return
        if not isinstance(model, nn.Module):
            raise TypeError("model: got parameters alone, need a module to go with a loss")
        self._batches = together(
            objective_for(model, loss, l2=l2, structural=structural, strategy=strategy, **options)
        )

    def objective(self, data: Any, options: Options, strategy: str) -> Objective:
        """What serves this data, with these options.

        Raises TypeError for batches without a loss, ValueError for a net that was altered.
        """
        objective = self._of(data, options)
        objective.l2 = options.function.l2
        if isinstance(objective, DistributedObjective):
            objective.use_strategy(strategy)
            return objective
        takes_strategy = objective if self._own is None else self._own.given
        if hasattr(takes_strategy, "strategy"):
            takes_strategy.strategy = strategy
        return objective

    def _of(self, data: Any, options: Options) -> Objective:
        if self._own is not None:
            own: Objective = self._own
            return own
        if callable(data):  # differences need nothing but gradients
            differences = options.function.curvature == "hessian_fd"
            if self._is_cut and not differences:
                raise ValueError(
                    f"curvature: got {options.function.curvature!r} for parameters that are cut "
                    "over the processes, need 'hessian_fd'"
                )
            return self._backward if differences else self._closures
        if self._batches is None:
            raise TypeError(
                "step: batches need a module and a loss; without a loss give a closure that "
                "returns (loss, outputs)"
            )
        self._check_unaltered(self._batches)
        return self._batches

    def roles(self, objective: Objective, data: Any) -> Roles:
        """The data by role, prepared."""
        if self._own is None and callable(data):
            return Roles.of_one(data)
        return prepare_roles(objective, data, any_data=self._own is not None)

    def _check_unaltered(self, objective: Objective) -> None:
        """A fused objective reads parameters alone: refuse what it could not see."""
        model = self._module
        if model is None or isinstance(getattr(objective, "inner", objective), ModuleObjective):
            return
        reason = why_altered(model)
        if reason is not None:
            raise ValueError(
                f"model: was altered since the optimiser was built, {reason}; a new optimiser goes "
                "through autograd"
            )
