"""The processes that work on one net, and the few things they tell one another.

Everything but sums of vectors goes through :class:`Ranks`: numbers and texts that all exchange,
what the first process alone does, and errors, which reach every process with the rank that had
them. Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hfcore.arguments import flag
from hfcore.cut_parameters import is_cut as is_part

T = TypeVar("T")

# By the name that torch 2.13 gave it, or the one before.
gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

# Bytes beyond those of an all-reduce which gloo moves in the time of its second round of messages.
SECOND_ROUND_BYTES = 256 << 10

WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")


class RankLost(RuntimeError):
    """A process of the group has ended, or did not answer within the group's timeout."""


class RankFailed(RuntimeError):
    """Another process of the group failed; the message names its rank and says why."""


class Ranks:
    """The processes of a ``group`` of torch.distributed, or this one alone (None).

    A copy is the same object.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.size: int = 1 if group is None else dist.get_world_size(group)
        self.rank: int = 0 if group is None else dist.get_rank(group)
        self.backend: str = "" if group is None else str(dist.get_backend(group))

    def __deepcopy__(self, memo: object) -> Ranks:
        return self

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where what is exchanged must lie."""
        cuda = self.backend == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")

    # ---- collectives

    def all_reduce(self, values: Tensor) -> None:
        """Σ over the ranks of ``values […]``, in place; of one layout on every rank."""
        if self._gathers(values):
            torch.sum(self.all_gather(values), 0, out=values)
            return
        with self._answering():
            dist.all_reduce(values, group=self.group)

    def _gathers(self, values: Tensor) -> bool:
        """Whether all vectors are here sooner than their sum is, which takes two rounds."""
        size = values.numel() * values.element_size()
        return self.backend == "gloo" and (self.size - 2) * size <= self.size * SECOND_ROUND_BYTES

    def all_gather(self, values: Tensor) -> Tensor:
        """``values […]`` of every rank, ``[size, …]``; of one shape on every rank."""
        if self.size == 1:
            return values.unsqueeze(0)
        every = values.new_empty(self.size, *values.shape)
        with self._answering():
            gather(every.view(-1), values.reshape(-1), group=self.group)
        return every

    def broadcast(self, values: Tensor) -> Tensor:
        """``values […]`` of the first rank, in place; the same shape and dtype on every rank."""
        if self.size > 1:
            # A copy: what torch.distributed writes to does not count as written to.
            sent = values.detach().to(self.device, copy=True).contiguous()
            with self._answering():
                dist.broadcast(sent, group=self.group, group_src=0)
            values.detach().copy_(sent)
        return values

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RankLost(
                f"process_group: a process of the {self.size} has ended, or did not answer (rank "
                f"{self.rank} waited for it); start all of them again, a run with resume"
            ) from error

    # ---- small things

    def integers(self, values: Sequence[int]) -> list[list[int]]:
        """A few numbers of 64 bits of every rank, by rank."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(list(values), dtype=torch.int64, device=self.device)
        every: list[list[int]] = self.all_gather(mine).tolist()
        return every

    def numbers(self, values: Sequence[float]) -> list[list[float]]:
        """The same for floats."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        every: list[list[float]] = self.all_gather(mine).tolist()
        return every

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return flag if self.size == 1 else any(map(any, self.integers([flag])))

    def texts(self, text: str) -> list[str]:
        """A text of every rank, by rank."""
        if self.size == 1:
            return [text]
        data = text.encode()
        lengths = [length for (length,) in self.integers([len(data)])]
        padded = torch.zeros(max(*lengths, 1), dtype=torch.uint8, device="cpu")
        padded[: len(data)] = _bytes(data)
        every = self.all_gather(padded.to(self.device)).cpu()
        return [
            row[:length].numpy().tobytes().decode()
            for row, length in zip(every, lengths, strict=True)
        ]

    def sent(self, data: bytes) -> bytes:
        """What the first rank has."""
        if self.size == 1:
            return data
        (length,) = self.integers([len(data)])[0]
        buffer = (
            _bytes(data) if self.first else torch.empty(length, dtype=torch.uint8, device="cpu")
        )
        if length:
            self.broadcast(buffer)
        return buffer.numpy().tobytes()

    # ---- errors that reach all

    def together(self, work: Callable[[], T]) -> T:
        """``work()``, which exchanges nothing; where it fails on some rank, an error on all."""
        if self.size == 1:
            return work()
        result: Any = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as failure:
            error = failure
        if self.any(error is not None):
            self.fail(error)
        return result  # type: ignore[no-any-return]

    def on_first(self, work: Callable[[], T]) -> T | None:
        """``work()`` of the first rank, None on the others; its error is an error on all."""
        return self.together(lambda: work() if self.first else None)

    def fail(self, error: Exception | None) -> None:
        """Called by all where some failed: raises this rank's own error, or those of others."""
        told = "" if error is None else f"{type(error).__name__}: {error}"
        texts = self.texts(told)
        if error is not None:
            raise error
        failed = [f"rank {rank} failed: {text}" for rank, text in enumerate(texts) if text]
        raise RankFailed("; ".join(failed))


