"""Forks the ranks of every request; see :mod:`ranks`."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.tensorboard  # here, so that the ranks find it loaded

import hfcore
import hfcore.sweeps.plots
import hfcore.training.plots
from ranks import Failed, cases

LOADED = hfcore, torch.utils.tensorboard


def serve() -> None:
    torch.set_num_threads(1)
    # What is imported and compiled at first use, before the first fork.
    for kind in cases.KINDS:
        cases.products(None, kind=kind, dtype=torch.float64)
    with tempfile.TemporaryDirectory() as folder:
        cases.trained(None, optimizer="hf", run_dir=folder, iterations=1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what ranks print is no answer
    for line in sys.stdin:
        size, case, arguments, folder, timeout = pickle.loads(bytes.fromhex(line.strip()))
        pids, port = [], free_port()
        for rank in range(size):
            pid = os.fork()
            if pid == 0:
                one(rank, size, case, arguments, Path(folder), port)
            pids.append(pid)
        statuses = waited(pids, timeout)
        answers.write((" ".join(map(str, statuses)) + "\n").encode())
        answers.flush()


def waited(pids: list[int], timeout: float) -> list[int]:
    """How each ended; those that do not within the time are killed."""
    statuses: dict[int, int] = {}
    end = time.monotonic() + timeout
    while len(statuses) < len(pids):
        for pid in pids:
            if pid not in statuses:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    statuses[pid] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > end:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return [statuses[pid] for pid in pids]


def free_port() -> int:
    """For the store of ranks that start their group themselves."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port: int = s.getsockname()[1]
        return port


def one(
    rank: int, size: int, case: str, arguments: dict[str, Any], folder: Path, port: int
) -> None:
    result: Any
    try:
        if case not in cases.STARTED:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/store",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=20),
            )
        else:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost"}
            os.environ["MASTER_PORT"] = str(port)
        result = getattr(cases, case)(dist.group.WORLD, **arguments)
    except BaseException as error:
        if os.environ.get("RANKS_SHOW"):
            import traceback

            traceback.print_exc()
        result = Failed(type(error).__name__, str(error))
    path = folder / str(rank)
    path.with_suffix(".part").write_bytes(pickle.dumps(result))
    path.with_suffix(".part").rename(path)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    serve()
