"""Problems, models and optimisers from the options of a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

import click
import torch
from click.core import ParameterSource

from hfcore import init, presets
from hfcore.cli.options import device_of
from hfcore.models.mlp import MLP, Autoencoder
from hfcore.models.rnn import RNN
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.optimisers.momentum import NAG, ClassicalMomentum
from hfcore.optimisers.nonlinear_cg import NonlinearCG
from hfcore.problems import PROBLEMS, Problem, Reconstruction, SequenceProblem, create

FIRST_ORDER: dict[str, Callable[..., torch.optim.Optimizer]] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    # The gradients of these nets are dense.
    and value not in (torch.optim.Optimizer, torch.optim.SparseAdam)
}
MOMENTUM: dict[str, Callable[..., torch.optim.Optimizer]] = {"nag": NAG, "cm": ClassicalMomentum}
FIRST_ORDER |= {**MOMENTUM, "ncg": NonlinearCG}

# Of recurrent nets, and of autoencoders, whose preset is the one of their data.
RNN_PRESETS = {"rnn2011": presets.rnn2011, "rnn2011_release": presets.rnn2011_release}
IMAGE_PRESET = "martens2010"
PRESETS = (*RNN_PRESETS, IMAGE_PRESET)
INITS: dict[str, Callable[..., None]] = {
    "sparse": init.sparse_,
    "gaussian": init.gaussian_,
    "glorot": init.glorot_,
    "esn": init.esn_,
}
ESN_OPTIONS = ("input_scale", "spectral_radius")

# Options that speak to one kind of optimiser, and the keyword each becomes there.
HF_OPTIONS = {
    "damping": "damping",
    "structural": "structural",
    "l2": "l2",
    "cg_max_iter": "cg_max_iter",
}
FIRST_ORDER_OPTIONS = {
    "lr": "lr",
    "momentum": "momentum",
    "nesterov": "nesterov",
    "weight_decay": "weight_decay",
}
# Further options that are no keywords: those of hf, of all others, and of nag and cm alone.
HF_ALONE = ("preset", "gradient_batches", "curvature_batches")
FIRST_ORDER_ALONE = ("updates",)
SCHEDULE_ALONE = ("momentum_schedule", "final_updates")


def has_option(problem: str, option: str) -> bool:
    """Whether there is a problem of this name, with such an option."""
    return problem in PROBLEMS and option in signature(PROBLEMS[problem]).parameters


def problem_of(name: str, **given: Any) -> Problem:
    """The problem with these options; BadParameter or UsageError."""
    if name not in PROBLEMS:
        known = ", ".join(sorted(PROBLEMS))
        raise click.BadParameter(f"got {name!r}, need one of {known}", param_hint="PROBLEM")
    try:
        return create(name, **given)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error


def start_of(context: click.Context, problem: Problem) -> dict[str, Any]:
    """Keywords of the initialisation; an option of another one is an error."""
    options, name = context.params, context.params["init_name"]
    for other in ["init_scale"] if name == "esn" else ESN_OPTIONS:
        _refuse(context, other, f"has no meaning with --init {name}")
    if name != "sparse":
        _refuse(context, "sparse_inputs", f"has no meaning with --init {name}")
    if isinstance(problem, Reconstruction):
        _refuse(context, "sparse_inputs", f"has no meaning with {problem.name}")
    if name != "esn":
        start = {"scale": options["init_scale"]}
        if options["sparse_inputs"]:
            start["sparse_inputs"] = True
        # Martens' demo draws the connections of its autoencoders with replacement.
        replaced = name == "sparse" and isinstance(problem, Reconstruction)
        return {**start, "replacement": True} if replaced else start
    if not isinstance(problem, SequenceProblem):
        raise click.UsageError(f"--init esn has no meaning with {problem.name}")
    given = {key: options[key] for key in ESN_OPTIONS if options[key] is not None}
    return {**presets.esn2013(problem), **given}


def model_of(context: click.Context, problem: Problem, start: Mapping[str, Any]) -> RNN | MLP:
    """The untrained net: an autoencoder of the published sizes for images, else an hf.RNN."""
    options = context.params
    dtype = getattr(torch, options["dtype"])
    model: RNN | MLP
    if isinstance(problem, Reconstruction):
        for name in ("hidden", "nonlinearity"):
            _refuse(context, name, f"has no meaning with {problem.name}")
        model = Autoencoder(problem.encoder_sizes, dtype=dtype)
    else:
        sizes = problem.input_size, options["hidden"], problem.output_size
        model = RNN(*sizes, nonlinearity=options["nonlinearity"], dtype=dtype)
    # Drawn on the CPU, so that a seed is the same net on every device.
    generator = torch.Generator().manual_seed(options["seed"])
    try:
        INITS[options["init_name"]](model, generator, **start)
    except ValueError as error:
        flag = "--init-scale" if "scale" in start else "--init esn"
        raise click.UsageError(f"{flag}: {error}") from error
    return model.to(device_of(options["device"]))


def optimizer_of(
    context: click.Context,
    name: str,
    model: RNN | MLP,
    problem: Problem,
    group: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """The optimiser called ``name``, with those of the options that speak to it.

    ``group``: keywords of the processes that train together, where it has them.
    """
    group = group or {}
    if name == "hf":
        _refuse_others(context, name, [*FIRST_ORDER_OPTIONS, *FIRST_ORDER_ALONE, *SCHEDULE_ALONE])
        settings = {**_hf_preset(context.params["preset"], problem), **_given(context, HF_OPTIONS)}
        try:
            return HessianFree(model, problem.loss, **settings, **group)
        except (ValueError, TypeError) as error:
            raise click.UsageError(f"--optimizer hf: {error}") from error
    if name not in FIRST_ORDER:
        known = ", ".join(["hf", *sorted(FIRST_ORDER)])
        raise click.BadParameter(f"got {name!r}, need one of {known}", param_hint="--optimizer")
    _refuse_others(context, name, [*HF_OPTIONS, *HF_ALONE])
    if name not in MOMENTUM:
        _refuse_others(context, name, list(SCHEDULE_ALONE))
    given, wanted = _given(context, FIRST_ORDER_OPTIONS), signature(FIRST_ORDER[name]).parameters
    if "lr" not in given and "lr" in wanted and wanted["lr"].default is Parameter.empty:
        raise click.UsageError(f"--lr: was not given, --optimizer {name} needs a learning rate")
    given |= group if name in MOMENTUM else {}
    try:
        return FIRST_ORDER[name](model.parameters(), **given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise click.UsageError(f"--optimizer {name}: {error}") from error


def _hf_preset(name: str | None, problem: Problem) -> dict[str, Any]:
    images = isinstance(problem, Reconstruction)
    name = name or (IMAGE_PRESET if images else "rnn2011")
    if images != (name == IMAGE_PRESET):
        raise click.UsageError(f"--preset {name} has no meaning with {problem.name}")
    return presets.autoencoders[problem.name].optimiser if images else RNN_PRESETS[name]


def _given(context: click.Context, keywords: Mapping[str, str]) -> dict[str, Any]:
    """Keywords from the options that have a value."""
    values = {keyword: context.params[name] for name, keyword in keywords.items()}
    return {keyword: value for keyword, value in values.items() if value is not None}


def _refuse_others(context: click.Context, optimizer: str, names: list[str]) -> None:
    for name in names:
        _refuse(context, name, f"has no meaning with --optimizer {optimizer}")


def _refuse(context: click.Context, name: str, why: str) -> None:
    """UsageError if the option was given."""
    if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
        raise click.UsageError(f"--{name.replace('_', '-')} {why}")
