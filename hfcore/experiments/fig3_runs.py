"""The runs of figure 3: one Hessian-free training each, in a run folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import hfcore as hf
from hfcore.experiments.fig3 import (
    ESN,
    ESN_INPUT_SCALE,
    GRADIENT_BATCHES,
    NONE,
    TIKHONOV,
    Case,
    Settings,
)
from hfcore.experiments.fig3_rows import (
    UNFINISHED,
    Row,
    check_settings,
    is_done,
    read_row,
    read_settings,
    summary,
)
from hfcore.experiments.machine import machine_name
from hfcore.experiments.pace import gradients, recurrent_parameters

COST_UNIT = 1000  # hf.train counts in as many sequences
FAN_IN = 15  # incoming weights of a unit, of inputs too where there are more
CHECKPOINT_EVERY = 5
ROW = "row.json"  # in the run folder, once the run is done


@dataclass(frozen=True)
class Job:
    """One case with what it takes to run it, in this process or another."""

    case: Case
    settings: Settings
    folder: Path
    device: str = "cpu"
    threads: int | None = 1
    watch: Callable[[float], None] | None = field(default=None, compare=False)
    """Is told after every step what share of the limit is spent; in this process alone."""

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def row(self) -> Row | None:
        """Its row where it is done, to the present limit at least.

        Raises ValueError for one that is damaged, or of a run with other settings.
        """
        path = self.folder / ROW
        row = read_row(path, self.case, self.settings) if path.exists() else None
        return row if row is not None and is_done(row, self.settings.limit) else None

    @property
    def operations(self) -> float:
        """Of its limit: floating-point operations."""
        parameters = recurrent_parameters(self.case.task(), self.settings.hidden)
        return gradients(parameters, self._unit * self.case.length, self.settings.limit)

    def share(self, minibatches: float) -> float:
        """What ``minibatches`` of :func:`hfcore.train` are of its limit."""
        return min(1.0, minibatches * COST_UNIT / self._unit / self.settings.limit)

    def run(self) -> bool:
        """Train, from the last checkpoint where there is one; False if it was interrupted.

        Raises what :func:`hfcore.train` raises.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        task, unit = self.case.task(), self._unit
        model = self.net(task)
        whole = isinstance(task, hf.problems.FiniteProblem)
        batches = (
            hf.minibatches.FullGradient(curvature_batches=1, seed=None)
            if whole
            else hf.minibatches.Fresh(GRADIENT_BATCHES, self.settings.batch_size)
        )
        result = hf.train(
            model,
            task,
            hf.HessianFree(model, task.loss, **self._options()),
            batches=batches,
            stop=hf.training.Limits(minibatches=self.settings.limit * unit / COST_UNIT),
            test_size=self.settings.test_size,
            seed=self.case.seed,
            run_dir=self.folder,
            resume=self.folder.is_dir(),
            checkpoint_every=CHECKPOINT_EVERY,
            progress=False,
            callbacks=[] if self.watch is None else [_Watched(self)],
            notes={"start": self.case.start},
        )
        if result.reason == "interrupted":
            return False
        row = {**self._row(), "reason": result.reason, "solved": result.solved}
        hf.training.write_atomic(self.folder / ROW, (json.dumps(row, indent=1) + "\n").encode())
        return True

    @property
    def _unit(self) -> int:
        """Sequences of a minibatch."""
        task = self.case.task()
        if isinstance(task, hf.problems.FiniteProblem):
            return task.all_cases().inputs.shape[1]
        return self.settings.batch_size

    def net(self, task: hf.problems.SequenceProblem) -> hf.RNN:
        """The model before its first step."""
        model = hf.RNN(task.input_size, self.settings.hidden, task.output_size)
        generator = torch.Generator().manual_seed(self.case.seed)
        if self.case.start == ESN:
            start = {**hf.presets.esn2013(task), "input_scale": ESN_INPUT_SCALE}
            hf.init.esn_(model, generator, **start)
        else:
            hf.init.sparse_(model, generator, sparse_inputs=task.input_size > FAN_IN)
        return model.to(self.device)

    def _options(self) -> dict[str, Any]:
        options = dict(hf.presets.rnn2011)
        if self.case.damping == TIKHONOV:
            options["structural"] = 0.0
        if self.case.preconditioner != NONE:
            options["preconditioner"] = self.case.preconditioner
        return options

    def so_far(self) -> Row | None:
        """The row of a run that was begun and is not done.

        Raises ValueError for a run with other settings.
        """
        if self.row is not None or not (self.folder / "metrics.jsonl").exists():
            return None
        begun = read_settings(self.folder / "config.json")
        row = {**asdict(self.case), **self.settings.identity, **begun}
        check_settings(self.folder / "config.json", row, self.settings)
        return {**self._row(), "reason": UNFINISHED, "solved": False}

    def _row(self) -> Row:
        lines = hf.training.read_metrics(self.folder / "metrics.jsonl")
        return {
            **asdict(self.case),
            **self.settings.identity,
            **summary(lines, COST_UNIT / self._unit),
            "machine": machine_name(torch.device(self.device)),
        }


class _Watched(hf.Callback):
    """Tells a job's ``watch`` how far it is."""

    reads_gradients = False

    def __init__(self, job: Job) -> None:
        self._job = job

    def on_step(self, state: hf.TrainState) -> None:
        assert self._job.watch is not None
        self._job.watch(self._job.share(state.minibatches))