def _bytes(data: bytes) -> Tensor:
    return (
        torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if data
        else torch.empty(0, dtype=torch.uint8, device="cpu")
    )


def ranks_of(
    what: str, process_group: Any, local: bool, model: Any = None, *, serves_parts: bool = False
) -> Ranks | None:
    """The processes that ``what`` is to work with; None: this one alone.

    ``serves_parts``: whether it takes a model cut by ``fully_shard``.

    Raises ValueError where there are several and nothing says whether they work on one net, for a
    group without the caller, and for parameters that are cut over the processes; TypeError for
    what is no group.
    """
    flag("local", local)
    if process_group is not None and local:
        raise ValueError("local: got True beside a process_group, need one of the two")
    several = world_size() > 1
    if several and is_cut(model) and not (serves_parts and _is_sharded(model)):
        raise ValueError(
            f"model: parameters of this {type(model).__name__} are cut over the processes, need "
            "them whole in each: a plain module with process_group=, or DistributedDataParallel; "
            "hf.HessianFree(…, curvature='hessian_fd') takes a module cut by fully_shard"
        )
    if several and local and is_cut(model):
        raise ValueError("local: got True for parameters that are cut over the processes")
    if process_group is None:
        if local and several and is_wrapped(model):
            raise ValueError(
                f"model: got a {type(model).__name__}, which averages gradients over "
                f"{world_size()} processes, beside local=True; need the module inside, or "
                "process_group="
            )
        if not local:
            check_one_process(what)
        return None
    if isinstance(process_group, Ranks):
        return process_group
    if isinstance(process_group, int) and process_group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("process_group: this process is not in it, need a group that it is in")
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"process_group: got {type(process_group).__name__}, need a ProcessGroup such as "
            "torch.distributed.group.WORLD"
        )
    if dist.get_rank(process_group) < 0:
        raise ValueError("process_group: this process is not in it, need a group that it is in")
    return Ranks(process_group)


def check_local(what: str, local: Any) -> None:
    """``local`` of something that takes no group: True wherever several processes run.

    Raises TypeError or ValueError.
    """
    if not flag("local", local):
        check_one_process(what, sums=False)


def check_one_process(what: str, *, sums: bool = True) -> None:
    """Raise ValueError where several processes run, each of which would go its own way.

    ``sums``: whether ``what`` takes a group.
    """
    size = world_size()
    if size < 2:
        return
    if not sums:
        raise ValueError(
            f"local: got False in one of {size} processes, need {what}(…, local=True), which is of "
            "this process alone"
        )
    raise ValueError(
        f"process_group: got None in one of {size} processes, which would drift apart; need "
        f"{what}(…, process_group=torch.distributed.group.WORLD) to work together, or local=True "
        "for a net of this process alone"
    )


def world_size() -> int:
    """Processes of torch.distributed, 1 where it does not run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_wrapped(model: Any) -> bool:
    """Whether a module's gradients are averaged over processes by one of torch's wrappers."""
    return type(model).__name__ in WRAPPERS


def is_cut(model: Any) -> bool:
    """Whether a process holds a part of the parameters alone."""
    if type(model).__name__ == "FullyShardedDataParallel":
        return True
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    return any(map(is_part, parameters))


def _is_sharded(model: Any) -> bool:
    """Whether it was cut by ``torch.distributed.fsdp.fully_shard``: parameters are DTensors."""
    return all(map(is_part, model.parameters()))


def unwrapped(model: Any) -> Any:
    """The module inside of DistributedDataParallel, else what was given."""
    return model.module if type(model).__name__ == WRAPPERS[0] else model
