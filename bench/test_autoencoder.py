"""The CURVES autoencoder: its Gauss-Newton product, and a whole HF iteration, against the peers."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from time import perf_counter

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import hfcore as hf
from bench import autoencoder, hessian_free_peers
from bench.autoencoder import Workload
from bench.conftest import Effort
from bench.interleave import Contestant, compare
from bench.peers import AGREEMENT, Peer

CG_ITERATIONS = 20
ITERATION_ROUNDS = 5


def test_product(benchmark: BenchmarkFixture, effort: Effort) -> None:
    load = autoencoder.make()
    ours, product = _contestant("hfcore", autoencoder.make_hfcore, load)
    others, absent = [], []
    for name, make in autoencoder.PEERS.items():
        try:
            peer, other = _contestant(name, make, load)
        except ImportError:
            absent.append(name)
            continue
        error = float((other - product).norm() / product.norm())
        assert error <= AGREEMENT, f"{name} differs from hfcore by {error:.1e}"
        peer.extra["difference"] = error
        others.append(peer)
    compare(
        benchmark,
        ours,
        others,
        rounds=effort.rounds,
        sgemm_size=effort.sgemm_size,
        group="Autoencoder Gauss-Newton product",
        case=f"CURVES-B{len(load.x)}",
        flops=load.flops,
        absent=absent,
    )


def _contestant(
    name: str, make: Callable[[Workload], Peer], load: Workload
) -> tuple[Contestant, torch.Tensor]:
    start = perf_counter()
    peer = make(load)
    result = peer.flat(peer.product()).clone()
    return Contestant(name, peer.product, perf_counter() - start), result


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_iteration(benchmark: BenchmarkFixture, effort: Effort, loss: str) -> None:
    """One HF step on one batch, with the same number of CG iterations for everyone.

    Cross-entropy for PyTorchHessianFree; squared error on logistic outputs for drasmuss'
    hessianfree, whose cross-entropy curvature is another one.
    """
    load = autoencoder.make()
    makers = hessian_free_peers.PEERS[loss]
    others, absent = [], []
    for name, make in makers.items():
        try:
            others.append(Contestant(name, make(load, CG_ITERATIONS), rounds=ITERATION_ROUNDS))
        except ImportError:
            absent.append(name)
    compare(
        benchmark,
        Contestant("hfcore", hfcore_iteration(load, loss)),
        others,
        rounds=min(effort.rounds, ITERATION_ROUNDS),
        sgemm_size=effort.sgemm_size,
        group="Autoencoder Hessian-free iteration",
        case=f"CURVES-B{len(load.x)}-{loss}",
        # Products alone: what everyone must do.
        flops=CG_ITERATIONS * load.flops,
        absent=absent,
    )


def hfcore_iteration(load: Workload, loss: str) -> Callable[[], hf.StepStats]:
    """A step from the same parameters and optimiser state at every call."""
    model = deepcopy(load.model)
    function = hf.losses.LogisticCrossEntropy()
    if loss == "squared":
        function = hf.losses.SquaredError()  # type: ignore[assignment]
        model = hf.MLP(model.sizes, [*model.activations[:-1], "logistic"])
        model.load_state_dict(load.model.state_dict())
    optimizer = hf.HessianFree(
        model,
        function,
        damping=45.0,
        cg_max_iter=CG_ITERATIONS,
        cg_tolerance=0.0,
        cg_evaluate_every="geometric",
        cg_backtracking="walk",
        line_search_armijo=0.01,
    )
    start = deepcopy((model.state_dict(), optimizer.state_dict()))

    def iteration() -> hf.StepStats:
        parameters, state = deepcopy(start)
        model.load_state_dict(parameters)
        optimizer.load_state_dict(state)
        stats = optimizer.step((load.x, load.x))
        assert stats.cg_iterations == CG_ITERATIONS
        return stats

    return iteration
