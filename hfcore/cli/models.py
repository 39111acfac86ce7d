"""The models that commands look at: small ones that come with hfcore, and those of users."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
import torch
from torch import Tensor

from hfcore.losses import NAMED
from hfcore.models.mlp import MLP
from hfcore.models.rnn import RNN

# Sizes of the models that come with the command: inputs, hidden units, outputs, cases, time steps.
INPUTS, HIDDEN, OUTPUTS, CASES, STEPS = 3, 7, 4, 5, 6

OWN = ("rnn", "mlp")
PROBLEM = "(model, loss, inputs, targets) or (model, loss, inputs, targets, mask)"


def problem_of(
    name: str,
    need: str = PROBLEM,
    lengths: Sequence[int] = (4, 5),
    *,
    loss: str = "squared",
    nonlinearity: str = "tanh",
    seed: int = 0,
) -> tuple[Any, ...]:
    """(model, loss, inputs, targets) of a small model of ours, or what the user's function returns.

    That is a tuple of one of these ``lengths``; ``need`` says what of. Raises click's errors for a
    name that leads nowhere and for a function that returns something else.
    """
    if name not in OWN:
        return _users(name, need, lengths)
    generator = torch.Generator().manual_seed(seed)
    if name == "rnn":
        model: Any = RNN(INPUTS, HIDDEN, OUTPUTS, nonlinearity=nonlinearity, generator=generator)
        return model, NAMED[loss](), *_data((STEPS, CASES), loss, generator)
    sizes = (INPUTS, HIDDEN, HIDDEN, OUTPUTS)
    model = MLP(sizes, (nonlinearity, nonlinearity, "linear"), generator=generator)
    return model, NAMED[loss](), *_data((CASES,), loss, generator)


def _data(lead: tuple[int, ...], loss: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(*lead, INPUTS, generator=generator)
    if NAMED[loss].takes_classes:
        return x, torch.randint(OUTPUTS, lead, generator=generator)
    return x, torch.rand(*lead, OUTPUTS, generator=generator)


def _users(name: str, need: str, lengths: Sequence[int]) -> tuple[Any, ...]:
    """What the function ``package.module:function`` returns, checked."""
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise click.BadParameter(
            f"got {name!r}, need {', '.join(OWN)} or package.module:function", param_hint="MODEL"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # `hfcore` is a script: the user's folder is not on the path
    try:
        function: Callable[[], Any] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise click.BadParameter(f"got {name!r}: {error}", param_hint="MODEL") from error
    if not callable(function):
        raise click.BadParameter(
            f"got {name!r}: is a {type(function).__name__}, need a function", param_hint="MODEL"
        )
    try:
        problem = function()
    except Exception as error:  # the user's own code
        raise click.ClickException(
            f"{name}: cannot be called without arguments: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(problem, tuple) or len(problem) not in lengths:
        raise click.ClickException(f"{name}: returned {type(problem).__name__}, need {need}")
    return problem
