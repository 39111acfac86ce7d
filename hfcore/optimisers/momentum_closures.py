"""Closures that know more of a step than that they leave gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor

from hfcore.bindings.momentum import Step

Closure = Callable[[], Tensor]


class UpdatingClosure(ABC):
    """A closure that can take the whole step itself, where the parameters lie as it needs them.

    It is asked to only for the parameters ``[…]`` it names, in that order, in one piece of memory.
    """

    parameters: Sequence[Tensor]

    @abstractmethod
    def __call__(self) -> Tensor:
        """Leave gradients in the parameters; gives the loss, a scalar ``[]``."""

    @abstractmethod
    def update(self, theta: Tensor, velocity: Tensor, step: Step) -> Tensor:
        """One update of ``[1,N]`` in place, as ``momentum_update``; gives the loss."""


class SummedClosure(ABC):
    """A closure whose gradients and loss are already those of all processes."""

    @abstractmethod
    def __call__(self) -> Tensor:
        """Leave gradients in the parameters; gives the loss, a scalar ``[]``."""
