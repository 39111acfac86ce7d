"""Forks one training run per request, so that a test can kill it with SIGKILL at any moment.

Run as a script by test_checkpoint.py. A request is a JSON line; the answer is a line with the
child's wait status. ``delay`` is null or the seconds after which the child is killed, ``kill`` is
null or ``[point, n]``: the child kills itself at the n-th pass of that point.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.utils.tensorboard  # here, so that the children find it loaded

import hfcore.training.atomic as atomic
import hfcore.training.plots  # noqa: F401
from hfcore.init import sparse_
from hfcore.models.rnn import RNN
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.problems import Addition
from hfcore.training import train

MINIBATCHES = 8


def run(run_dir: str, resume: bool) -> None:
    model = RNN(2, 6, 1)
    sparse_(model, torch.Generator().manual_seed(0), fan_in=3)
    problem = Addition(6)
    optimizer = HessianFree(model, problem.loss, damping=0.6, structural=0.03, cg_max_iter=6)
    train(
        model,
        problem,
        optimizer,
        minibatches=MINIBATCHES,
        batch_size=16,
        gradient_batches=3,
        test_size=40,
        solved_below=0.0,
        run_dir=run_dir,
        resume=resume,
        progress=False,
    )


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
        run(request["run_dir"], request["resume"])
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
