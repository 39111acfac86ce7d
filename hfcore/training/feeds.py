"""Where the batches of every iteration come from, each with the state that a resume needs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hfcore.arguments import check_call
from hfcore.batches import Batch, Batches
from hfcore.minibatches import DrawnBatches
from hfcore.training.data import TrainingData, placed
from hfcore.training.parts import loaded

Work = Batches | Sequence[Batches]
T = TypeVar("T")


class Feed:
    """The batches of one iteration after the other: of one step, or of several in a row."""

    def __call__(self, iteration: int) -> Work:
        """Those of ``iteration``, from 0; called with rising numbers."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs; nothing, where the number of the iteration decides."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""

    def close(self) -> None:
        """Training has ended."""


class FreshFeed(Feed):
    """``count`` new batches of a problem each time."""

    def __init__(self, data: TrainingData, count: int, size: int) -> None:
        self._data, self._count, self._size = data, count, size

    def __call__(self, iteration: int) -> Work:
        return Batches(self._data.batches(self._count, self._size))

    def state_dict(self) -> dict[str, Any]:
        return self._data.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._data.load_state(dict(state))


class PolicyFeed(Feed):
    """What a policy says; it holds no state."""

    def __init__(self, policy: Callable[[int], Any], device: torch.device) -> None:
        check_call("batches", policy, 0)
        self._policy, self._device = policy, device

    def __call__(self, iteration: int) -> Work:
        work = _checked(self._policy(iteration))
        if isinstance(work, DrawnBatches):  # they are where the model is
            return work
        if self._device.type == "cpu":
            return work
        if isinstance(work, Batches):
            return _placed_roles(work, self._device)
        return [_placed_roles(step, self._device) for step in work]


class LoaderFeed(Feed):
    """``count`` batches of a DataLoader an iteration, pass after pass, resumable to the bit.

    The loader draws from random states of the feed's own (those of torch, NumPy and Python), so
    that the order of the cases depends on the seed alone. A resumed run begins its pass with the
    states it began with and reads again what it had read. What a dataset keeps between items is
    its own affair.
    """

    def __init__(
        self, loader: DataLoader[Any], count: int, seed: int, device: torch.device
    ) -> None:
        self._loader, self._count, self._device = loader, count, device
        self._random = _seeded(seed)
        self._generators = _generators(loader)
        self._begun: dict[str, Any] = {}
        self._iterator: Iterator[Any] | None = None
        self._read = 0

    def __call__(self, iteration: int) -> Work:
        return Batches([placed(self._next(), self._device) for _ in range(self._count)])

    def _next(self) -> Batch:
        for _ in range(2):
            if self._iterator is None:
                self._begin()
            found = self._drawing(lambda: next(self._iterator, None))  # type: ignore[arg-type]
            if found is not None:
                self._read += 1
                return loaded(found)
            self._iterator = None
        raise ValueError("data: the DataLoader gave no batch, need at least one")

    def _begin(self) -> None:
        """A new pass."""
        self._begun = {
            "random": self._random,
            "generators": [g.get_state() for g in self._generators],
        }
        self._iterator, self._read = self._drawing(lambda: iter(self._loader)), 0

    def _drawing(self, call: Callable[[], T]) -> T:
        """``call()`` with the feed's random states in place of the program's."""
        with random_kept():
            _set_random(self._random)
            try:
                return call()
            finally:
                self._random = _get_random()

    def close(self) -> None:
        """Workers of the loader end with the iterator."""
        self._iterator = None

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self._begun, "read": self._read, "random": self._random}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._iterator, self._read = None, 0
        self._random = state["random"]
        if not state["begun"]:
            return
        self._random = state["begun"]["random"]
        for generator, saved in zip(self._generators, state["begun"]["generators"], strict=True):
            generator.set_state(saved)
        self._begin()
        for _ in range(state["read"]):
            self._next()


def _checked(work: Any) -> Work:
    """What a policy gave. Raises TypeError for something that is neither batches nor a row of
    them."""
    if isinstance(work, Batch):
        return Batches(work)
    if isinstance(work, Batches | DrawnBatches):
        return work
    if isinstance(work, Sequence) and len(work) > 0 and isinstance(work[0], Batches):
        return work
    raise TypeError(
        f"batches: the policy gave {type(work).__name__}, need hf.Batches, an hf.Batch, or a list "
        "of hf.Batches, one for each step of the iteration"
    )


def _generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """Those that the loader and its sampler draw from, each once."""
    found = [getattr(owner, "generator", None) for owner in (loader, loader.sampler)]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def _placed_roles(work: Batches, device: torch.device) -> Batches:
    """Every batch on the device, one that plays several roles once."""
    done: dict[int, Batch] = {}

    def one(batch: Batch) -> Batch:
        if id(batch) not in done:
            done[id(batch)] = placed(batch, device)
        return done[id(batch)]

    roles = (
        role if role is None else one(role) if isinstance(role, Batch) else [one(b) for b in role]
        for role in (
            work.gradient,
            work.curvature,
            work.backtracking,
            work.line_search,
            work.rho,
        )
    )
    return Batches(*roles)  # type: ignore[arg-type]


def _seeded(seed: int) -> dict[str, Any]:
    with random_kept():
        torch.manual_seed(seed % 2**63)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (what a dataset may draw from)
        random.seed(seed)
        return _get_random()


@contextmanager
def random_kept() -> Iterator[None]:
    """The random states of torch, NumPy and Python are afterwards what they were."""
    before = _get_random()
    try:
        yield
    finally:
        _set_random(before)


def _get_random() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    numpy_state = (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest)
    return {"torch": torch.get_rng_state(), "numpy": numpy_state, "python": random.getstate()}


def _set_random(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, Tensor.numpy(keys).astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])
