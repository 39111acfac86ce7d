"""One NAG update of the CURVES autoencoder, and of 16 recurrent nets at once, against the peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import hfcore as hf
from bench import autoencoder
from bench.cases import ADDITION_SMALL, Workload
from bench.interleave import Contestant, Effort, compare
from bench.peers import torch_outputs
from hfcore.bindings.momentum import Step, lookahead_point
from hfcore.flat import FlatParameters
from hfcore.nets.grouped import grouped_gradient
from hfcore.training.steps import FirstOrderStepper

# So small that the weights stay what they are over a run.
LR, MU = 1e-6, 0.9
# Relative difference of what one update moves, at a rate that moves more than rounding.
AGREEMENT, CHECK_LR = 1e-3, 1e-2
AUTOENCODER_CASES = 200
NETS = 16
# Updates of a timed turn: training does them one after the other.
UPDATES = 10


class Form(Protocol):
    """One way of doing the updates."""

    def update(self) -> object: ...

    def flat(self) -> Tensor:
        """θ + μv of all nets, one after the other."""


class InSweep:
    """Nets in step on the group axis, as a sweep trains them; one net alone is a group of one."""

    def __init__(self, model: nn.Module, loss: hf.losses.Loss, batch: hf.Batch, thetas: Tensor):
        passes = grouped_gradient(model, loss)
        assert passes is not None
        self.passes, self.data = passes, passes.prepare(batch)
        self.theta = thetas.clone()
        self.velocity = torch.zeros_like(thetas)
        self.lr = torch.full((len(thetas),), LR, dtype=torch.float64)
        self.mu = torch.full((len(thetas),), MU, dtype=torch.float64)

    def update(self) -> None:
        step = Step(self.lr, self.mu, lookahead=self.mu)
        self.passes.update(self.theta, self.velocity, self.data, step)

    def flat(self) -> Tensor:
        return lookahead_point(self.theta, self.velocity, self.mu).reshape(-1)


# ---------------------------------------------------------------------------- the autoencoder


class Trained:
    """What hf.train does in one update: hf.NAG with its closure on the fused gradient."""

    def __init__(self, load: autoencoder.Workload, lr: float) -> None:
        self.model = hf.Autoencoder(autoencoder.SIZES)
        self.model.load_state_dict(load.model.state_dict())
        self.opt = hf.NAG(self.model, lr, MU)
        task = hf.problems.Reconstruction("curves")  # for its loss alone
        self.stepper = FirstOrderStepper(self.model, task, self.opt, len(load.x), gradients=False)
        self.batch = hf.Batch(load.x, load.x)

    def update(self) -> None:
        self.stepper.step([self.batch])

    def flat(self) -> Tensor:
        with self.opt.lookahead():
            return FlatParameters(self.model).read()


class Eager:
    """nn.Sequential under autograd with torch's SGD, whose parameters are θ + μv."""

    def __init__(self, load: autoencoder.Workload, lr: float, **form: bool) -> None:
        self.x = load.x
        self.net = autoencoder.plain_torch(load)
        self.loss = nn.BCEWithLogitsLoss(reduction="sum")
        self.opt = torch.optim.SGD(self.net.parameters(), lr, MU, nesterov=True, **form)

    def update(self) -> None:
        self.opt.zero_grad()
        loss = self.loss(self.net(self.x), self.x) / len(self.x)
        loss.backward()
        self.opt.step()

    def flat(self) -> Tensor:
        return FlatParameters(self.net).read()


def swept_autoencoder(load: autoencoder.Workload, lr: float) -> InSweep:
    theta = FlatParameters(load.model).read()[None]
    loss = hf.losses.LogisticCrossEntropy()
    form = InSweep(load.model, loss, hf.Batch(load.x, load.x), theta)
    form.lr.fill_(lr)
    return form


AutoencoderForms = dict[str, Callable[[autoencoder.Workload, float], Form]]

AUTOENCODERS: AutoencoderForms = {
    "hfcore": Trained,
    "hfcore in a sweep of one": swept_autoencoder,
    "torch eager, SGD(nesterov)": Eager,
    "torch eager, SGD(nesterov, fused)": lambda load, lr: Eager(load, lr, fused=True),
}


def test_autoencoder_update(benchmark: BenchmarkFixture, effort: Effort) -> None:
    race_autoencoders(benchmark, effort, "Autoencoder NAG update", AUTOENCODERS)


def race_autoencoders(
    benchmark: BenchmarkFixture, effort: Effort, group: str, made: AutoencoderForms
) -> None:
    load = autoencoder.make(AUTOENCODER_CASES)
    start = FlatParameters(load.model).read()
    forms = {n: (lambda lr, m=m: m(load, lr)) for n, m in made.items()}
    ours, *others = raced(forms, start, repeat=UPDATES)
    compare(
        benchmark,
        replace(effort, rounds=2 * effort.rounds),  # of short turns: the machines are shared
        ours,
        others,
        group=group,
        case=f"CURVES-B{AUTOENCODER_CASES}",
        flops=load.gradient_flops,
    )


# ---------------------------------------------------------------------------- with its batches


class Drawn:
    """Batches of CURVES, one after the other as ``hf.train`` draws them."""

    problem = hf.problems.Reconstruction("curves")

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def batch(self) -> hf.Batch:
        return self.problem.batch(AUTOENCODER_CASES, self.generator)

    def by_torch(self) -> Tensor:
        """The same images, chosen by torch."""
        count = len(self.problem.images)
        chosen = self.generator.choice(count, AUTOENCODER_CASES, replace=False, shuffle=False)
        return self.problem.images[torch.from_numpy(chosen)]


