"""``hfcore info``: which implementation serves each op on this machine, and why."""

from __future__ import annotations

import sys

import click
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import nn

from hfcore.bindings import cuda, dispatch
from hfcore.cli.models import problem_of
from hfcore.nets.registry import served_by
from hfcore.training.environment import instruction_set, package_version

# What the function behind a MODEL returns.
NEED = "(model, loss), or what check-curvature takes"


@click.command("info")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
def info_command(models: tuple[str, ...]) -> None:
    """Show which implementation serves each op on this machine, and why.

    With MODEL: what serves that model with its loss, a fused net or autograd, and why. MODEL is
    rnn, mlp, or package.module:function of your own, a function without arguments that returns
    (model, loss), or more as for check-curvature.
    """
    console = Console()
    if models:
        console.print(_of_models(models))
        return
    try:
        chosen = instruction_set()
    except ValueError as error:  # HFCORE_ISA asks for one that is not served here
        raise click.ClickException(str(error)) from error
    for device in ("cpu", "cuda"):
        title = f"ops on {device} data, float32"
        table = Table(Column("op", no_wrap=True), "served by", "why", title=title)
        for op in dispatch.OPS:
            table.add_row(op, *dispatch.explain(op, device))
        console.print(table)
    facts = Table("what", "here", show_header=False)
    for name in ("hfcore", "torch", "numpy", "numba", "safetensors", "triton"):
        facts.add_row(name, package_version(name))
    facts.add_row("cupy", package_version("cupy-cuda13x"))
    facts.add_row("python", sys.version.split()[0])
    facts.add_row("threads", str(torch.get_num_threads()))
    facts.add_row("instruction set", chosen)
    facts.add_row("CUDA kernels", _cuda_binaries())
    facts.add_row("CUDA device", cuda.why_no_device() or cuda.describe())
    console.print(facts)


def _of_models(names: tuple[str, ...]) -> Table:
    """What serves each of them with its loss."""
    table = Table(Column("model", no_wrap=True), "served by", "why")
    for name in names:
        model, loss, *_ = problem_of(name, NEED, (2, 4, 5))
        if not isinstance(model, nn.Module):
            raise click.ClickException(
                f"{name}: the model is a {type(model).__name__}, need a torch.nn.Module"
            )
        served, why = served_by(model, loss)
        table.add_row(name, served, escape(why))
    return table


def _cuda_binaries() -> str:
    """Which families of CUDA C++ kernels this installation brings."""
    families = dispatch.CUDA_CPP + dispatch.CUDA_CPP_TOO
    built = [family for family in families if cuda.find_binary(family) is not None]
    if not built:
        return "not in this installation: it was built without nvcc"
    return f"{', '.join(built)}, built ahead of time"
