"""The settings of a run, as Python objects and as the JSON of config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hfcore.arguments import count, number
from hfcore.autograd.calls import Select
from hfcore.draws import MOST_CASES
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.training.describe import ADDRESS, describe
from hfcore.training.environment import describe_environment
from hfcore.training.limits import Limits
from hfcore.training.rebuild import arguments_of

if TYPE_CHECKING:
    from hfcore.problems import Problem

# A first-order update is so cheap that testing or storing after each would dominate.
FIRST_ORDER_EVERY = 100
# The budget of minibatches of a run without any limit.
MINIBATCHES = 50_000


@dataclass(frozen=True)
class Settings:
    """Arguments of :func:`train` that are plain numbers; checked on construction."""

    limits: Limits
    test_size: int
    solved_below: float
    test_every: int
    checkpoint_every: int
    keep_checkpoints: int
    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "test_size", count("test_size", self.test_size, most=MOST_CASES))
        for name in ("test_every", "checkpoint_every", "keep_checkpoints"):
            object.__setattr__(self, name, count(name, getattr(self, name)))
        object.__setattr__(self, "seed", count("seed", self.seed, least=0))
        object.__setattr__(self, "solved_below", number("solved_below", self.solved_below))
        if not 0.0 <= self.solved_below <= 1.0:
            raise ValueError(f"solved_below: got {self.solved_below}, need a share in [0, 1]")


def limits_of(stop: Limits | None, minibatches: float | None) -> Limits:
    """The limits of a run from both arguments that set some. Raises ValueError for a limit set
    twice, TypeError for something that is none."""
    if stop is None:
        return Limits(minibatches=MINIBATCHES if minibatches is None else minibatches)
    if not isinstance(stop, Limits):
        raise TypeError(f"stop: got {type(stop).__name__}, need hf.training.Limits")
    if minibatches is None:
        return stop
    if stop.minibatches is not None:
        raise ValueError(f"minibatches: got {minibatches} beside stop={stop}, need one of the two")
    return Limits(stop.iterations, minibatches, stop.seconds)


def default_every(optimizer: torch.optim.Optimizer) -> int:
    """Iterations between tests, and between checkpoints: 1 for HF, 100 for first-order."""
    return 1 if isinstance(optimizer, HessianFree) else FIRST_ORDER_EVERY


def run_config(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    *,
    problem: Problem | None,
    data: Mapping[str, Any],
    loss: Any,
    outputs: Select | None,
    metric: str,
    callbacks: Mapping[str, Any],
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """What config.json holds; only ``run`` and ``environment`` may change on a resume."""
    config: dict[str, Any] = {}
    if problem is not None:
        config["problem"] = describe(problem.config())
    return {
        **config,
        "model": model_config(model),
        "optimizer": optimizer_config(optimizer),
        "loss": describe(loss),
        **_chosen(outputs),
        "metric": metric,
        "data": describe(data),
        "callbacks": describe(callbacks),
        "notes": describe(notes),
        "run": {
            **settings.limits.config(),
            "solved_below": settings.solved_below,
            "test_every": settings.test_every,
            "checkpoint_every": settings.checkpoint_every,
        },
        "environment": {**describe_environment(), "device": device_name(model)},
    }


def _chosen(outputs: Select | None) -> dict[str, Any]:
    """Which of the things that the model returns its outputs are, where somebody says it."""
    if outputs is None:
        return {}
    return {"outputs": {"function": describe(outputs)} if callable(outputs) else outputs}


def model_config(model: torch.nn.Module) -> dict[str, Any]:
    """Class, shapes and dtypes, with the constructor's arguments of a net of hfcore; of any other
    module its structure as torch shows it."""
    config: dict[str, Any] = {"name": type(model).__name__}
    arguments = arguments_of(model)
    if arguments is None:
        config["structure"] = ADDRESS.sub("", repr(model))
    else:
        config["arguments"] = arguments
    config["parameters"] = {name: list(p.shape) for name, p in model.named_parameters()}
    config["dtype"] = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    return config


def device_name(model: torch.nn.Module) -> str:
    """Where the parameters are: cpu, or the GPU's name."""
    device = next(model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def optimizer_config(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Hyperparameters of each group at the start of the run, and the loss or objective it has of
    its own; one group is written flat."""
    groups = [
        {key: describe(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    config: dict[str, Any] = {"name": type(optimizer).__name__}
    loss = getattr(optimizer, "loss", None)
    if loss is not None:
        config["loss"] = describe(loss)
    config |= _chosen(optimizer.outputs if isinstance(optimizer, HessianFree) else None)
    objective = getattr(optimizer, "objective", None)
    if objective is not None:
        config["objective"] = describe(type(objective))
    if len(groups) == 1:
        return {**config, **groups[0]}
    return {**config, "groups": groups}
