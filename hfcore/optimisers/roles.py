"""Which data plays which part in one step, and how a caller may give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hfcore.autograd.data import as_batch_list
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
    # With the batch itself, so that no other one can take its id meanwhile.
    prepared: dict[int, tuple[Batch, Any]] = {}

    def prepare(role: Sequence[Batch]) -> list[Any]:
        for batch in role:
            if id(batch) not in prepared:
                prepared[id(batch)] = batch, objective.prepare(batch)[0]
        return [prepared[id(batch)][1] for batch in role]

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
        if isinstance(data[0], Tensor) and len(data) not in (2, 3):
            raise TypeError(f"step: got a tuple of {len(data)}, need (x, y) or (x, y, mask)")
        batches = as_batch_list(data)
        return Batches(gradient=Batch(*data) if batches[0] is data else batches)
    raise TypeError(f"step: got {type(data).__name__}, need (x, y, mask), hf.Batches or a closure")


def first_length(data: Any) -> int:
    """T of the first gradient batch."""
    return int(_as_list("gradient", as_batches(data).gradient)[0].inputs.shape[0])


def _as_list(name: str, role: Sequence[Batch] | Batch) -> list[Batch]:
    """One batch, or several; the same object where it is a Batch already."""
    if not isinstance(role, Batch) and any(isinstance(part, Tensor) for part in role):
        raise TypeError(
            f"{name}: got a {type(role).__name__} of tensors, need an hf.Batch or a list of them"
        )
    batches = [role] if isinstance(role, Batch) else [_as_batch(b) for b in role]
    if not batches:
        raise ValueError(f"{name}: got no batch, need at least one")
    return batches


def _as_batch(batch: Any) -> Batch:
    return batch if isinstance(batch, Batch) else Batch(*batch)
