"""The submodules and parameters of a module, in one walk that makes no names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn


@dataclass
class Layout:
    """All submodules, each once, as ``module.modules()`` has them, and what tells a change in them.

    ``names`` are those of children and parameters by the way, ``parameters`` all that are
    registered, None where a place is empty.
    """

    modules: list[nn.Module] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    parameters: list[nn.Parameter | None] = field(default_factory=list)

    def is_like(self, other: Layout) -> bool:
        """Whether the same modules hold the same parameters by the same names."""
        return (
            self.names == other.names
            and _ids(self.modules) == _ids(other.modules)
            and _ids(self.parameters) == _ids(other.parameters)
        )

    def trained(self) -> list[bool]:
        """Which of the parameters are trainable."""
        return [p is not None and p.requires_grad for p in self.parameters]


def layout_of(module: nn.Module) -> Layout:
    """The present layout of a module."""
    layout = Layout()
    _walk(module, layout, set())
    return layout


def _walk(module: nn.Module, layout: Layout, seen: set[nn.Module]) -> None:
    seen.add(module)
    layout.modules.append(module)
    own = module._parameters
    if own:
        layout.names.extend(own.keys())  # a scripted module's are no dict to iterate over
        layout.parameters.extend(own.values())
    for name, child in module._modules.items():
        layout.names.append(name)
        if child is not None and child not in seen:
            _walk(child, layout, seen)


def _ids(items: Sequence[object]) -> list[int]:
    return [*map(id, items)]
