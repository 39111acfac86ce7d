"""Values whose arrays lie in places that stay, so that what was recorded on them can be replayed.

A recorded launch knows addresses and numbers. A value that is made anew in every step, such as the
states of a forward pass, is copied over the one before: where all but the elements is equal, a
replay does what the launches would do now.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import is_dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from hfcore.bindings.checks import span

T = TypeVar("T")

# What is compared as it is.
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


class NoImage(TypeError):
    """A value holds something that cannot be copied and compared; the message says what."""


class Memory(NamedTuple):
    """The part of a storage in which arrays of a value lie: ``size`` bytes from ``start`` on."""

    storage: torch.UntypedStorage
    device: torch.device
    start: int
    size: int

    def elements(self) -> Tensor:
        """uint8 ``[size]``."""
        none = torch.empty(0, dtype=torch.uint8, device=self.device)
        return none.set_(self.storage, self.start - self.storage.data_ptr(), (self.size,), (1,))


class Layout(NamedTuple):
    """What a value is but for the elements of its arrays, and where these are.

    ``key`` is equal for values of the same types, numbers, shapes, strides and dtypes whose arrays
    share memory in the same way. ``places`` has for every array the index of its
    ``memory`` and its offset there, in bytes; None for one without elements.
    """

    key: Hashable
    memory: list[Memory]
    places: list[tuple[int, int] | None]

    @property
    def nbytes(self) -> int:
        """Bytes of an image."""
        return sum(m.size for m in self.memory)


def layout_of(value: Any) -> Layout:
    """The layout of tensors, numbers, strings and None in tuples, lists, dictionaries, dataclasses.

    Raises :class:`NoImage` for anything else in ``value``, also for a tensor that autograd tracks.
    """
    tensors: list[Tensor] = []
    tokens: list[Hashable] = []

    def noted(t: Tensor) -> Tensor:
        tensors.append(t)
        return t

    _rebuilt(value, noted, tokens)
    ends: dict[Hashable, tuple[Tensor, int, int]] = {}
    for t in tensors:
        if t.numel():
            (start, end), which = span(t), _storage(t)
            one, first, last = ends.get(which, (t, start, end))
            ends[which] = one, min(first, start), max(last, end)
    memory = [Memory(t.untyped_storage(), t.device, a, b - a) for t, a, b in ends.values()]
    order = {which: i for i, which in enumerate(ends)}
    places: list[tuple[int, int] | None] = []
    for t in tensors:
        i = order[_storage(t)] if t.numel() else -1
        at = t.data_ptr() - memory[i].start if t.numel() else 0
        if at % t.element_size():
            raise NoImage("a tensor between the elements of another")
        places.append((i, at) if t.numel() else None)
    arrays = [
        (t.dtype, t.device, t.shape, t.stride(), place)
        for t, place in zip(tensors, places, strict=True)
    ]
    return Layout((*tokens, *arrays), memory, places)


class Image(Generic[T]):
    """A copy of a value in memory of its own, which takes up later values of the same layout.

    ``value`` is the copy, ``key`` that of its layout.
    """

    def __init__(self, value: T, layout: Layout) -> None:
        self.key = layout.key
        # Aligned as new tensors are, whatever the value's own alignment is: kernels go by it.
        self._memory = [
            torch.empty(m.size, dtype=torch.uint8, device=m.device) for m in layout.memory
        ]
        places = iter(layout.places)

        def placed(t: Tensor) -> Tensor:
            place = next(places)
            if place is None:
                return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
            room, none = self._memory[place[0]], torch.empty(0, dtype=t.dtype, device=t.device)
            at = place[1] // t.element_size()
            return none.set_(room.untyped_storage(), at, t.shape, t.stride())

        self.value: T = _rebuilt(value, placed, [])
        self.take(layout)

    def take(self, layout: Layout) -> None:
        """Copy the elements of a value of this ``layout``, whose key is the image's."""
        for room, memory in zip(self._memory, layout.memory, strict=True):
            room.copy_(memory.elements())

    @property
    def is_intact(self) -> bool:
        """Whether nobody has put anything into the containers of the copy, such as what was made
        of arrays that hold other elements by now."""
        try:
            return layout_of(self.value).key == self.key
        except NoImage:
            return False


def _storage(t: Tensor) -> Hashable:
    """Which memory a tensor is in."""
    storage = t.untyped_storage()
    return storage.data_ptr(), storage.nbytes(), t.device


def _rebuilt(value: Any, place: Callable[[Tensor], Tensor], tokens: list[Hashable]) -> Any:
    """``value`` with each tensor as ``place`` gives it, in containers of its own.

    ``tokens`` get all else that it is.
    """
    kind = type(value)
    if kind is Tensor:
        if value.layout != torch.strided or value.requires_grad or value.is_neg():
            raise NoImage("a tensor that is sparse, negated or tracked by autograd")
        tokens.append(Tensor)
        return place(value)
    if kind in PLAIN:
        tokens.append((kind, value))
        return value
    if isinstance(value, list | tuple):
        tokens.append((kind, len(value)))
        items = [_rebuilt(item, place, tokens) for item in value]
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    if kind is dict:
        tokens.append((kind, tuple(value)))
        return {name: _rebuilt(item, place, tokens) for name, item in value.items()}
    if is_dataclass(kind) and hasattr(value, "__dict__"):
        tokens.append((kind, tuple(vars(value))))
        made = object.__new__(kind)
        for name, item in vars(value).items():
            made.__dict__[name] = _rebuilt(item, place, tokens)
        return made
    raise NoImage(kind.__name__)
