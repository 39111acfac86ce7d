"""Processes that torchrun started, as its environment says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hfcore.arguments import naming_options, positive

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# After so long without an answer a process counts as lost.
TIMEOUT_SECONDS = 600.0


def started() -> bool:
    """Whether torchrun, or something that sets the same variables, started this process."""
    return all(name in os.environ for name in VARIABLES)


def restarts() -> int:
    """How often torchrun has started the processes again (``--max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def may_restart() -> bool:
    """Whether torchrun starts the processes again when one fails."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def kills_soon() -> bool:
    """Whether a signal is followed by a kill: torchrun waits 30 seconds after it handed one on."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_device(device: torch.device) -> torch.device:
    """The device of this process: of several GPUs of a machine that of its number there."""
    index: int | None = device.index  # which torch says is an int
    if device.type == "cuda" and index is None and started():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


@naming_options
@contextmanager
def started_group(
    device: torch.device | str = "cpu", *, timeout: float = TIMEOUT_SECONDS
) -> Iterator[Any]:
    """The group of all processes that torchrun started, None where it did not; ended afterwards.

    >>> with hf.distributed.started_group() as group:
    ...     optimizer = hf.HessianFree(model, loss, process_group=group)

    gloo for the CPU, NCCL for GPUs. A process that does not answer for ``timeout`` seconds ends the
    others with :class:`RankLost`. A group that was there is taken, and stays.
    """
    seconds = positive("timeout", timeout)
    if dist.is_available() and dist.is_initialized():
        yield dist.group.WORLD
        return
    if not started():
        yield None
        return
    place = local_device(torch.device(device))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = "nccl" if place.type == "cuda" else "gloo"
    limit = timedelta(seconds=seconds)
    # torchrun's own store outlives a restart, and with it the addresses of processes that ended.
    stores: Any = dist  # which does not export these two by its types
    store, rank, size = next(stores.rendezvous("env://", timeout=limit))
    store = stores.PrefixStore(f"hfcore/{restarts()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
