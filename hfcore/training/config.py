"""The settings of a run, as Python objects and as the JSON of config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hfcore.bindings.checks import check_positive
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.training.environment import describe_environment

if TYPE_CHECKING:
    from hfcore.problems import Problem

# A first-order update is so cheap that testing or storing after each would dominate.
FIRST_ORDER_EVERY = 100


@dataclass(frozen=True)
class Settings:
    """Arguments of :func:`train` that are plain numbers; checked on construction."""

    minibatches: float
    batch_size: int
    gradient_batches: int
    test_size: int
    solved_below: float
    test_every: int
    checkpoint_every: int
    seed: int

    def __post_init__(self) -> None:
        check_positive(
            batch_size=self.batch_size,
            gradient_batches=self.gradient_batches,
            test_size=self.test_size,
            test_every=self.test_every,
            checkpoint_every=self.checkpoint_every,
        )
        if not 0 < self.minibatches < float("inf"):
            raise ValueError(f"minibatches: got {self.minibatches}, need a positive finite number")
        if not 0.0 <= self.solved_below <= 1.0:
            raise ValueError(f"solved_below: got {self.solved_below}, need a share in [0, 1]")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, need at least 0")


def default_every(optimizer: torch.optim.Optimizer) -> int:
    """Iterations between tests, and between checkpoints: 1 for HF, 100 for first-order."""
    return 1 if isinstance(optimizer, HessianFree) else FIRST_ORDER_EVERY


def run_config(
    model: torch.nn.Module,
    problem: Problem,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """What config.json holds; only ``run`` and ``environment`` may change on a resume."""
    data: dict[str, Any] = {
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "test_size": settings.test_size,
    }
    if isinstance(optimizer, HessianFree):
        data["gradient_batches"] = settings.gradient_batches
    return {
        "problem": problem.config(),
        "model": model_config(model),
        "optimizer": optimizer_config(optimizer),
        "data": data,
        "notes": dict(notes),
        "run": {
            "minibatches": settings.minibatches,
            "solved_below": settings.solved_below,
            "test_every": settings.test_every,
            "checkpoint_every": settings.checkpoint_every,
        },
        "environment": {**describe_environment(), "device": device_name(model)},
    }


def model_config(model: torch.nn.Module) -> dict[str, Any]:
    """Class, shapes and dtypes."""
    config: dict[str, Any] = {"name": type(model).__name__}
    if hasattr(model, "nonlinearity"):
        config["nonlinearity"] = str(model.nonlinearity)
    config["parameters"] = {name: list(p.shape) for name, p in model.named_parameters()}
    config["dtype"] = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    return config


def device_name(model: torch.nn.Module) -> str:
    """Where the parameters are: cpu, or the GPU's name."""
    device = next(model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def optimizer_config(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Hyperparameters of each group at the start of the run; one group is written flat."""
    groups = [
        {key: _setting(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    config: dict[str, Any] = {"name": type(optimizer).__name__}
    if len(groups) == 1:
        return {**config, **groups[0]}
    return {**config, "groups": groups}


def _setting(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_setting(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _setting(v) for k, v in value.items()}
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return repr(value)
