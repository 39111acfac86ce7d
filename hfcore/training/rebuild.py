"""Models and optimisers as the words of config.json, and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from hfcore import losses
from hfcore.models.lstm import BlockLSTM
from hfcore.models.mlp import MLP, Autoencoder
from hfcore.models.rnn import RNN
from hfcore.models.stacked_rnn import StackedRNN
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.optimisers.momentum import NAG, SGD, ClassicalMomentum
from hfcore.optimisers.nonlinear_cg import NonlinearCG
from hfcore.training.errors import RunFolderError


def _rnn(model: RNN) -> dict[str, Any]:
    names = ("input_size", "hidden_size", "output_size", "nonlinearity", "sparse")
    arguments = {name: getattr(model, name) for name in names}
    return {**arguments, "fan_in": model.fan_in} if model.sparse else arguments


def _stacked_rnn(model: StackedRNN) -> dict[str, Any]:
    names = ("input_size", "output_size", "nonlinearity")
    arguments = {name: getattr(model, name) for name in names}
    return {**arguments, "hidden_sizes": list(model.hidden_sizes)}


def _block_lstm(model: BlockLSTM) -> dict[str, Any]:
    names = ("input_size", "output_size", "blocks", "cells", "forget_bias")
    return {name: getattr(model, name) for name in names}


def _mlp(model: MLP) -> dict[str, Any]:
    return {"sizes": list(model.sizes), "activations": list(model.activations)}


def _autoencoder(model: Autoencoder) -> dict[str, Any]:
    layers = len(model.sizes) // 2
    return {
        "encoder_sizes": list(model.sizes[: layers + 1]),
        "activation": model.activations[0] if layers > 1 else "logistic",
        "code": model.activations[layers - 1],
    }


MODELS: dict[str, tuple[type[nn.Module], Callable[..., dict[str, Any]]]] = {
    "RNN": (RNN, _rnn),
    "StackedRNN": (StackedRNN, _stacked_rnn),
    "BlockLSTM": (BlockLSTM, _block_lstm),
    "MLP": (MLP, _mlp),
    "Autoencoder": (Autoencoder, _autoencoder),
}
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "NAG": NAG,
    "SGD": SGD,
    "ClassicalMomentum": ClassicalMomentum,
    "NonlinearCG": NonlinearCG,
}
LOSSES = {
    name: value
    for name, value in vars(losses).items()
    if isinstance(value, type) and issubclass(value, losses.Loss)
}


def arguments_of(model: nn.Module) -> dict[str, Any] | None:
    """The constructor's arguments of a net of hfcore, None for any other class."""
    known = MODELS.get(type(model).__name__)
    if known is None or type(model) is not known[0]:
        return None
    return known[1](model)


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """The untrained net of the ``model`` section. Raises RunFolderError for a class that is not
    hfcore's, asking for a factory."""
    name = config["name"]
    if name not in MODELS or "arguments" not in config:
        raise RunFolderError(
            f"model: is a {name}, which hfcore does not know how to build; give model=, a function "
            "that returns one"
        )
    dtypes = config["dtype"]
    dtype = getattr(torch, dtypes[0]) if len(dtypes) == 1 else None
    model: nn.Module = MODELS[name][0](**config["arguments"], dtype=dtype)
    return model


def build_optimizer(config: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer | None:
    """The optimiser of the ``optimizer`` section, untrained.

    None for one that the section does not tell: a class of another library, several groups of
    parameters, a loss, objective or option of the user's own.
    """
    name = config["name"]
    if name == "HessianFree":
        made: Callable[..., torch.optim.Optimizer] | None = HessianFree
    else:
        made = OPTIMISERS.get(name) or getattr(torch.optim, name, None)
    chosen_by_function = isinstance(config.get("outputs"), Mapping)
    if made is None or "groups" in config or "objective" in config or chosen_by_function:
        return None
    parameters = inspect.signature(made).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    options = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config.items()
        if key not in ("name", "loss") and (takes_any or key in parameters)
    }
    if "loss" in config:
        options["loss"] = loss_called(config["loss"])
        if options["loss"] is None:
            return None
    try:
        return made(model if name == "HessianFree" else model.parameters(), **options)
    except (TypeError, ValueError):
        return None


def loss_called(described: Any) -> losses.Loss | None:
    """The loss of hf.losses that :func:`describe` gave these words, None for another."""
    known = LOSSES.get(str(described).removesuffix("()"))
    return None if known is None else known()
