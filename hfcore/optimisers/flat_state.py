"""Parameters and their velocities in flat memory, so that one call updates all of them.

Flat memory is never relied on: ``.to()``, ``load_state_dict`` and ``deepcopy`` may break it up.
Before every use neighbours in memory are joined to pieces; what lies alone is a piece of its own.
The kernels give an element the same bits wherever it stands, so only the speed depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass
class Piece:
    """Parameters that one call updates: ``theta``, ``velocity`` ``[1,N]``.

    ``copied``: theta is a copy, of a parameter that is not contiguous in memory.
    """

    parameters: list[Tensor]
    theta: Tensor
    velocity: Tensor
    copied: bool = False

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of ``flat [1,N]`` in the shapes of the parameters."""
        parts = flat.view(-1).split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def gradient(self) -> Tensor:
        """The parameters' gradients, ``[1,N]``; a copy unless they lie side by side."""
        return side_by_side([p.grad for p in self.parameters if p.grad is not None])

    def wrote(self) -> None:
        """theta was written: brings a copy back, and ends autograd graphs that hold old values."""
        if self.copied:
            (p,) = self.parameters
            p.detach().copy_(self.theta.view(p.shape))
        torch.autograd.graph.increment_version(self.parameters)


def flatten(parameters: Sequence[Tensor], velocities: dict[Tensor, Tensor]) -> None:
    """Move parameters and velocities of one dtype and device side by side, in this order.

    ``velocities`` is brought to the parameters' dtype and device; a new one is zero. Left where
    they are: parameters that are not contiguous, that share memory with another, or that other
    processes share. Storage is swapped, as ``.to()`` does it.
    """
    for p in parameters:
        if p not in velocities:
            velocities[p] = torch.zeros(p.shape, dtype=p.dtype, device=p.device)
        elif velocities[p].dtype != p.dtype or velocities[p].device != p.device:
            velocities[p] = velocities[p].to(p.device, p.dtype)
    in_place = [p.data for p in parameters], [velocities[p] for p in parameters]
    if all(tensors and _joined(tensors) is not None for tensors in in_place):
        return
    for bucket in _buckets(parameters):
        data, state = [p.data for p in bucket], [velocities[p] for p in bucket]
        if _joined(data) is None:
            flat = torch.cat([t.reshape(-1) for t in data])
            for p, part in zip(bucket, _split(flat, bucket), strict=True):
                p.data = part
        if _joined(state) is None:
            flat = torch.cat([t.reshape(-1) for t in state])
            velocities.update(zip(bucket, _split(flat, bucket), strict=True))


def pieces(parameters: Iterable[Tensor], velocities: dict[Tensor, Tensor]) -> list[Piece]:
    """The parameters in as few pieces as their places in memory allow."""
    found: list[Piece] = []
    run: list[Tensor] = []

    def close() -> None:
        if not run:
            return
        theta = _joined([p.data for p in run])
        velocity = _joined([velocities[p] for p in run])
        copied = theta is None  # only a parameter by itself
        if theta is None:
            theta = run[0].detach().reshape(1, -1).clone()
        if velocity is None:
            velocities[run[0]] = velocities[run[0]].contiguous()
            velocity = velocities[run[0]].view(1, -1)
        found.append(Piece(list(run), theta, velocity, copied))
        run.clear()

    for p in parameters:
        if p.numel() == 0:
            continue
        if run and not (
            _adjacent(run[-1].data, p.data) and _adjacent(velocities[run[-1]], velocities[p])
        ):
            close()
        run.append(p)
    close()
    return found


def side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    """All as one ``[1,N]``: a view where they lie side by side in memory, else a copy."""
    joined = _joined(tensors)
    return torch.cat([t.reshape(-1) for t in tensors])[None] if joined is None else joined


def _buckets(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Those that may move, by dtype and device."""
    shared = _sharing_memory(parameters)
    buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for p in parameters:
        among_processes = p.device.type == "cpu" and p.is_shared()
        if p.is_contiguous() and p.numel() > 0 and p not in shared and not among_processes:
            buckets.setdefault((p.dtype, p.device), []).append(p)
    return list(buckets.values())


def _sharing_memory(parameters: Sequence[Tensor]) -> set[Tensor]:
    """Parameters whose bytes are also another's; to move one would untie them."""
    extents = []
    for p in parameters:
        if p.numel() > 0:
            last = sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True))
            start = p.data_ptr()
            extents.append((start, start + (last + 1) * p.element_size(), p))
    extents.sort(key=lambda extent: extent[:2])
    shared: set[Tensor] = set()
    reach, owner = -1, None
    for start, end, p in extents:
        if start < reach and owner is not None:
            shared.update((p, owner))
        if end > reach:
            reach, owner = end, p
    return shared


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([p.numel() for p in like])
    return [part.view(p.shape) for part, p in zip(parts, like, strict=True)]


def _joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """All as one view ``[1,N]``, if they are contiguous and lie side by side in one storage."""
    first = tensors[0]
    if not first.is_contiguous() or first.is_neg():
        return None
    if not all(_adjacent(a, b) for a, b in pairwise(tensors)):
        return None
    N = sum(t.numel() for t in tensors)
    return first.detach().as_strided((1, N), (N, 1), first.storage_offset())


def _adjacent(a: Tensor, b: Tensor) -> bool:
    """Whether contiguous ``b`` begins where contiguous ``a`` ends, in the same storage."""
    return (
        a.dtype == b.dtype
        and a.device == b.device
        and b.data_ptr() == a.data_ptr() + a.numel() * a.element_size()
        and a.is_contiguous()
        and b.is_contiguous()
        and not (a.is_neg() or b.is_neg())
        and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    )
