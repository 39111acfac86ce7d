"""``hfcore check-curvature``: finite differences against the products that training uses."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import click
import torch
from torch import Tensor

from hfcore.losses import NAMED
from hfcore.models.mlp import MLP
from hfcore.models.rnn import RNN
from hfcore.verify import check_curvature

# Sizes of the models that come with the command: inputs, hidden units, outputs, cases, time steps.
INPUTS, HIDDEN, OUTPUTS, CASES, STEPS = 3, 7, 4, 5, 6


@click.command("check-curvature")
@click.argument("model", metavar="MODEL")
@click.option("--loss", type=click.Choice(sorted(NAMED)), default="squared", help="rnn, mlp.")
@click.option(
    "--nonlinearity",
    type=click.Choice(["tanh", "logistic", "relu"]),
    default="tanh",
    help="rnn, mlp: of the hidden units.",
)
@click.option("--coordinates", type=click.IntRange(1), default=2, help="Of each parameter.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.pass_context
def check_command(
    context: click.Context,
    /,
    model: str,
    loss: str,
    nonlinearity: str,
    coordinates: int,
    seed: int,
) -> None:
    """Check gradient, R-op, Gauss-Newton and Hessian products of MODEL by finite differences.

    MODEL is rnn, mlp, or package.module:function of your own, a function without arguments that
    returns (model, loss, inputs, targets), or a mask as fifth. Everything is computed in float64.
    Exits with 1 when a check is wrong.
    """
    generator = torch.Generator().manual_seed(seed)
    own = {"rnn": _rnn, "mlp": _mlp}
    problem = own[model](loss, nonlinearity, generator) if model in own else _users(model)
    net, loss_function, inputs, targets, *mask = problem
    try:
        report = check_curvature(
            net,
            loss_function,
            inputs,
            targets,
            mask=mask[0] if mask else None,
            coordinates=coordinates,
            seed=seed,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(str(report))
    if not report.right:
        context.exit(1)


def _rnn(loss: str, nonlinearity: str, generator: torch.Generator) -> tuple[Any, ...]:
    model = RNN(INPUTS, HIDDEN, OUTPUTS, nonlinearity=nonlinearity, generator=generator)
    return model, NAMED[loss](), *_data((STEPS, CASES), loss, generator)


def _mlp(loss: str, nonlinearity: str, generator: torch.Generator) -> tuple[Any, ...]:
    sizes = (INPUTS, HIDDEN, HIDDEN, OUTPUTS)
    model = MLP(sizes, (nonlinearity, nonlinearity, "linear"), generator=generator)
    return model, NAMED[loss](), *_data((CASES,), loss, generator)


def _data(lead: tuple[int, ...], loss: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(*lead, INPUTS, generator=generator)
    if NAMED[loss].takes_classes:
        return x, torch.randint(OUTPUTS, lead, generator=generator)
    return x, torch.rand(*lead, OUTPUTS, generator=generator)


def _users(name: str) -> tuple[Any, ...]:
    """What the user's function returns, checked."""
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise click.BadParameter(
            f"got {name!r}, need rnn, mlp or package.module:function", param_hint="MODEL"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # `hfcore` is a script: the user's folder is not on the path
    try:
        function: Callable[[], Any] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise click.BadParameter(f"got {name!r}: {error}", param_hint="MODEL") from error
    problem = function()
    if not isinstance(problem, tuple) or len(problem) not in (4, 5):
        raise click.ClickException(
            f"{name}: returned {type(problem).__name__}, need (model, loss, inputs, targets) or "
            "(model, loss, inputs, targets, mask)"
        )
    return problem