class TrainedOnDrawn(Trained):
    """What ``hf.train`` does in an iteration: a batch is drawn and looked at, then the update."""

    def __init__(self, load: autoencoder.Workload, lr: float) -> None:
        super().__init__(load, lr)
        self.drawn = Drawn()

    def update(self) -> None:
        self.batch = self.drawn.batch()
        super().update()


class EagerOnDrawn(Eager):
    """The same by torch; nobody looks at the values."""

    def __init__(self, load: autoencoder.Workload, lr: float, **form: bool) -> None:
        super().__init__(load, lr, **form)
        self.drawn = Drawn()

    def update(self) -> None:
        self.x = self.drawn.by_torch()
        super().update()


TRAININGS: AutoencoderForms = {
    "hfcore": TrainedOnDrawn,
    "torch eager, SGD(nesterov)": EagerOnDrawn,
    "torch eager, SGD(nesterov, fused)": lambda load, lr: EagerOnDrawn(load, lr, fused=True),
}


def test_autoencoder_training(benchmark: BenchmarkFixture, effort: Effort) -> None:
    race_autoencoders(benchmark, effort, "Autoencoder NAG update, its batch drawn", TRAININGS)


# ---------------------------------------------------------------------------- a sweep


class OneByOne:
    """The same nets, each trained alone."""

    def __init__(self, load: Workload, thetas: Tensor, lr: float) -> None:
        self.nets = [swept_rnns(load, theta[None], lr) for theta in thetas]

    def update(self) -> None:
        for net in self.nets:
            net.update()

    def flat(self) -> Tensor:
        return torch.cat([net.flat() for net in self.nets])


class Vmapped:
    """``torch.func.vmap`` over the nets of the gradient of a plain torch loop, and NAG by hand."""

    def __init__(self, load: Workload, thetas: Tensor, lr: float) -> None:
        x, y, B = load.x, load.y[-1], load.case.B
        parts = FlatParameters(load.model).split
        self.lr = lr
        self.theta = tuple(torch.stack(p) for p in zip(*map(parts, thetas), strict=True))
        self.velocity = tuple(torch.zeros_like(p) for p in self.theta)

        def loss(parameters: tuple[Tensor, ...]) -> Tensor:
            return 0.5 / B * (torch_outputs(parameters, x, True) - y).square().sum()

        self.gradient: Callable[..., Any] = torch.func.vmap(torch.func.grad(loss))

    def _ahead(self) -> tuple[Tensor, ...]:
        return tuple(p + MU * v for p, v in zip(self.theta, self.velocity, strict=True))

    def update(self) -> None:
        gradient = self.gradient(self._ahead())
        moves = zip(self.velocity, gradient, strict=True)
        self.velocity = tuple(MU * v - self.lr * g for v, g in moves)
        self.theta = tuple(p + v for p, v in zip(self.theta, self.velocity, strict=True))

    def flat(self) -> Tensor:
        return torch.cat([p.flatten(1) for p in self._ahead()], 1).reshape(-1)


def swept_rnns(load: Workload, thetas: Tensor, lr: float) -> InSweep:
    batch = hf.Batch(load.x, load.y, load.mask)
    form = InSweep(load.model, hf.losses.SquaredError(), batch, thetas)
    form.lr.fill_(lr)
    return form


VMAP, SLOW_ROUNDS = "torch.func.vmap", 3  # seconds a call

SWEEPS: dict[str, Callable[[Workload, Tensor, float], Form]] = {
    "hfcore": swept_rnns,
    "hfcore one net after the other": OneByOne,
    VMAP: Vmapped,
}


def test_sweep_update(benchmark: BenchmarkFixture, effort: Effort) -> None:
    case = ADDITION_SMALL
    load = case.make()
    draw = torch.Generator().manual_seed(1)
    nets = [hf.RNN(case.n, case.H, case.k, generator=draw) for _ in range(NETS)]
    thetas = torch.stack([FlatParameters(net).read() for net in nets])
    forms = {n: (lambda lr, m=m: m(load, thetas, lr)) for n, m in SWEEPS.items()}
    ours, *others = raced(forms, thetas.reshape(-1))
    compare(
        benchmark,
        effort,
        ours,
        others,
        group="NAG update of a sweep",
        case=f"{NETS}-nets-{case.name}",
        # of each net as in the bench of one
        flops=NETS * (6.0 * case.H**2 + 4.0 * case.n * case.H) * case.B * case.T,
    )


def raced(
    forms: dict[str, Callable[[float], Form]], start: Tensor, *, repeat: int = 1
) -> list[Contestant]:
    """Contestants of ``repeat`` updates a turn, whose first update moves ``start`` alike."""
    want: Tensor | None = None
    contestants = []
    for name, make in forms.items():
        form = make(CHECK_LR)
        form.update()
        got = form.flat()
        want = got.clone() if want is None else want
        error = float((got - want).norm() / (want - start).norm())
        assert error <= AGREEMENT, f"{name} differs from hfcore by {error:.1e}"
        begun = perf_counter()
        form = make(LR)
        form.update()
        extra = {"difference": error}
        rounds = SLOW_ROUNDS if name == VMAP else None
        took = perf_counter() - begun
        contestants.append(
            Contestant(name, form.update, took, rounds=rounds, repeat=repeat, extra=extra)
        )
    return contestants
