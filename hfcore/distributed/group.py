"""What an optimiser or operator is told of the processes it works with, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hfcore.arguments import choice
from hfcore.distributed.plan import CASES, Cases
from hfcore.distributed.ranks import Ranks, ranks_of
from hfcore.distributed.sums import REDUCTIONS, Reduction


@dataclass(frozen=True)
class Group:
    """Processes that work on one net, how their sums are made, and whose cases are whose."""

    ranks: Ranks
    reduction: Reduction
    cases: Cases = "shared"

    @property
    def several(self) -> bool:
        return self.ranks.size > 1


def group_of(
    what: str,
    process_group: Any,
    reduction: str | None,
    *,
    cases: str = "shared",
    local: bool = False,
    model: Any = None,
    serves_parts: bool = False,
) -> Group | None:
    """The group of ``what``, None for this process alone.

    ``reduction`` None is ``"exact"`` on gloo and ``"fast"`` on NCCL. Given without a group it is
    one process whose sums are made as if there were several. ``serves_parts``: see
    :func:`ranks_of`. Raises TypeError or ValueError naming
    the argument.
    """
    ranks = ranks_of(what, process_group, local, model, serves_parts=serves_parts)
    choice("cases", cases, CASES)
    if reduction is not None:
        choice("reduction", reduction, REDUCTIONS)
    if ranks is None:
        if cases != "shared":
            raise ValueError(f"cases: got {cases!r} without a process_group, need 'shared'")
        if reduction is None:
            return None
        ranks = Ranks()
    default = "fast" if ranks.backend == "nccl" else "exact"
    return Group(ranks, reduction or default, cases)  # type: ignore[arg-type]
