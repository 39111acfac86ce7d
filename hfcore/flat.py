"""Flat vectors over a module's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hfcore.flat_memory import side_by_side


class FlatParameters:
    """The trainable parameters of a module as one vector, in the order of ``parameters()``.

    An iterable of parameters serves in the module's place. Tied parameters appear once. Nothing
    is cached: ``.to()`` and ``load_state_dict`` between two calls are seen.

    Raises ValueError without trainable parameters or with mixed dtypes or devices, TypeError for
    parameters that are not real floating point.
    """

    def __init__(self, module: nn.Module | Iterable[nn.Parameter]) -> None:
        named = [(name, p) for name, p in _named(module) if p.requires_grad]
        if not named:
            raise ValueError("model: has no trainable parameters")
        first = named[0][1]
        for name, p in named:
            if not p.is_floating_point():
                raise TypeError(f"model: parameter {name} is {p.dtype}, need real floating point")
            if p.dtype != first.dtype or p.device != first.device:
                raise ValueError(
                    f"model: parameter {name} is {p.dtype} on {p.device}, "
                    f"need {first.dtype} on {first.device} like {named[0][0]}"
                )
        self.names = [name for name, _ in named]
        self.tensors = [p for _, p in named]
        self.numel = sum(p.numel() for p in self.tensors)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    def read(self) -> Tensor:
        """A copy of the parameters, ``[N]``."""
        return torch.cat([p.detach().reshape(-1) for p in self.tensors])

    def write(self, theta: Tensor) -> None:
        """Copy ``theta [N]`` into the parameters."""
        with torch.no_grad():
            for p, part in zip(self.tensors, self.split(theta), strict=True):
                p.copy_(part)

    @contextmanager
    def holding(self, theta: Tensor) -> Iterator[None]:
        """The module computes with ``theta [N]`` inside, and with its own values again after.

        Storage is swapped, not written: a graph retained from before stays valid.
        """
        own = [p.data for p in self.tensors]
        try:
            self._hold(side_by_side(self.split(theta)))
            yield
        finally:
            self._hold(own)

    def _hold(self, values: list[Tensor]) -> None:
        for p, value in zip(self.tensors, values, strict=True):
            p.data = value
        torch.clear_autocast_cache()  # torch.autocast would go on with casts of the other values

    def split(self, theta: Tensor) -> list[Tensor]:
        """Views of ``theta [N]`` in the shapes of the parameters."""
        parts = theta.split([p.numel() for p in self.tensors])
        return [part.view(p.shape) for part, p in zip(parts, self.tensors, strict=True)]

    def slices(self) -> dict[str, slice]:
        """Where every parameter lies in a flat vector, by name."""
        found: dict[str, slice] = {}
        start = 0
        for name, p in zip(self.names, self.tensors, strict=True):
            found[name] = slice(start, start + p.numel())
            start += p.numel()
        return found

    def first_bad(self, theta: Tensor) -> str | None:
        """Name of the first parameter that holds NaN or Inf, or None."""
        for name, part in zip(self.names, self.split(theta), strict=True):
            if not bool(torch.isfinite(part).all()):
                return name
        return None


def _named(module: nn.Module | Iterable[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    if isinstance(module, nn.Module):
        return list(module.named_parameters())
    unique: dict[int, nn.Parameter] = {}
    for i, p in enumerate(module):
        if not isinstance(p, nn.Parameter):
            raise TypeError(f"model: item {i} is {type(p).__name__}, need torch.nn.Parameter")
        unique.setdefault(id(p), p)
    return [(str(i), p) for i, p in enumerate(unique.values())]
