"""The CURVES autoencoder: its Gauss-Newton product, and a whole HF iteration, against the peers."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import hfcore as hf
from bench import autoencoder, hessian_free_peers
from bench.autoencoder import Workload
from bench.hessian_free_peers import Start
from bench.interleave import Contestant, Effort, compare
from bench.peers import agreeing

CG_ITERATIONS = 20
ITERATION_ROUNDS = 3
# λ of the first step: at the preset's 45 CG converges before its twentieth iteration, and only
# hfcore's test of progress has a switch.
DAMPING = 1.0
# drasmuss evaluates the quadratic model at the kept iterate by another product.
OTHER_PRODUCTS = {"drasmuss/hessianfree": 1}


def test_product(benchmark: BenchmarkFixture, effort: Effort) -> None:
    load = autoencoder.make()
    made = {name: partial(make, load) for name, make in autoencoder.PEERS.items()}
    case = f"CURVES-B{len(load.x)}"
    ours, others, absent = agreeing(partial(autoencoder.make_hfcore, load), made, case)
    compare(
        benchmark,
        effort,
        ours,
        others,
        group="Autoencoder Gauss-Newton product",
        case=case,
        flops=load.flops,
        absent=absent,
    )


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_iteration(benchmark: BenchmarkFixture, effort: Effort, loss: str) -> None:
    """One HF step on one batch, the second of a run, with as many CG iterations for everyone.

    Cross-entropy for PyTorchHessianFree; squared error on logistic outputs for drasmuss'
    hessianfree, whose cross-entropy has another curvature.
    """
    ours = Iteration(autoencoder.make(), loss)
    iterations: dict[str, Callable[[], int]] = {"hfcore": ours}
    absent = []
    for name, make in hessian_free_peers.PEERS[loss].items():
        try:
            iterations[name] = make(ours.start, CG_ITERATIONS)
        except ImportError:
            absent.append(name)
    products = {name: iteration() for name, iteration in iterations.items()}
    assert products["hfcore"] == CG_ITERATIONS + 1  # one more for the residual at CG's start
    for name, count in products.items():
        assert count == products["hfcore"] + OTHER_PRODUCTS.get(name, 0), name
    load = ours.start.load
    first, *rest = (
        Contestant(
            name,
            iteration,
            rounds=ITERATION_ROUNDS,
            extra={"products": products[name], "flops": products[name] * load.flops},
        )
        for name, iteration in iterations.items()
    )
    compare(
        benchmark,
        replace(effort, rounds=min(effort.rounds, ITERATION_ROUNDS)),
        first,
        rest,
        group="Autoencoder Hessian-free iteration",
        case=f"CURVES-B{len(load.x)}-{loss}",
        flops=products["hfcore"] * load.flops,
        absent=absent,
    )


class Iteration:
    """A step of hfcore from the same parameters and optimiser state at every call."""

    def __init__(self, load: Workload, loss: str) -> None:
        self.model = deepcopy(load.model)
        function: hf.losses.Loss = hf.losses.LogisticCrossEntropy()
        if loss == "squared":
            function = hf.losses.SquaredError()
            self.model = hf.MLP(load.model.sizes, [*load.model.activations[:-1], "logistic"])
            self.model.load_state_dict(load.model.state_dict())
        self.x = load.x
        self.optimizer = hf.HessianFree(
            self.model,
            function,
            damping=DAMPING,
            cg_max_iter=CG_ITERATIONS,
            cg_tolerance=0.0,
            cg_evaluate_every="geometric",
            cg_backtracking="walk",
            line_search_armijo=0.01,
        )
        self.optimizer.step((self.x, self.x))
        self.state = deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
        (kept,) = (s["cg_last"] for s in self.optimizer.state.values() if "cg_last" in s)
        assert isinstance(self.optimizer.damping, float)
        self.start = Start(
            replace(load, model=deepcopy(self.model)), self.optimizer.damping, kept.clone()
        )

    def __call__(self) -> int:
        model, optimizer = deepcopy(self.state)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        return self.optimizer.step((self.x, self.x)).products
