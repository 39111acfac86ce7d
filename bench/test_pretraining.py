"""An epoch of the first Boltzmann machine of CURVES; a step of nonlinear CG on the whole net."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.optimize
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import hfcore as hf
from bench import autoencoder
from bench.interleave import Contestant, Effort, compare
from hfcore.flat import FlatParameters
from hfcore.pretraining import RBM, ContrastiveDivergence
from hfcore.training.steps import FirstOrderStepper

IMAGES, VISIBLE, HIDDEN, BATCH = 20_000, 784, 400, 100
RATE, MOMENTUM, WEIGHT_COST = 0.1, 0.9, 2e-4
EPOCHS = 5  # seconds all together
NCG_CASES, SEARCHES = 1000, 3


def machine() -> RBM:
    return RBM(VISIBLE, HIDDEN, generator=torch.Generator().manual_seed(0))


class Ours:
    def __init__(self) -> None:
        self.training = ContrastiveDivergence(machine(), BATCH)

    def epoch(self, images: Tensor, seed: int = 0) -> float:
        return self.training.epoch(
            images,
            learning_rate=RATE,
            momentum=MOMENTUM,
            weight_cost=WEIGHT_COST,
            generator=torch.Generator().manual_seed(seed),
        )


class ByHand:
    """The same in plain torch, as one would write it, on its BLAS."""

    def __init__(self) -> None:
        rbm = machine()
        self.W, self.b_h, self.b_v = rbm.W, rbm.b_h, rbm.b_v
        self.steps = [torch.zeros_like(t) for t in (self.W, self.b_h, self.b_v)]

    def epoch(self, images: Tensor, seed: int = 0) -> float:
        draw, total = torch.Generator().manual_seed(seed), 0.0
        for chosen in torch.randperm(len(images), generator=draw).split(BATCH):
            v0 = images[chosen]
            p0 = torch.addmm(self.b_h, v0, self.W.T).sigmoid_()
            h0 = (torch.empty_like(p0).uniform_(generator=draw) < p0).float()
            v1 = torch.addmm(self.b_v, h0, self.W).sigmoid_()
            p1 = torch.addmm(self.b_h, v1, self.W.T).sigmoid_()
            gradients = (
                (p0.T @ v0 - p1.T @ v1).div_(BATCH).sub_(self.W, alpha=WEIGHT_COST),
                (p0 - p1).mean(0),
                (v0 - v1).mean(0),
            )
            for p, step, g in zip((self.W, self.b_h, self.b_v), self.steps, gradients, strict=True):
                p.add_(step.mul_(MOMENTUM).add_(g, alpha=RATE))
            total += float((v0 - v1).square().sum())
        return total / len(images)


def test_rbm_epoch(benchmark: BenchmarkFixture, effort: Effort) -> None:
    images = hf.data.curves(IMAGES, 1).train
    ours, by_hand = Ours(), ByHand()
    first, second = ours.epoch(images), by_hand.epoch(images)
    assert abs(first - second) < 1e-2 * second, "another method"
    compare(
        benchmark,
        effort,
        Contestant("hfcore", lambda: ours.epoch(images), rounds=EPOCHS),
        [Contestant("torch by hand", lambda: by_hand.epoch(images), rounds=EPOCHS)],
        group="RBM pre-training epoch",
        case=f"N{IMAGES}-B{BATCH}-{VISIBLE}-{HIDDEN}",
        # Two products up, one down, two for the gradient.
        flops=10.0 * IMAGES * VISIBLE * HIDDEN,
    )


class Step:
    """Three line searches from the same weights at every call, as ``hf.train`` does them."""

    def __init__(self, load: autoencoder.Workload) -> None:
        self.model = hf.Autoencoder(autoencoder.SIZES)
        self.start = load.model.state_dict()
        self.optimizer = hf.NonlinearCG(self.model, line_searches=SEARCHES)
        loss = hf.losses.LogisticCrossEntropy()
        self.stepper = FirstOrderStepper(self.model, loss, self.optimizer, len(load.x))
        self.batch = hf.Batch(load.x, load.x)
        self.stats: list[hf.LineSearchStats] = []

    def __call__(self) -> None:
        self.model.load_state_dict(self.start)
        self.stepper.step([self.batch])
        assert self.optimizer.last_stats is not None
        self.stats.append(self.optimizer.last_stats)

    def summary(self) -> dict[str, Any]:
        best = min(self.stats, key=lambda stats: stats.seconds["total"])
        own = 1 - best.seconds["gradient"] / best.seconds["total"]
        return {"gradients": best.evaluations, "seconds": best.seconds, "other_share": own}


class Scipys:
    """Its nonlinear CG on the same gradients, as many iterations."""

    def __init__(self, load: autoencoder.Workload) -> None:
        self.objective = hf.objective_for(load.model, hf.losses.LogisticCrossEntropy())
        self.data = self.objective.prepare(hf.Batch(load.x, load.x))
        self.start = FlatParameters(load.model).read()
        self.evaluations = 0

    def gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.from_numpy(theta).to(self.start.dtype)
        loss, gradient = self.objective.gradient(self.data, at)
        return loss, gradient.double().numpy()

    def __call__(self) -> None:
        found = scipy.optimize.minimize(
            self.gradient, self.start.double().numpy(), jac=True, method="CG",
            options={"maxiter": SEARCHES},
        )  # fmt: skip
        self.evaluations = found.nfev


def test_ncg_step(benchmark: BenchmarkFixture, effort: Effort) -> None:
    load = autoencoder.make(NCG_CASES)
    ours, theirs = Step(load), Scipys(load)
    seconds = compare(
        benchmark,
        effort,
        Contestant("hfcore", ours),
        [Contestant("SciPy's CG", theirs)],
        group="Nonlinear CG step",
        case=f"CURVES-B{NCG_CASES}-{SEARCHES}-searches",
    )
    if seconds:
        first, second = benchmark.extra_info["rows"]
        first.update(ours.summary())
        second.update(gradients=theirs.evaluations)
        for row in (first, second):
            row["gflops"] = row["gradients"] * load.gradient_flops / row["min_ms"] / 1e6
            row["sgemm_share"] = row["gflops"] / benchmark.extra_info["sgemm_gflops"]
