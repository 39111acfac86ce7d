"""A whole Hessian-free iteration on addition, T=50, batches of 1000, and where its time goes."""

from __future__ import annotations

from copy import deepcopy
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import hfcore as hf
from bench.interleave import Contestant, Effort, compare
from bench.torch_objective import TorchObjective, UncachedTorchObjective
from hfcore.nets import FusedObjective, net_of

T, B, H, BATCHES = 50, 1000, 100, 10
# The iteration that is timed starts here, with λ and the CG start of a run under way.
STEPS_BEFORE = 2
# What an iteration cannot do without: forward passes that cache activations, evaluate, multiply.
WORK = ("gradient", "curvature", "products", "backtracking", "rho", "line_search")
SLOW_ROUNDS = 3


class Iteration:
    """One HF step from the same parameters, optimiser state and data at every call."""

    def __init__(
        self,
        batches: list[hf.Batch],
        structural: float,
        backend: str | None,
        objective: type[FusedObjective] = FusedObjective,
        *,
        model: hf.RNN | None = None,
        loss: hf.losses.Loss | None = None,
    ) -> None:
        self.batches, self.backend = batches, backend
        self.model = hf.RNN(2, H, 1) if model is None else model
        hf.init.sparse_(self.model, torch.Generator().manual_seed(0))
        self.optimizer = hf.HessianFree(
            self.model,
            objective=objective(net_of(self.model, loss or hf.losses.SquaredError())),
            **{**hf.presets.rnn2011, "structural": structural},
        )
        self.stats: list[hf.StepStats] = []
        self.start_here()

    def start_here(self, other: Iteration | None = None) -> None:
        """Start every call from ``other``'s present state (or this one's own)."""
        other = other or self
        self.state = deepcopy((other.model.state_dict(), other.optimizer.state_dict()))

    def __call__(self) -> None:
        model, optimizer = deepcopy(self.state)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        with hf.use_backend(self.backend):  # type: ignore[arg-type]
            self.stats.append(self.optimizer.step(self.batches))

    def summary(self) -> dict[str, Any]:
        """The fastest step's counts, its phases, and the share of its time that is not work."""
        best = min(self.stats, key=lambda stats: stats.seconds["total"])
        work = sum(best.seconds[phase] for phase in WORK)
        # A step of one sequence: 8H² flops a product, 6H² a gradient, 2H² an evaluation.
        L = [len(batch.inputs) for batch in self.batches]
        flops = B * H**2 * (8.0 * best.products * L[0] + 6.0 * sum(L))
        flops += B * H**2 * 2.0 * best.objective_evaluations * sum(L) / len(L)
        return {
            "flops": flops,
            "products": best.products,
            "gradients": best.gradients,
            "objective_evaluations": best.objective_evaluations,
            "loss_after": best.loss_after,
            "seconds": best.seconds,
            "other_share": 1 - work / best.seconds["total"],
        }


@pytest.mark.parametrize("structural", [0.0, 0.03], ids=["plain", "structural"])
def test_iteration(benchmark: BenchmarkFixture, effort: Effort, structural: float) -> None:
    problem, generator = hf.problems.Addition(T), np.random.default_rng(0)
    problem.batch(1, generator)  # compiles the generator's kernel
    start = perf_counter()
    batches = [problem.batch(B, generator) for _ in range(BATCHES)]
    making = perf_counter() - start

    iterations = {
        "hfcore": Iteration(batches, structural, None),
        "reference backend": Iteration(batches, structural, "reference"),
    }
    if not structural:  # torch.func has no structural damping
        for name, objective in (
            ("torch.func cached linearize + vjp", TorchObjective),
            ("torch.func jvp + vjp", UncachedTorchObjective),
        ):
            iterations[name] = Iteration(batches, structural, None, objective)
    ours = iterations["hfcore"]
    for _ in range(STEPS_BEFORE):
        ours()
        ours.start_here()
    ours.stats.clear()
    for other in iterations.values():
        other.start_here(ours)

    first, *rest = (
        Contestant(name, iteration, rounds=None if iteration is ours else SLOW_ROUNDS)
        for name, iteration in iterations.items()
    )
    seconds = compare(
        benchmark,
        effort,
        first,
        rest,
        group="Hessian-free iteration",
        case=f"addition-T{T}-B{B}-H{H}-{'structural' if structural else 'plain'}",
    )
    for iteration in iterations.values():
        assert iteration.stats[0].loss == pytest.approx(ours.stats[0].loss, rel=1e-4)
    if seconds:
        for row, iteration in zip(benchmark.extra_info["rows"], iterations.values(), strict=True):
            row.update(iteration.summary())
            row["gflops"] = row["flops"] / row["min_ms"] / 1e6
            row["sgemm_share"] = row["gflops"] / benchmark.extra_info["sgemm_gflops"]
        benchmark.extra_info["batch_making_share"] = making / seconds["hfcore"]
