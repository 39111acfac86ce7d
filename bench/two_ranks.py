"""The workload of test_distributed.py, and the second of its two processes when run as a module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

import hfcore as hf
from bench.cases import ADDITION
from bench.partner import join, on_core, told
from hfcore.distributed.ranks import Ranks

T, B, H, BATCHES = 50, 1000, 100, 10
REDUCTIONS = ("exact", "fast")


def products(group: Any = None) -> dict[str, Callable[[], object]]:
    """A Gauss-Newton product of ADDITION by reduction; without a group the plain one."""
    work = ADDITION.make()
    calls: dict[str, Callable[[], object]] = {}
    for reduction in REDUCTIONS if group is not None else ("plain",):
        told_of: dict[str, Any] = {"local": True}
        if group is not None:
            told_of = {"process_group": group, "reduction": reduction}
        A = hf.GaussNewton(
            work.model, hf.losses.SquaredError(), work.x, work.y, mask=work.mask, **told_of
        )
        # As CG calls it: an operator would also compare the vectors of all ranks.
        curvature, out = A._curvature, torch.empty_like(work.v)
        calls[reduction] = lambda c=curvature, o=out: c.product(work.v, damping=0.1, out=o)
    return calls


class Iteration:
    """One Hessian-free step from the same state at every call."""

    def __init__(self, **group: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = hf.RNN(2, H, 1)
        hf.init.sparse_(self.model, generator)
        task = hf.problems.Addition(T)
        data = hf.training.data.TrainingData(task, 0, torch.float32, torch.device("cpu"))
        self.batches = data.batches(BATCHES, B)
        self.optimizer = hf.HessianFree(self.model, task.loss, **hf.presets.rnn2011, **group)
        for _ in range(2):
            self.optimizer.step(self.batches)
        self.state = deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
        self.stats: hf.StepStats | None = None

    def __call__(self) -> None:
        model, optimizer = deepcopy(self.state)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.stats = self.optimizer.step(self.batches)


def iterations(group: Any) -> dict[str, Iteration]:
    return {r: Iteration(process_group=group, reduction=r) for r in REDUCTIONS}


Times = list[tuple[float, float]]
"""Where calls begin and end, in seconds of a clock that both processes have."""


@contextmanager
def collectives() -> Iterator[Times]:
    """The times of all collectives meanwhile; those of one within another count once."""
    found: Times = []
    originals = {name: getattr(Ranks, name) for name in ("all_gather", "all_reduce")}
    depth = [0]

    def logged(original: Any) -> Any:
        def call(*arguments: Any) -> Any:
            began = perf_counter()
            depth[0] += 1
            try:
                return original(*arguments)
            finally:
                depth[0] -= 1
                if not depth[0]:
                    found.append((began, perf_counter()))

        return call

    for name, original in originals.items():
        setattr(Ranks, name, logged(original))
    try:
        yield found
    finally:
        for name, original in originals.items():
            setattr(Ranks, name, original)


def entries(mine: Times) -> list[float]:
    """Where the other rank entered each of the collectives that ``mine`` are."""
    began = torch.tensor([begin for begin, _ in mine], dtype=torch.float64)
    every = [torch.empty_like(began) for _ in range(2)]
    dist.all_gather(every, began)
    return every[1 - dist.get_rank()].tolist()  # type: ignore[no-any-return]


def main(store: str) -> None:
    """The second process."""
    torch.set_num_threads(1)
    join(store, 1)
    by_product, by_step = products(dist.group.WORLD), iterations(dist.group.WORLD)
    last: Times = []
    while (call := told()) != "end":
        if call == "entries":
            entries(last)
            continue
        what, reduction = call.split()
        with on_core(1), collectives() as last:
            (by_product if what == "product" else by_step)[reduction]()


if __name__ == "__main__":
    main(sys.argv[1])
