"""Forks one training run per request, so that a test can kill it with SIGKILL at any moment.

Run as a script by test_checkpoint.py. A request is a JSON line; the answer is a line with the
child's wait status. ``kind`` is one of RUNS. ``delay`` is null or the seconds after which the child
is killed, ``kill`` is null or ``[point, n]``: the child kills itself at the n-th pass of a point.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.utils.tensorboard  # here, so that the children find it loaded
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import hfcore.training.atomic as atomic
import hfcore.training.plots  # noqa: F401
from hfcore.init import sparse_
from hfcore.losses import SquaredError
from hfcore.models.rnn import RNN
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.optimisers.momentum import NAG
from hfcore.problems import Addition
from hfcore.schedules import Increasing, Phase, Phases
from hfcore.training import BestModel, EarlyStopping, Limits, Phased, Scheduled, train

SIZES = {"minibatches": 8, "batch_size": 16, "gradient_batches": 3, "test_size": 40}


def problem_run(run_dir: str, resume: bool) -> None:
    model = RNN(2, 6, 1)
    sparse_(model, torch.Generator().manual_seed(0), fan_in=3)
    problem = Addition(6)
    optimizer = HessianFree(model, problem.loss, damping=0.6, structural=0.03, cg_max_iter=6)
    train(
        model,
        problem,
        optimizer,
        **SIZES,
        solved_below=0.0,
        run_dir=run_dir,
        resume=resume,
        progress=False,
    )


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def sequences_run(run_dir: str, resume: bool) -> None:
    """Sequences of unequal length in phases, with early stopping and the best model."""
    model = RNN(2, 6, 1, generator=torch.Generator().manual_seed(0))
    data = [(noise(T, 2), noise(T, 1)) for T in (3, 7, 5, 2, 4, 6, 3, 3)]
    optimizer = HessianFree(model, SquaredError(), damping=0.6, cg_max_iter=4)
    small = Phase("small", gradient=1 / 2, curvature=1 / 2, cg_total=30)
    phases = Phases(optimizer, [small, Phase("part", curvature=1 / 4)])
    train(
        model,
        data,
        optimizer,
        batches=Phased(phases),
        validation=data[:3],
        callbacks=[EarlyStopping(50), BestModel()],
        stop=Limits(iterations=24),
        test_untrained=True,
        run_dir=run_dir,
        resume=resume,
        progress=False,
    )


def loader_run(run_dir: str, resume: bool) -> None:
    """A shuffled DataLoader with a momentum schedule."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(noise(*p.shape))
    loader = DataLoader(TensorDataset(noise(14, 3), noise(14, 2)), batch_size=4, shuffle=True)
    train(
        model,
        loader,
        NAG(model, lr=0.01, momentum=0.5),
        loss=SquaredError(),
        callbacks=[Scheduled(momentum=Increasing(0.9))],
        stop=Limits(iterations=24),
        checkpoint_every=2,
        run_dir=run_dir,
        resume=resume,
        progress=False,
    )


RUNS: dict[str, Callable[[str, bool], None]] = {
    "problem": problem_run,
    "sequences": sequences_run,
    "loader": loader_run,
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, n: int) -> None:
    """Kill this process at the n-th pass: inside a write, or before or after fsync or rename."""
    left = n

    def passed() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def half_written(file: BinaryIO, data: bytes) -> None:
        if passed():
            file.write(data[: len(data) // 2])
            file.flush()
            die()
        file.write(data)

    def wrapped(original: Any) -> Any:
        def call(*arguments: Any) -> Any:
            now = passed()
            if now and point.startswith("before"):
                die()
            value = original(*arguments)
            if now:
                die()
            return value

        return call

    if point == "write":
        atomic.write_all = half_written
    else:
        name = point.split()[1]
        setattr(os, name, wrapped(getattr(os, name)))


def child(request: dict[str, Any]) -> None:
    try:
        if request["kill"] is not None:
            arm(*request["kill"])
        RUNS[request["kind"]](request["run_dir"], request["resume"])
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def serve() -> None:
    torch.set_num_threads(1)
    Addition(6).batch(1, np.random.default_rng(0))  # compile before the first fork
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(request)
        if request["delay"] is not None:
            time.sleep(request["delay"])
            os.kill(pid, signal.SIGKILL)  # not yet waited for, so the pid is still the child's
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
