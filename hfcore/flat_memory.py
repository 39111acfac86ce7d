"""Tensors side by side in memory, each with a storage of its own.

One call of a kernel goes through all of them, and nobody else can tell: ``torch.save``,
``safetensors``, ``share_memory_`` and ``deepcopy`` see tensors that share nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors

# Living allocations by the address they begin at. What lies within one is held by it, so that
# neighbours there are neighbours for good; neighbours by chance are of different allocations.
_allocations: WeakValueDictionary[int, Any] = WeakValueDictionary()

ORDINARY = (Tensor, nn.Parameter)

# References to the storage of a tensor that nobody else knows, as torch counts them: the tensor's,
# and that of asking.
UNSEEN = 2


class _DeviceBytes:
    """Memory of a CUDA tensor, or a part of it, as ``__cuda_array_interface__`` shows it."""

    def __init__(self, flat: Tensor, whole: _DeviceBytes | None = None) -> None:
        self.whole = whole  # an allocation lives as long as a part of it
        self.flat = flat
        self.__cuda_array_interface__ = {
            "shape": (flat.numel(),),
            "typestr": "|u1",
            "data": (flat.data_ptr(), False),
            "version": 2,
        }

    @property
    def nbytes(self) -> int:
        return self.flat.numel()


def side_by_side(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous copies of tensors ``[…]`` of one dtype and device, one behind the other in memory.

    Each has a storage of its own, which keeps the whole allocation alive. Without autograd.
    """
    first = tensors[0]
    sizes = [t.numel() * t.element_size() for t in tensors]
    flat = torch.empty(sum(sizes), dtype=torch.uint8, device=first.device)
    owner: Any = flat.numpy() if first.device.type == "cpu" else _DeviceBytes(flat)
    _allocations[flat.data_ptr()] = owner
    copies, at = [], 0
    for t, size in zip(tensors, sizes, strict=True):
        part = _alias(owner, flat, at, size).view(first.dtype).view(t.shape)
        copies.append(part.copy_(t.detach()))
        at += size
    return copies


def _alias(owner: Any, flat: Tensor, at: int, size: int) -> Tensor:
    """Bytes of the allocation as a tensor whose storage begins and ends with them."""
    if isinstance(owner, _DeviceBytes):
        return torch.as_tensor(_DeviceBytes(flat[at : at + size], owner), device=flat.device)
    return torch.from_numpy(owner[at : at + size])


def joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """All as one view ``[1,N]``, where they are contiguous and lie side by side; else None."""
    first = tensors[0]
    if not first.is_contiguous() or first.is_neg():
        return None
    if not all(adjacent(a, b) for a, b in pairwise(tensors)):
        return None
    N = sum(t.numel() for t in tensors)
    if all(_same_storage(first, t) for t in tensors[1:]):
        return first.detach().as_strided((1, N), (N, 1), first.storage_offset())
    found = _allocation(first)
    assert found is not None  # adjacent in different storages
    start, owner = found
    at, size = first.data_ptr() - start, N * first.element_size()
    if isinstance(owner, _DeviceBytes):
        part = owner.flat[at : at + size]
    else:
        part = torch.from_numpy(owner[at : at + size])
    return part.view(first.dtype).view(1, N)


def adjacent(a: Tensor, b: Tensor) -> bool:
    """Whether contiguous ``b […]`` begins where contiguous ``a […]`` ends, in one allocation."""
    return (
        a.dtype == b.dtype
        and a.device == b.device
        and b.data_ptr() == a.data_ptr() + a.numel() * a.element_size()
        and a.is_contiguous()
        and b.is_contiguous()
        and not (a.is_neg() or b.is_neg())
        and (_same_storage(a, b) or _same_allocation(a, b))
    )


def cut(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``flat [N]`` or ``[1,N]`` in these shapes."""
    sizes, vector = [t.numel() for t in like], flat.view(-1)
    # Torch's own loop takes a third of the time; it gives what is empty another shape, and may ask
    # tensors of other classes, such as parts of what lies in several processes.
    ordinary = all(type(t) in ORDINARY for t in like)
    if ordinary and all(sizes) and sum(sizes) == len(vector):
        return list(_unflatten_dense_tensors(vector, like))
    return [part.view(t.shape) for part, t in zip(vector.split(sizes), like, strict=True)]


def copied_if_odd(part: Tensor) -> Tensor:
    """A part ``[…]`` of a flat vector that a model may read, not write.

    A copy where ``torch.view_as_complex`` refuses the view: pairs of numbers that begin at an odd
    place or have gaps.
    """
    even = part.numel() % 2 or (part.storage_offset() % 2 == 0 and part.is_contiguous())
    return part if even else part.clone()


def seen_elsewhere(t: Tensor) -> bool:
    """Whether views, arrays or graphs hold the memory of ``t […]``; moving it would part them.

    False where torch does not say.
    """
    count = getattr(torch._C, "_storage_Use_Count", None)
    storage = t.untyped_storage()
    return count is not None and bool(count(storage._cdata) > UNSEEN)


def _same_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _same_allocation(a: Tensor, b: Tensor) -> bool:
    found = _allocation(a)
    if found is None:
        return False
    start, owner = found
    return bool(b.data_ptr() + b.numel() * b.element_size() <= start + owner.nbytes)


def _allocation(t: Tensor) -> tuple[int, Any] | None:
    """The living allocation that holds the memory of ``t``, with its first address."""
    at = t.data_ptr()
    for start, owner in _living():
        if start <= at < start + owner.nbytes:
            return start, owner
    return None


def _living() -> Iterator[tuple[int, Any]]:
    yield from list(_allocations.items())
