"""Which model has a fused net: the one place that asks for the type of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import nn

from hfcore.arguments import check_call
from hfcore.losses import Loss
from hfcore.losses.from_torch import converted
from hfcore.nets.net import FusedNet
from hfcore.nets.read_out import loss_of_outputs, net_of_read_out, why_other_axes
from hfcore.nets.recognition import recognised
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
    _registered[model_class] = factory, _checked_layers(layers)


def _checked_layers(layers: Any) -> tuple[type[nn.Module], ...]:
    listed = [*layers] if isinstance(layers, list | tuple) else None
    if listed is None or not all(isinstance(c, type) and issubclass(c, nn.Module) for c in listed):
        raise TypeError(f"layers: got {layers!r}, need classes of torch.nn.Module in a sequence")
    return tuple(listed)


def net_of(
    model: Any, loss: Any, *, outputs: Any = None, batch_dim: Any = None, **options: Any
) -> FusedNet | None:
    """The fused net of a model with a loss of ``hf.losses``; None where there is none.

    One of torch's recurrent modules also has one with torch's own losses of
    :func:`hfcore.losses.from_torch`, on outputs as torch lays them out.

    Options that the factory does not name are left out; with ``outputs``, which choose among what
    the model returns, there is none. A module of torch's recurrent ones has one where ``batch_dim``
    is that of its cases: an axis, or those of inputs and of outputs. Raises ValueError or TypeError
    for what the net cannot serve, with the reason.
    """
    if not isinstance(model, nn.Module):
        return None
    if why_left_to_autograd(model, loss, outputs, batch_dim) is not None:
        return None
    if type(model) not in _registered:
        read = None if batch_dim is None else recognised(model)
        served = loss_of_outputs(loss)
        if read is None or isinstance(read, str) or served is None:
            return None
        distance = options.get("structural_distance", "matching")
        return net_of_read_out(read, served, structural_distance=distance)
    if not isinstance(loss, Loss):
        return None
    factory, _ = _registered[type(model)]
    named = _names_of(factory)
    given = {name: value for name, value in options.items() if name in named}
    try:
        net = factory(model, loss, **given)
    except TypeError:
        check_call("factory", factory, model, loss)
        raise
    if not isinstance(net, FusedNet):
        raise TypeError(
            f"factory: gave {type(net).__name__} for {type(model).__name__}, need an "
            "hf.nets.FusedNet"
        )
    return net


def _names_of(factory: Factory) -> Collection[str]:
    """The parameters that a factory names; none where it does not tell."""
    try:
        return inspect.signature(factory).parameters.keys()
    except (TypeError, ValueError):
        return ()


def why_left_to_autograd(
    model: Any, loss: Any, outputs: Any = None, batch_dim: Any = None
) -> str | None:
    """Why a model of a class with a net, or of one derived from it, is served by autograd.

    Also a module of torch's recurrent ones, where ``batch_dim`` is given. None: it is fused, or
    there is nothing to fuse.
    """
    if not isinstance(model, nn.Module):
        return None
    base = _base(model)
    if base is None:
        served = None if batch_dim is None else loss_of_outputs(loss)
        return None if served is None else _why_not_read_out(model, loss, outputs, batch_dim)
    if not isinstance(loss, Loss):
        return None
    if base is not type(model):
        return f"{type(model).__name__} is derived from {_shown(base)}, and may compute otherwise"
    if outputs is not None:
        return f"outputs={outputs!r} chooses among what it returns"
    return why_altered(model)


def _why_not_read_out(model: nn.Module, loss: Any, outputs: Any, batch_dim: Any) -> str | None:
    read = recognised(model)
    if read is None or isinstance(read, str):
        return read
    reason = why_other_axes(read, loss)
    if reason is not None:
        return reason
    if outputs is not None:
        return f"outputs={outputs!r} chooses among what it returns"
    if (batch_dim if isinstance(batch_dim, tuple) else (batch_dim, batch_dim)) != read.batch_dim:
        return f"got batch_dim={batch_dim!r}, need {read.cases} for the cases of {read.shown}"
    return None


def served_by(model: nn.Module, loss: Any, outputs: Any = None) -> tuple[str, str]:
    """What serves a model with a loss, the name of a net's class or ``"autograd"``, and why.

    ``"nothing"`` where a net refuses the model, with its reason.
    """
    base = _base(model)
    read = recognised(model) if base is None else None
    if base is None and read is None:
        return "autograd", f"no net of hf.nets is made for {type(model).__name__}"
    served = loss_of_outputs(loss)
    if served is None or (read is None and not isinstance(loss, Loss)):
        remedy = "" if converted(loss) is None else "; hf.losses.from_torch makes one of it"
        named = type(loss).__name__ if isinstance(loss, nn.Module) else "a function"
        return "autograd", f"the loss, {named}, is none of hf.losses{remedy}"
    batch_dim = None if read is None or isinstance(read, str) else read.batch_dim
    reason = read if isinstance(read, str) else None
    reason = reason or why_left_to_autograd(model, loss, outputs, batch_dim)
    if reason is not None:
        return "autograd", reason
    try:
        net = net_of(model, loss, batch_dim=batch_dim)
    except (TypeError, ValueError) as error:
        return "nothing", str(error)
    if read is not None and not isinstance(read, str):
        its = "a loss of hf.losses" if isinstance(loss, Loss) else f"nn.{type(loss).__name__}"
        return type(net).__name__, f"{read.shown}, with {its} and {read.cases}"
    return type(net).__name__, f"an unaltered {_shown(type(model))} with a loss of hf.losses"


def _base(model: Any) -> type | None:
    """The nearest class with a net among those of a model."""
    return next((c for c in type(model).__mro__ if c in _registered), None)


def _shown(model_class: type) -> str:
    """The name of a class of models as users write it."""
    own = model_class.__module__.split(".")[0] == "hfcore"
    return f"hf.{model_class.__name__}" if own else model_class.__name__


def axis_of_cases(model: nn.Module) -> int | None:
    """Where a model that computes what its class says, a class with a net, has its cases.

    None for other models, which may have them anywhere.
    """
    if type(model) not in _registered or why_altered(model) is not None:
        return None
    axis = getattr(model, "batch_dim", 0)
    return axis if isinstance(axis, int) else 0


def why_altered(model: nn.Module) -> str | None:
    """Why kernels must not stand in for a model with a net; None: they may."""
    if type(model) not in _registered:
        read = recognised(model)
        if read is None:
            return "it has other submodules"
        return read if isinstance(read, str) else None
    return why_not_fused(model, _registered[type(model)][1])
