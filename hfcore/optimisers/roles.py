"""Which data plays which part in one step, and how a caller may give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hfcore.batches import Batch, Batches
from hfcore.objective import Objective


@dataclass
class Roles:
    """Prepared data of one step by role."""

    gradient: Any
    curvature: Any
    backtracking: Any
    line_search: Any


def prepare_roles(objective: Objective, batches: Batches) -> Roles:
    """Prepare each batch once, however many roles it plays.

    Curvature, backtracking and line search default to the first, second and third gradient batch,
    as in the original RNN release; the 2011 paper leaves this open.
    """
    prepared: dict[int, Any] = {}

    def prepare(role: Sequence[Batch]) -> list[Any]:
        for batch in role:
            if id(batch) not in prepared:
                prepared[id(batch)] = objective.prepare(batch)[0]
        return [prepared[id(batch)] for batch in role]

    gradient = _as_list("gradient", batches.gradient)

    def default(index: int) -> list[Batch]:
        return [gradient[min(index, len(gradient) - 1)]]

    def role(name: str, given: Sequence[Batch] | Batch | None, index: int) -> list[Any]:
        return prepare(default(index) if given is None else _as_list(name, given))

    return Roles(
        prepare(gradient),
        role("curvature", batches.curvature, 0),
        role("backtracking", batches.backtracking, 1),
        role("line_search", batches.line_search, 2),
    )


def as_batches(data: Any) -> Batches:
    """``(x, y)``, ``(x, y, mask)``, a :class:`Batch`, a list of them, or :class:`Batches`."""
    if isinstance(data, Batches):
        return data
    if isinstance(data, Batch):
        return Batches(gradient=data)
    if isinstance(data, tuple | list) and len(data) > 0:
        if isinstance(data[0], Tensor):
            if len(data) not in (2, 3):
                raise TypeError(f"step: got a tuple of {len(data)}, need (x, y) or (x, y, mask)")
            return Batches(gradient=Batch(*data))
        return Batches(gradient=list(data))
    raise TypeError(f"step: got {type(data).__name__}, need (x, y, mask), hf.Batches or a closure")


def first_length(data: Any) -> int:
    """T of the first gradient batch."""
    gradient = as_batches(data).gradient
    first = gradient if isinstance(gradient, Batch) else gradient[0]
    return int(first[0].shape[0])


def _as_list(name: str, role: Sequence[Batch] | Batch) -> list[Batch]:
    batches = [role] if isinstance(role, Batch) else [Batch(*b) for b in role]
    if not batches:
        raise ValueError(f"{name}: got no batch, need at least one")
    return batches
