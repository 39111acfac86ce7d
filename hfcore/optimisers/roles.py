"""Which data plays which part in one step, and how a caller may give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from hfcore.batches import Batch, Batches, check_unambiguous, labelled
from hfcore.objective import Objective


@dataclass
class Roles:
    """Prepared data of one step by role."""

    gradient: Any
    curvature: Any
    backtracking: Any
    line_search: Any
    rho: Any

    @classmethod
    def of_one(cls, data: Any) -> Roles:
        """The same data in every role."""
        return cls(data, data, data, data, data)


def same_data(a: Any, b: Any) -> bool:
    """Whether two roles have one and the same data, be it in two lists of the same parts."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
    return a is b


def prepare_roles(objective: Objective, data: Any, *, any_data: bool = False) -> Roles:
    """What ``step`` was given, prepared, by role.

    Curvature, backtracking and line search default to the first, second and third gradient batch,
    ρ to the curvature's, as in the original RNN release; the 2011 paper leaves this open. With
    ``any_data`` what is no batches goes to the objective as it is, and serves every role. Where the
    objective makes a list of one part of every batch, each batch is prepared once, however many
    roles it plays.
    """
    if not any_data:
        data = [*map(labelled, data)] if isinstance(data, list) else labelled(data)
    batches = as_batches(data)
    if batches is None:
        if not any_data:
            if isinstance(data, tuple) and any(isinstance(x, np.ndarray) for x in data):
                raise TypeError(
                    "step: got a tuple with a numpy.ndarray, need torch tensors (torch.from_numpy "
                    "makes one)"
                )
            what = type(data).__name__
            raise TypeError(f"step: got {what}, need (x, y, mask), hf.Batches or a closure")
        whole = objective.prepare(data)
        return Roles.of_one(whole)
    gradient = _as_list("gradient", batches.gradient)

    def role(name: str, given: Sequence[Batch] | Batch | None, index: int) -> list[Batch]:
        if given is None:
            return [gradient[min(index, len(gradient) - 1)]]
        return _as_list(name, given)

    prepare = _Preparation(objective)
    curvature = role("curvature", batches.curvature, 0)
    return Roles(
        prepare(gradient),
        prepare(curvature),
        prepare(role("backtracking", batches.backtracking, 1)),
        prepare(role("line_search", batches.line_search, 2)),
        prepare(curvature if batches.rho is None else _as_list("rho", batches.rho)),
    )


class _Preparation:
    """Prepares the batches of several roles, each once where the objective allows it."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        # With the batches themselves, so that no other ones can take their ids meanwhile.
        self._prepared: dict[tuple[int, ...], tuple[list[Batch], Any]] = {}

    def __call__(self, role: list[Batch]) -> Any:
        if len(role) == 1:
            return self._once(role)
        parts = [self._once(role[:1])]
        if not _is_one_part(parts[0]):
            return self._once(role)
        parts += [self._once([batch]) for batch in role[1:]]
        return [part for one in parts for part in one]

    def _once(self, role: list[Batch]) -> Any:
        key = tuple(map(id, role))
        if key not in self._prepared:
            given = role[0] if len(role) == 1 else role
            self._prepared[key] = role, self._objective.prepare(given)
        return self._prepared[key][1]


def _is_one_part(prepared: Any) -> bool:
    return isinstance(prepared, list) and len(prepared) == 1


def as_batches(data: Any) -> Batches | None:
    """``(x, y)``, ``(x, y, mask)``, a :class:`Batch`, a list of them, or :class:`Batches`; None for
    anything else.

    Raises TypeError for what may be one batch of structured inputs and targets or several batches.
    """
    if isinstance(data, Batches):
        return data
    if isinstance(data, Batch):
        return Batches(gradient=data)
    if not isinstance(data, tuple | list) or not data:
        return None
    if isinstance(data[0], Tensor | PackedSequence):
        if len(data) not in (2, 3):
            raise TypeError(f"step: got a tuple of {len(data)}, need (x, y) or (x, y, mask)")
        return Batches(gradient=Batch(*data))
    if len(data) in (2, 3) and isinstance(data[1], Tensor):
        return Batches(gradient=Batch(*data))  # inputs are a tuple, list or dict of tensors
    if not all(isinstance(part, tuple | list) for part in data):
        return None
    check_unambiguous("step", data)
    return Batches(gradient=list(data))


def _as_list(name: str, role: Sequence[Batch] | Batch) -> list[Batch]:
    """One batch, or several; the same object where it is a Batch already."""
    if not isinstance(role, Batch) and any(isinstance(part, Tensor) for part in role):
        raise TypeError(
            f"{name}: got a {type(role).__name__} of tensors, need an hf.Batch or a list of them"
        )
    check_unambiguous(name, role)
    batches = [role] if isinstance(role, Batch) else [_as_batch(b) for b in role]
    if not batches:
        raise ValueError(f"{name}: got no batch, need at least one")
    return batches


def _as_batch(batch: Any) -> Batch:
    return batch if isinstance(batch, Batch) else Batch(*batch)
