"""What optimisers share whose step is given a closure alone, and is of all parameters at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from hfcore.arguments import optimiser_state
from hfcore.flat import FlatParameters


class ClosureOptimizer(torch.optim.Optimizer):
    """Copies, states and the end of a step. ``lr`` is there for torch's schedulers to find: 1.

    Of a subclass, ``mark`` is an option that no other optimiser has, by which its states are known;
    ``kept`` are the attributes that copies and pickles take along, and ``returned`` is what its
    closures return where that is more than a loss, which ``hf.train`` does not give.
    """

    mark: ClassVar[str]
    kept: ClassVar[tuple[str, ...]] = ("last_stats",)
    returned: ClassVar[str | None] = None

    def __init__(self, params: Iterable[Any], options: dict[str, Any]) -> None:
        super().__init__(params, {**options, "lr": 1.0})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self.kept}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As torch's optimisers. Raises ValueError for the state of another kind."""
        optimiser_state(state_dict)
        if any(self.mark not in group for group in state_dict["param_groups"]):
            raise ValueError(
                f"state_dict: has no {self.mark}, need the state of a {type(self).__name__}"
            )
        super().load_state_dict(dict(state_dict))

    def _check_lr(self) -> None:
        """Raise ValueError where a scheduler has set a learning rate."""
        for group in self.param_groups:
            if group.get("lr", 1.0) != 1.0:
                raise ValueError(
                    f"lr: got {group['lr']}, need 1: {type(self).__name__} finds the length of "
                    "every step itself, so that there is nothing for a scheduler to set"
                )

    def _ended(self, parameters: FlatParameters, theta: Tensor | None, **state: Any) -> None:
        """A step has come to ``theta [N]``, None: nowhere; ``state`` is for the next one."""
        if theta is not None:
            with torch.no_grad():
                parameters.write(theta)
            torch.autograd.graph.increment_version(parameters.tensors)
        own = self._own_state
        own.update(state, steps=own.get("steps", 0) + 1)

    @property
    def _own_state(self) -> dict[str, Any]:
        """That of the whole optimiser, which is kept with the first parameter."""
        state: dict[str, Any] = self.state[self.param_groups[0]["params"][0]]
        return state


class OneGroup(ClosureOptimizer):
    """The same without options of groups: a matrix is of all parameters together."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises ValueError for a second group: the step's matrix is of all parameters together."""
        if self.param_groups:
            raise ValueError("params: got a second group, need all parameters in one")
        super().add_param_group(param_group)
