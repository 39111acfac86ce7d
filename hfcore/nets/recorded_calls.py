"""What a module computes, as the calls of torch that its forward makes: two can be compared.

Sizes, types and branches that a forward asks a tensor for are calls, too; what it reads elsewhere
(attributes, globals) is unseen here, and looked at in :mod:`hfcore.nets.recognition`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

# Names of calls that give back what they are given, where they drop nothing.
DROPOUT = ("torch.nn.functional.dropout", "torch.dropout")
# Arguments that are alike where they are equal; others, apart from tensors, are like nothing.
PLAIN = (
    bool, int, float, str, EllipsisType,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip


class Call(NamedTuple):
    """One call: its name, its arguments with tensors by name, and the modes it was made in."""

    name: str
    args: Any
    modes: tuple[bool, ...]


@dataclass
class Calls:
    """The calls of a forward, in their order, and the name of the tensor it returned, or None."""

    made: list[Call] = field(default_factory=list)
    returned: object = None

    def unlike(self, other: Calls) -> str | None:
        """The first call that ``other`` does not make there, by name; None where they are alike."""
        for mine, theirs in zip(self.made, other.made, strict=False):
            if mine != theirs:
                return mine.name
        if len(self.made) > len(other.made):
            return self.made[len(other.made)].name
        return None

    def begin_like(self, other: Calls) -> bool:
        """Whether the first calls are those that ``other`` makes."""
        return self.made[: len(other.made)] == other.made

    def are(self, other: Calls) -> bool:
        """Whether both compute the same of the same tensors, and return it."""
        same = self.made == other.made and self.returned == other.returned
        return same and self.returned is not None


def calls_of(function: Callable[[Any], Any], x: Any, named: Iterable[nn.Parameter]) -> Calls:
    """The calls of ``function(x)``, x a tensor ``[…]`` or a tuple of them; tensors of ``named``
    have one name in all records.

    The function runs once, with gradients enabled and torch's random numbers put back after.
    """
    given = _tensors(x)
    recorder = _Recorder([*given, *named])
    devices = [given[0].device] if given[0].device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad(), recorder:
        result = function(x)
    recorder.calls.returned = recorder.name(result) if isinstance(result, Tensor) else None
    return recorder.calls


class _Recorder(TorchFunctionMode):
    def __init__(self, named: Sequence[Tensor]) -> None:
        super().__init__()
        self.calls = Calls()
        self._kept: list[Tensor] = []  # an id is that of one tensor as long as this lives
        self._names: dict[int, object] = {}
        for i, t in enumerate(named):
            self._give(t, ("given", i))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = resolve_name(func) or getattr(func, "__name__", repr(func))
        seen = self._seen((args, sorted(kwargs.items())))
        result = func(*args, **kwargs)
        if name in DROPOUT and _drops_nothing(*args, **kwargs):
            self._give(result, self.name(args[0]))
            return result
        autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast
        number = len(self.calls.made)
        self.calls.made.append(Call(name, seen, modes))
        for i, t in enumerate(_tensors(result)):
            self._give(t, ("made", number, i))
        return result

    def name(self, t: Tensor) -> object:
        """Of a tensor; one that came from elsewhere is like no other."""
        return self._names.get(id(t)) or object()

    def _give(self, t: Tensor, name: object) -> None:
        self._kept.append(t)
        self._names[id(t)] = name

    def _seen(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.name(value)
        if isinstance(value, list | tuple):
            return tuple(map(self._seen, value))
        if isinstance(value, slice):
            return "slice", *map(self._seen, (value.start, value.stop, value.step))
        return value if value is None or isinstance(value, PLAIN) else object()


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [t for item in result for t in _tensors(item)]
    return []


def _drops_nothing(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> bool:
    return not training or p == 0
