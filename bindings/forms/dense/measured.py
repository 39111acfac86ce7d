"""Which float32 products a dense op has under ``"bf16x6"``: the faster on this device, measured.

Six bfloat16 products in Triton have the quality of float32, so both may serve where the policy
allows them; elsewhere nothing is measured. A choice is of an op, its n and m, and the power of two
that covers its cases: never of the group, so that a net has the bits it has alone. It is made when
it is first asked for and kept in the user's cache folder, in one file for each GPU and Triton: runs
on one machine have one choice, and the same bits, until that file is removed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch

from hfcore.bindings import graphs
from hfcore.bindings.cache import cache_folder
from hfcore.bindings.triton_backend import MatmulPrecision, matmul_precision

logger = logging.getLogger("hfcore")

Float32 = Literal["ieee", "bf16x6"]
# Makes an op's products of this size and precision once, in arrays of its own.
Work = Callable[["Size", Float32], Callable[[], object]]

# More cases cost as many times more in either form.
MOST_CASES = 16384
# Calls in a recording, and how often each recording is timed.
CALLS, ROUNDS = 10, 5


class Size(NamedTuple):
    """An op on layers of n inputs and m units, for so many cases, a power of two."""

    op: str
    cases: int
    n: int
    m: int

    @classmethod
    def of(cls, op: str, B: int, n: int, m: int) -> Size:
        """That of B cases."""
        return cls(op, min(1 << (B - 1).bit_length(), MOST_CASES), n, m)


def precision(size: Size, device: torch.device, work: Work) -> MatmulPrecision:
    """What the policy says; under ``"bf16x6"`` that or ``"ieee"``, whichever is faster.

    ``work`` makes what is timed. While a CUDA graph is recorded nothing can be timed: what was not
    chosen before is ``"ieee"`` there.
    """
    asked = matmul_precision()
    if asked != "bf16x6":
        return asked
    known = _choices(device)
    if size not in known:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return "ieee"
        known[size] = _keep(_file(device), size, _measured(size, device, work))
    return known[size]


def _measured(size: Size, device: torch.device, work: Work) -> dict[Float32, float]:
    """Seconds of a call in either form; none where there is no memory for it."""
    try:
        return seconds(device, {form: work(size, form) for form in get_args(Float32)})
    except torch.OutOfMemoryError as error:
        logger.info("%s was not timed: %s", size, " ".join(str(error).split()))
        return {}


def seconds(
    device: torch.device, calls: dict[Float32, Callable[[], object]]
) -> dict[Float32, float]:
    """The least time of each of the calls on a device, replayed in turns."""
    pool = torch.cuda.graph_pool_handle()
    replays = {}
    for form, call in calls.items():
        call()  # compiles and loads
        replays[form], _ = graphs.record(partial(_repeat, call), pool, device)
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for form, replay in replays.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            end.record()
            end.synchronize()
            least[form] = min(least[form], 1e-3 * start.elapsed_time(end) / CALLS)
    return least


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(CALLS):
        call()


# ---------------------------------------------------------------------------- what is kept


@cache
def _choices(device: torch.device) -> dict[Size, Float32]:
    """Those of this process, at first what the file of the device holds."""
    return _read(_file(device))


def _file(device: torch.device) -> Path:
    triton = import_module("triton").__version__
    name = torch.cuda.get_device_name(device)
    return cache_folder() / "dense" / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}-triton-{triton}.txt"


def _keep(path: Path, size: Size, taken: dict[Float32, float]) -> Float32:
    """The faster form, or what another process wrote of this size before."""
    faster: Float32 = min(taken, key=taken.__getitem__) if taken else "ieee"
    if not taken:
        return faster
    line = " ".join([*map(str, size), faster, *(f"{form}={taken[form]:.3g}s" for form in taken)])
    logger.info("dense layers: %s", line)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:  # one write, which others' writes do not cut
            file.write(line + "\n")
    except OSError as error:
        logger.warning("%s: a choice cannot be kept: %s", path, error)
        return faster
    return _read(path).get(size, faster)


def _read(path: Path) -> dict[Size, Float32]:
    """The first choice of each size; lines that are none are passed over."""
    found: dict[Size, Float32] = {}
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        match = re.match(r"(\w+) (\d+) (\d+) (\d+) (ieee|bf16x6)( |$)", line)
        if match is not None:
            size = Size(match[1], int(match[2]), int(match[3]), int(match[4]))
            found.setdefault(size, "ieee" if match[5] == "ieee" else "bf16x6")
    return found
