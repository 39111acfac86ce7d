"""Work on CUDA data that is done again and again, recorded as CUDA graphs.

An update of small nets is dozens of kernels of a few microseconds, and starting each from Python
takes longer than running it. Replayed from a graph they cost the host one launch.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from hfcore.bindings.dispatch import forced_backend
from hfcore.bindings.triton_backend import matmul_precision

logger = logging.getLogger("hfcore")

T = TypeVar("T")

# Recordings kept: a sweep's cohorts times the lengths of their sequences.
MOST = 512
# Elements up to which a value on the CPU is compared with the one that is there already.
SMALL = 4096


class Graphs:
    """Recordings by key, and the arrays that what changes is put into before each replay.

    ``work`` is done as it is the first time (it compiles, loads and looks at values then), recorded
    the second, replayed from then on. It must wait for nothing and give the same launches for equal
    keys: what it reads and writes beyond what it allocates itself lies in the same places, so a key
    has those addresses in it. What it allocates and gives back is the graphs' own and holds its
    value until the next call. Work that cannot be recorded is done as it is; the reason is logged.

    All recordings of a thread and stream share one pool of memory (:class:`_Pool`): they are
    replayed on that stream, one after another.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        # None: done once; what replays it; or False: cannot be recorded.
        self._seen: OrderedDict[Hashable, Callable[[], Any] | Literal[False] | None] = OrderedDict()
        self._places: dict[Hashable, Tensor] = {}
        self._last: dict[Hashable, Tensor] = {}

    def put(self, name: str, value: Tensor, device: torch.device) -> Tensor:
        """``value [...]`` in the place of its name, shape and dtype on ``device``; no wait."""
        key = name, value.shape, value.dtype, device
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = torch.empty(value.shape, dtype=value.dtype, device=device)
        if device.type == "cpu" or value.device.type != "cpu":
            return place.copy_(value)
        if value.numel() <= SMALL:  # looking at it costs less than copying it
            last = self._last.get(key)
            if last is not None and torch.equal(last, value):
                return place
            self._last[key] = value.clone()
        # From ordinary memory the host would wait until all work before has ended.
        return place.copy_(value.pin_memory(), non_blocking=True)

    def run(self, key: Hashable, work: Callable[[], T], device: torch.device) -> T:
        """What ``work()`` gives, which is all on ``device``."""
        key = key, device, forced_backend(), matmul_precision()
        known = key in self._seen
        replay = self._seen.get(key)
        if known and replay is None:
            replay = self._recorded(work, device)
        self._keep(key, replay)
        result: T = replay() if replay else work()
        return result

    def _keep(self, key: Hashable, replay: Callable[[], Any] | Literal[False] | None) -> None:
        self._seen[key] = replay
        self._seen.move_to_end(key)
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)

    def _recorded(
        self, work: Callable[[], T], device: torch.device
    ) -> Callable[[], T] | Literal[False]:
        pool = _Pool.here(device)
        try:
            start, result = record(work, pool.handle, device)
        except RuntimeError as error:
            logger.info("not recorded as a CUDA graph: %s", " ".join(str(error).split()))
            return False
        pool.keep(start)

        def replay() -> T:
            start()
            return result

        return replay


def recordable(device: torch.device) -> bool:
    """Whether work on ``device`` can be recorded at all."""
    return device.type == "cuda"


def here(device: torch.device) -> Hashable:
    """This thread and its current stream on ``device``: what is recorded serves no other."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return threading.get_ident(), device, stream


class _Pool:
    """Memory of all recordings that are replayed on one stream by one thread.

    A pool for each :class:`Graphs` would be a new one for every solve, whose memory torch gives
    back only where it runs out; and cuBLAS keeps its workspace by stream, of which torch has 32:
    a recording could use one in the pool of another that is gone since (pytorch#193402). The last
    recording is kept, since a pool ends with its last one and its handle cannot be used again.
    """

    _all: ClassVar[dict[Hashable, _Pool]] = {}

    def __init__(self, key: Hashable) -> None:
        self._key = key
        self._last: Callable[[], None] | None = None
        self.handle: Any = torch.cuda.graph_pool_handle()

    @classmethod
    def here(cls, device: torch.device) -> _Pool:
        """That of this thread and its current stream on ``device``."""
        key = here(device)
        return cls._all.get(key) or cls(key)

    def keep(self, start: Callable[[], None]) -> None:
        """What was recorded last lives on, and the pool with it."""
        self._last = start
        self._all[self._key] = self


def record(work: Callable[[], T], pool: Any, device: torch.device) -> tuple[Callable[[], None], T]:
    """(what replays it, the result that a replay writes); nothing is done yet.

    Not by ``torch.cuda.graph``, which collects garbage and empties torch's cache each time.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        before = torch.cuda.current_stream()
        side = torch.cuda.Stream()
        side.wait_stream(before)
        with torch.cuda.stream(side):
            # Other threads may do what is forbidden while this one records.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                result = work()
            finally:
                graph.capture_end()
        before.wait_stream(side)

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, result


def recording(tensor: Tensor) -> bool:
    """Whether what is enqueued on the device of ``tensor [...]`` is recorded: no values to see."""
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
