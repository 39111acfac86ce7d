"""An optimiser among the processes that train one net: what they send at first, and compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from hfcore.distributed.agreement import (
    broadcast_optional,
    check_checksums,
    check_same,
    checksum,
)
from hfcore.distributed.group import Group
from hfcore.distributed.ranks import check_one_process
from hfcore.flat import FlatParameters

T = TypeVar("T")

# Of a parameter group: what moves from step to step.
MOVING = ("damping", "trust_radius")
NEED = {
    "parameters": "the same net on every rank: nothing but the optimiser may move it",
    "data": "the same data on every rank, drawn from one seed, or cases='own'",
    "CG's start": "the state of one checkpoint on every rank",
    "state": "the same options and state (λ, steps taken) on every rank",
}


class Together:
    """The ``group`` of an optimiser, None for this process alone; ``local``: on purpose.

    A copy works in the same group.
    """

    def __init__(self, group: Group | None, *, local: bool) -> None:
        self.group = group
        self._local = local
        self._begun = False

    def __getstate__(self) -> dict[str, Any]:
        # A group belongs to its process: whoever reads this from a file works alone.
        return {"_local": self._local}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(None, local=state["_local"])  # type: ignore[misc]

    def __deepcopy__(self, memo: object) -> Together:
        return Together(self.group, local=self._local)

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return self.group is not None and self.group.several

    def recorded(self) -> dict[str, Any]:
        """What determines the bits of a step, for the options that a checkpoint holds."""
        if self.group is None:
            return {}
        return {"reduction": self.group.reduction, "cases": self.group.cases}

    def work(self, work: Callable[[], T]) -> T:
        """``work()``, whose error is one on every rank."""
        return work() if self.group is None else self.group.ranks.together(work)

    def begin(
        self, parameters: FlatParameters, state: dict[str, Any], group: dict[str, Any]
    ) -> bool:
        """Before a step. At the first, options are compared, and the parameters and state of the
        first rank sent to all; gives whether that was done.

        Raises ValueError naming what differs, or where several processes run on their own.
        """
        if self.group is None:
            if not self._local:
                check_one_process("hf.HessianFree")
            return False
        if self._begun or not self.several:
            return False
        ranks = self.group.ranks
        check_same(ranks, _facts(parameters, group))
        theta = parameters.read()
        before = checksum(theta)
        if checksum(ranks.broadcast(theta)) != before:
            parameters.write(theta)
        for buffer in parameters.buffers():
            ranks.broadcast(buffer)
        self._send(state, group, theta)
        self._begun = True
        return True

    def _send(self, state: dict[str, Any], group: dict[str, Any], theta: Tensor) -> None:
        assert self.group is not None
        ranks = self.group.ranks
        moving = {key: group[key] for key in MOVING}
        first = json.loads(ranks.sent(json.dumps([moving, _numbers(state)]).encode()))
        last = broadcast_optional(ranks, state.get("cg_last"), theta)
        group.update(first[0])
        state.clear()
        state.update(first[1])
        if last is not None:
            state["cg_last"] = last

    def compare(
        self,
        theta: Tensor,
        state: Mapping[str, Any],
        group: Mapping[str, Any],
        data: Any,
    ) -> None:
        """Raise ValueError on every rank where ``theta [N]``, state, options or shared data are
        others than those of the first, naming what and the rank."""
        if self.group is None or not self.several:
            return
        named = {
            "parameters": checksum(theta),
            "state": checksum([*_options(group), _numbers(state)]),
            "CG's start": checksum(state.get("cg_last")),
        }
        if self.group.cases == "shared" and not callable(data):
            named["data"] = checksum(data)
        check_checksums(self.group.ranks, named, NEED)


def _numbers(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: state[key] for key in sorted(state) if key != "cg_last"}


def _options(group: Mapping[str, Any]) -> list[str]:
    """Options by name, as text that is the same in every process."""
    return [f"{key}={_shown(group[key])}" for key in sorted(group) if key != "params"]


def _shown(value: Any) -> str:
    plain = value is None or isinstance(value, bool | int | float | str | tuple | list | dict)
    return repr(value) if plain else type(value).__name__


def _facts(parameters: FlatParameters, group: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same before a first step; what moves is sent."""
    options = {key: _shown(value) for key, value in group.items() if key not in ("params", *MOVING)}
    shapes = {
        f"model: parameter {name}": f"{list(p.shape)} {p.dtype}"
        for name, p in zip(parameters.names, parameters.tensors, strict=True)
    }
    return {**shapes, **options}
