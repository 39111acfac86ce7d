"""A run folder as objects again: ``hf.load_run``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hfcore import problems
from hfcore.arguments import naming_options, path
from hfcore.autograd.calls import Select, check_select
from hfcore.problems import Problem
from hfcore.training import setup
from hfcore.training.checkpoint import Checkpoint, Checkpoints
from hfcore.training.config import Settings
from hfcore.training.errors import CheckpointError, RunFolderError
from hfcore.training.limits import Limits
from hfcore.training.metrics import Metric
from hfcore.training.metrics_log import read_metrics
from hfcore.training.rebuild import build_model, build_optimizer, loss_called
from hfcore.training.result import TrainResult
from hfcore.training.run_folder import fingerprint, read_config

Which = Literal["last", "best"] | int


@dataclass(frozen=True)
class LoadedRun:
    """One run as it was at a checkpoint."""

    run_dir: Path
    config: dict[str, Any]
    """What config.json holds."""
    iteration: int
    """That of the model: of the checkpoint, or of the best one."""
    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    """At the checkpoint, with its state; None where hfcore cannot build it and none was given."""
    problem: Problem | None
    """None where the data were no problem of hf.problems; ``config["data"]`` tells their facts."""
    metrics: list[dict[str, Any]]
    """The lines of metrics.jsonl, all of them."""
    result: TrainResult | None = field(repr=False)
    """How training ended, None if it has not."""

    def column(self, name: str) -> list[Any]:
        """One column of the metrics, None where a line has it not.

        Raises KeyError naming the columns if no line has it.
        """
        known = sorted({key for line in self.metrics for key in line})
        if name not in known:
            raise KeyError(f"{name}: is no column of the metrics, need one of {', '.join(known)}")
        return [line.get(name) for line in self.metrics]

    def test(
        self,
        data: Any = None,
        *,
        metric: Metric | None = None,
        loss: Any = None,
        outputs: Select | None = None,
        test_size: int | None = None,
    ) -> float:
        """The error of the model on ``data``, in a form that :func:`hfcore.train` takes.

        None: on the run's own problem, its test cases (``test_size`` of them; None: as many as in
        the run). Without ``metric`` it is what the problem calls wrong or its errors, else the
        loss. ``outputs`` as in :func:`hfcore.train`; None: those of the run, if no function chose
        them. Raises ValueError where there is nothing to test on or to measure with.
        """
        drawn = self.config["data"]
        settings = Settings(
            limits=Limits(),
            test_size=test_size or drawn.get("test_size") or setup.TEST_SIZE,
            solved_below=0.0,
            test_every=1,
            checkpoint_every=1,
            keep_checkpoints=1,
            seed=drawn["seed"],
        )
        if data is None and self.problem is None:
            raise ValueError(
                f"data: got None, and the data of {self.run_dir} are not in it; need the cases to "
                "test on"
            )
        optimizer = self.optimizer or torch.optim.SGD(self.model.parameters(), lr=0.0)
        parts = setup.data_of(
            self.model,
            optimizer,
            self.problem if data is None else data,
            validation=None,
            test=data,
            batch_dim=None,
        )
        if loss is None:
            loss = loss_called(self.config.get("loss"))
        outputs = self._outputs(outputs)
        return setup.Measured(self.model, parts, metric, loss, settings, outputs)()["test"]

    def _outputs(self, given: Select | None) -> Select | None:
        """Those that were given, or the run's."""
        check_select(given)
        if given is not None:
            return given
        stored = self.config.get("outputs")
        if isinstance(stored, dict):
            raise ValueError(
                f"outputs: the run chose them by the function {stored.get('function')}, which is "
                "not in the folder; need it"
            )
        return stored


@naming_options
def load_run(
    run_dir: str | os.PathLike[str],
    checkpoint: Which = "last",
    *,
    model: Callable[[], nn.Module] | nn.Module | None = None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    device: torch.device | str = "cpu",
) -> LoadedRun:
    """Model, optimiser, problem and metrics of a run of :func:`hfcore.train`.

    >>> run = hf.load_run("runs/first")
    >>> run.model(x), run.column("loss"), run.result.reason

    Args:
        run_dir: its folder. Nothing in it is changed; it may be training.
        checkpoint: ``"last"``; ``"best"``, the model that :class:`hfcore.training.BestModel` kept;
            or an iteration whose checkpoint is there.
        model: for a class that is not hf.RNN, hf.MLP or hf.Autoencoder: a function that returns one
            like that of the run, or the module to load into.
        optimizer: a function of the model; None: hfcore's and torch's optimisers are built again
            where config.json tells how.
        device: where the model is put.

    Raises :class:`RunFolderError` for a folder that is no run or was written by another version,
    :class:`CheckpointError` if the checkpoint is not there, damaged, or does not fit.
    """
    folder = path("run_dir", run_dir)
    config = read_config(folder / "config.json")
    if config is None:
        raise RunFolderError(f"{folder}: has no config.json, it is not a run folder")
    if not all(isinstance(config.get(key), dict) for key in ("model", "optimizer", "data")):
        raise RunFolderError(f"{folder}: is not a folder of hf.train")
    found = _checkpoint(folder, config, checkpoint)
    try:
        net = model() if callable(model) and not isinstance(model, nn.Module) else model
        net = (build_model(config["model"]) if net is None else net).to(device)
        weights, iteration = _weights(found, checkpoint)
        net.load_state_dict(weights)
        made = build_optimizer(config["optimizer"], net) if optimizer is None else optimizer(net)
        if made is not None:
            made.load_state_dict(found.state["optimizer"])
        problem = _problem(config)
    except RunFolderError:
        raise
    except Exception as error:  # whatever stored words and states can bring about
        raise CheckpointError(
            f"{folder}: iteration {found.iteration} does not fit: {type(error).__name__}: {error}"
        ) from error
    log = folder / "metrics.jsonl"
    return LoadedRun(
        folder,
        config,
        iteration,
        net,
        made,
        problem,
        read_metrics(log) if log.exists() else [],
        _result(folder),
    )


def _checkpoint(folder: Path, config: dict[str, Any], which: Which) -> Checkpoint:
    if isinstance(which, bool) or not (isinstance(which, int) or which in ("last", "best")):
        raise ValueError(f"checkpoint: got {which!r}, need 'last', 'best' or an iteration")
    stored = Checkpoints(folder / "checkpoints", fingerprint(config))
    found = stored.load(which if isinstance(which, int) else None)
    if found is None:
        raise CheckpointError(f"{stored.folder}: holds no checkpoint")
    return found


def _weights(found: Checkpoint, which: Which) -> tuple[dict[str, Any], int]:
    """The model's state and its iteration."""
    if which != "best":
        return found.state["model"], found.iteration
    best = found.state.get("callbacks", {}).get("BestModel")
    if not best or not best["model"]:
        raise CheckpointError(
            f"checkpoint: got 'best', but iteration {found.iteration} holds no best model; train "
            "with callbacks=[hf.training.BestModel()]"
        )
    return best["model"], best["iteration"]


def _problem(config: dict[str, Any]) -> Problem | None:
    """None for one that is not of hf.problems."""
    stored = config.get("problem")
    if stored is None or stored.get("name") not in problems.PROBLEMS:
        return None
    return problems.create(**stored)


def _result(folder: Path) -> TrainResult | None:
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        return TrainResult.from_json(json.loads(path.read_bytes()), folder)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RunFolderError(f"{path}: corrupt, it tells no result ({error})") from error
