"""Which model class has a fused net: the one place that asks for the type of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from hfcore.losses import Loss
from hfcore.nets.net import FusedNet
from hfcore.nets.unaltered import LAYERS, why_not_fused

Factory = Callable[..., FusedNet]

_registered: dict[type, tuple[Factory, tuple[type[nn.Module], ...]]] = {}


def register(
    model_class: type[nn.Module],
    factory: Factory,
    *,
    layers: Sequence[type[nn.Module]] = LAYERS,
) -> None:
    """Let ``factory(model, loss, **options)`` make the fused nets of a class of models.

    Everything that takes a model then runs on the net: ``hf.HessianFree``, the curvature operators,
    ``hf.train``, ``hf.sweep``. It serves models of exactly this class that compute what the class
    says, whose submodules are of the types ``layers``, with a loss of ``hf.losses``. ``options``
    are those that the factory names: ``structural`` (μ or a mapping) and ``structural_distance``.
    A later factory of the same class takes the place of the first.

    Raises TypeError for something that is not a class of modules, or not callable.
    """
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise TypeError(f"model_class: got {model_class!r}, need a subclass of torch.nn.Module")
    if not callable(factory):
        raise TypeError(f"factory: got {type(factory).__name__}, need a callable (model, loss)")
    _registered[model_class] = factory, tuple(layers)


def net_of(model: Any, loss: Any, **options: Any) -> FusedNet | None:
    """The fused net of a model with a loss of ``hf.losses``; None where there is none.

    Options that the factory does not name are left out. Raises ValueError or TypeError for what
    the net cannot serve, with the reason.
    """
    if type(model) not in _registered or not isinstance(loss, Loss):
        return None
    if why_left_to_autograd(model, loss) is not None:
        return None
    factory, _ = _registered[type(model)]
    named = inspect.signature(factory).parameters
    return factory(model, loss, **{name: options[name] for name in options if name in named})


def why_left_to_autograd(model: Any, loss: Any) -> str | None:
    """Why a model of a class with a net, or of one derived from it, is served by autograd.

    None: it is fused, or there is nothing to fuse.
    """
    if not (isinstance(model, nn.Module) and isinstance(loss, Loss)):
        return None
    base = next((c for c in type(model).__mro__ if c in _registered), None)
    if base is None:
        return None
    if base is not type(model):
        name = base.__name__ if base.__module__.split(".")[0] != "hfcore" else f"hf.{base.__name__}"
        return f"{type(model).__name__} is derived from {name}, and may compute otherwise"
    return why_altered(model)


def why_altered(model: nn.Module) -> str | None:
    """Why kernels must not stand in for a model of a class with a net; None: they may."""
    return why_not_fused(model, _registered[type(model)][1])
