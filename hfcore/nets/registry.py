"""Which model class has a fused net: the one place that asks for the type of a model."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from hfcore.losses import Loss
from hfcore.nets.net import FusedNet

logger = logging.getLogger("hfcore")

Factory = Callable[..., FusedNet]

_factories: dict[type[nn.Module], Factory] = {}


def register(model_class: type[nn.Module], factory: Factory) -> None:
    """Let ``factory(model, loss, **options)`` make the fused nets of a class of models.

    Everything that takes a model then runs on the net: ``hf.HessianFree``, the curvature operators,
    ``hf.train``, ``hf.sweep``. It is used for models of exactly this class, whose forward nothing
    has altered, with a loss of ``hf.losses``. ``options`` are those that the factory names:
    ``structural`` (μ or a mapping) and ``structural_distance`` are known. A later factory of the
    same class takes the place of the first.

    Raises TypeError for something that is not a class of modules, or not callable.
    """
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise TypeError(f"model_class: got {model_class!r}, need a subclass of torch.nn.Module")
    if not callable(factory):
        raise TypeError(f"factory: got {type(factory).__name__}, need a callable (model, loss)")
    _factories[model_class] = factory


def net_of(model: Any, loss: Any, **options: Any) -> FusedNet | None:
    """The fused net of a model with a loss of ``hf.losses``; None where there is none.

    Options that the factory does not name are left out. Raises ValueError or TypeError for what
    the net cannot serve, with the reason.
    """
    factory = _factories.get(type(model))
    if factory is None or not isinstance(loss, Loss):
        return None
    altered = _altered(model)
    if altered is not None:
        logger.info("%s: not on the fused path: %s", type(model).__name__, altered)
        return None
    named = inspect.signature(factory).parameters
    return factory(model, loss, **{name: options[name] for name in options if name in named})


def _altered(model: nn.Module) -> str | None:
    """What makes the model compute something else than its class says."""
    for name, module in model.named_modules():
        where = name or "the model"
        if is_parametrized(module):
            return f"{where} is parametrized"
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            return f"{where} has hooks, or a forward of its own"
    return None
