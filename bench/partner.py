"""A second process beside a bench: it does whatever it is told, at the same time.

The bench is rank 0 of a group of two on gloo. ``Partner.call(name)`` tells the other to call one of
its things, and returns at the moment in which both may begin. Each has a core of its own where the
system can be told so, with its threads of gloo, which else wait behind the other's computing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

# What a partner can be told, by the number that is sent.
CALLS = ("end", "product exact", "product fast", "step exact", "step fast", "entries")


class Partner:
    """The group of two while it is open; ``module`` is run with the store's path as rank 1."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __enter__(self) -> Partner:
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        path = [*sys.path, str(Path(__file__).resolve().parents[1])]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module, store],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
        )
        join(store, 0)
        return self

    def call(self, name: str) -> None:
        """Both begin now."""
        dist.broadcast(torch.tensor([CALLS.index(name)]), src=0)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.call("end")
            dist.destroy_process_group()
        else:
            self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def join(store: str, rank: int) -> None:
    """Rank 0 or 1 of the group of two."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with on_core(rank):  # which gloo's threads inherit
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)


@contextmanager
def on_core(rank: int) -> Iterator[None]:
    """This thread on the core of a rank, the first or the last that the process may use."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before) if rank else min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def told() -> str:
    """What the partner is to do next."""
    number = torch.zeros(1, dtype=torch.int64)
    dist.broadcast(number, src=0)
    return CALLS[int(number)]
