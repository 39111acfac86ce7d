"""Parameters of which each process holds a part: those of ``torch.distributed.fsdp.fully_shard``.

They are DTensors with the shape of the whole. Every process makes the whole when a vector over the
parameters is read, and keeps its own part when one is written: a vector ``[N]`` is the same in all
processes, and so is all that is computed of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def is_cut(t: Any) -> bool:
    """Whether a tensor is a part of one that lies in several processes."""
    return hasattr(t, "full_tensor") and hasattr(t, "placements")


def whole(t: Tensor) -> Tensor:
    """All of ``t […]``, asked of the other processes where it is cut; they ask at the same time."""
    if not is_cut(t):
        return t
    found: Tensor = t.full_tensor()  # type: ignore[attr-defined]
    return found


def write(p: Tensor, value: Tensor) -> None:
    """Copy ``value […]`` into ``p […]``, its part where ``p`` is cut. Without autograd."""
    if is_cut(p):
        from torch.distributed.tensor import distribute_tensor

        given: Any = p
        mesh, placements = given.device_mesh, given.placements
        value = distribute_tensor(value, mesh, placements, src_data_rank=None)
    p.copy_(value)


def drop_wholes(modules: Iterable[nn.Module]) -> None:
    """Modules cut by ``fully_shard`` may keep the whole from a forward pass to the next: of the
    values before."""
    for module in modules:
        reshard = getattr(module, "reshard", None)
        if callable(reshard) and hasattr(module, "unshard"):
            reshard()
