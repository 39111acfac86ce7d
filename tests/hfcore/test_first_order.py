"""First-order training: gradients on the fused ops, and a run beside the same run of a sweep."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import hfcore as hf
from hfcore.nets.grouped import grouped_gradient
from hfcore.problems import Addition, Problem, Reconstruction
from hfcore.sweeps import AutoencoderStart, RnnStart, Start
from hfcore.training import Callback, Scheduled, TrainState
from hfcore.training.gradients import (
    AutogradBackpropagation,
    FusedBackpropagation,
    backpropagation,
)
from hfcore.training.steps import FirstOrderStepper

ADDITION = Addition(10)
IMAGES = Reconstruction("curves", images=40)
CASES: dict[str, tuple[Problem, Start]] = {
    "addition": (ADDITION, RnnStart(hidden_size=20)),
    "images": (IMAGES, AutoencoderStart((784, 7, 3))),
}
UPDATES, BATCH = 25, 8
OPTIMISERS = {"nag": hf.NAG, "cm": hf.ClassicalMomentum}
SCHEDULES = {"delayed": hf.schedules.Delayed, "increasing": hf.schedules.Increasing}


def train(model: nn.Module, problem: Problem, optimizer: Any, **options: Any) -> hf.TrainResult:
    settings: dict[str, Any] = {
        "minibatches": UPDATES * BATCH / 1000,
        "batch_size": BATCH,
        "test_size": 20,
        "progress": False,
    }
    return hf.train(model, problem, optimizer, **{**settings, **options})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["nag", "cm", "sgd"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_has_the_bits_of_the_same_run_of_a_sweep(
    name: str, method: str, schedule: str
) -> None:
    problem, start = CASES[name]
    rate, final = 0.01, 10
    swept = hf.sweep(
        problem,
        {"learning_rate": [rate / 3, rate], "momentum": [0.95, 0.99], "method": [method]},
        seeds=[3],
        start=start,
        updates=UPDATES,
        batch_size=BATCH,
        schedule=schedule,  # type: ignore[arg-type]
        final_updates=final,
        weight_decay=1e-4,
        test_every=UPDATES,
        test_size=20,
        progress=False,
    )
    (row,) = (
        r for r in swept.rows() if r["learning_rate"] == rate and r["momentum"] in (0.0, 0.99)
    )
    model = start.build(problem, 3)
    callbacks: list[Callback] = []
    if method == "sgd":
        optimizer: Any = hf.SGD(model, lr=rate, weight_decay=1e-4)
    else:
        optimizer = OPTIMISERS[method](model, lr=rate, weight_decay=1e-4)
        momentum = hf.schedules.Final(SCHEDULES[schedule](0.99), UPDATES, updates=final)
        callbacks = [Scheduled(momentum=momentum)]
    result = train(model, problem, optimizer, seed=3, callbacks=callbacks)
    assert result.iterations == UPDATES
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert torch.equal(theta, swept.parameters[row["run"]])
    wanted = row["error"] if name == "images" else row["wrong"]
    # a sum of float64 numbers that were float32 before, in another order
    assert result.test_error == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_gradient_is_that_of_autograd(name: str, dtype: torch.dtype) -> None:
    problem, start = CASES[name]
    model = start.build(problem, 1).to(dtype)
    batch = problem.batch(BATCH, np.random.default_rng(0), dtype)
    fused = backpropagation(model, problem.loss, BATCH)
    assert isinstance(fused, FusedBackpropagation)
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)  # what is there is overwritten
    value = fused(batch)
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    oracle = copy.deepcopy(model).double()
    for p in oracle.parameters():
        p.grad = torch.full_like(p, torch.nan)
    exact = batch._replace(inputs=batch.inputs.double(), targets=batch.targets.double())
    expected = AutogradBackpropagation(oracle, problem.loss, BATCH)(exact)
    assert value == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-12)
    # sums of at most 784·8 products
    unit = 2**-24 if dtype == torch.float32 else 2**-53
    for (path, p), gradient in zip(oracle.named_parameters(), found, strict=True):
        assert p.grad is not None
        scale = float(p.grad.abs().max())
        torch.testing.assert_close(
            gradient.double(), p.grad, rtol=0, atol=100 * unit * max(scale, 1e-3), msg=path
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
        lambda p: hf.NAG(p, lr=0.01, momentum=0.9),
    ],
    ids=["sgd", "adam", "lbfgs", "nag"],
)
def test_any_optimiser_moves_as_it_does_on_autograd(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, start = CASES["addition"]
    ours, theirs = (start.build(problem, 0).double() for _ in range(2))
    train(ours, problem, make(ours.parameters()), minibatches=5 * BATCH / 1000)
    monkeypatch.setattr(
        "hfcore.training.steps.backpropagation",
        lambda *args: AutogradBackpropagation(*args[:4]),  # without the axes of cases
    )
    train(theirs, problem, make(theirs.parameters()), minibatches=5 * BATCH / 1000)
    before = start.build(problem, 0).double()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-12)
    moved = zip(ours.parameters(), before.parameters(), strict=True)
    assert any(not torch.equal(p, q) for p, q in moved)


MOMENTUM = {
    "sgd": lambda p: hf.SGD(p, lr=0.01),
    "cm": lambda p: hf.ClassicalMomentum(p, lr=0.01, momentum=0.9),
    "nag": lambda p: hf.NAG(p, lr=0.01, momentum=0.9, weight_decay=0.1),
}


def stepped(
    problem: Problem, start: Start, make: Any, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    """Five updates on the same batches."""
    model = start.build(problem, 0)
    opt = make(model.parameters())
    stepper = FirstOrderStepper(model, problem, opt, BATCH, **options)
    generator = np.random.default_rng(0)
    losses = [
        stepper.step([problem.batch(BATCH, generator, torch.float32)]).stats["loss"]
        for _ in range(5)
    ]
    return model, opt, losses


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", MOMENTUM)
def test_the_update_in_one_go_has_the_bits_of_a_closure(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (*CASES[name], MOMENTUM[method])
    whole, opt, losses = stepped(*given, gradients=False)
    assert all(p.grad is None for p in whole.parameters())
    kept, _, kept_losses = stepped(*given)
    # a closure that offers nothing more is called where its gradient is wanted
    monkeypatch.setattr("hfcore.optimisers.momentum_base.UpdatingClosure", type("Nothing", (), {}))
    parts, other, parts_losses = stepped(*given)
    assert losses == kept_losses == parts_losses
    for p, k, q in zip(whole.parameters(), kept.parameters(), parts.parameters(), strict=True):
        assert torch.equal(p, k)
        assert torch.equal(p, q)
        assert torch.equal(opt.state[p]["velocity"], other.state[q]["velocity"])
        assert k.grad is not None
        assert q.grad is not None
        assert torch.equal(k.grad, q.grad)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", MOMENTUM)
def test_parameters_that_do_not_lie_in_one_piece(name: str, method: str) -> None:
    """Two groups, or another order: the same bits, by the closure."""
    problem, start = CASES[name]
    want, _, losses = stepped(problem, start, MOMENTUM[method])

    def in_groups(parameters: Any) -> Any:
        first, *rest = parameters
        return MOMENTUM[method]([{"params": [first]}, {"params": rest}])

    def backwards(parameters: Any) -> Any:
        return MOMENTUM[method](list(parameters)[::-1])

    for make in (in_groups, backwards):
        got, _, others = stepped(problem, start, make)
        assert others == losses
        for p, q in zip(got.parameters(), want.parameters(), strict=True):
            assert torch.equal(p, q)


def test_what_happens_between_updates_is_seen() -> None:
    """Parameters written through .data, velocities and options: nothing is remembered."""
    problem, start = CASES["images"]
    batch = problem.batch(BATCH, np.random.default_rng(0), torch.float32)

    def run(other: bool) -> list[torch.Tensor]:
        model = start.build(problem, 0)
        opt = hf.NAG(model, lr=0.01, momentum=0.9)
        stepper = FirstOrderStepper(model, problem, opt, BATCH)
        stepper.step([batch])
        with torch.no_grad():
            for p in model.parameters():
                p.data.mul_(0.5)
                opt.state[p]["velocity"].mul_(2)
        opt.param_groups[0]["momentum"] = 0.5
        if other:  # the same values in new memory
            state = copy.deepcopy(opt.state_dict())
            model = copy.deepcopy(model)
            opt = hf.NAG(model, lr=0.01, momentum=0.9)
            opt.load_state_dict(state)
            stepper = FirstOrderStepper(model, problem, opt, BATCH)
        stepper.step([batch])
        return list(model.parameters())

    for p, q in zip(run(False), run(True), strict=True):
        assert torch.equal(p, q)


def test_hooks_of_the_optimiser_run() -> None:
    problem, start = CASES["images"]
    model = start.build(problem, 0)
    opt = hf.NAG(model, lr=0.01)
    seen: list[str] = []
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))
    decay = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    FirstOrderStepper(model, problem, opt, BATCH).step(
        [problem.batch(BATCH, np.random.default_rng(0), torch.float32)]
    )
    decay.step()
    assert seen == ["before", "after"]
    assert opt.param_groups[0]["lr"] == 0.005


def test_what_hooks_of_all_optimisers_and_the_profiler_are_shown() -> None:
    """As with torch's own wrapper of a step."""
    p = torch.nn.Parameter(torch.ones(3))
    opt = hf.ClassicalMomentum([p], lr=0.01)
    p.grad = torch.ones(3)
    seen: list[object] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.append(optimizer)

    before = register_optimizer_step_pre_hook(look)
    after = register_optimizer_step_post_hook(look)
    opt.step()
    before.remove()
    after.remove()
    opt.step()
    assert seen == [opt, opt]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        opt.step()
    ranges = [event.key for event in found.key_averages()]
    assert "Optimizer.step#ClassicalMomentum.step" in ranges


class Norms(Callback):
    """Of the gradients after every update, where there are any."""

    def __init__(self, *, reads: bool) -> None:
        self.reads_gradients = reads
        self.found: list[bool] = []

    def on_step(self, state: TrainState) -> None:
        self.found.append(all(p.grad is not None for p in state.model.parameters()))


@pytest.mark.parametrize("reads", [True, False])
def test_a_callback_finds_the_gradients_it_asks_for(reads: bool) -> None:
    problem, start = CASES["images"]
    model, norms = start.build(problem, 0), Norms(reads=reads)
    train(model, problem, hf.NAG(model, lr=0.01), callbacks=[norms])
    assert norms.found == [reads] * UPDATES


class Halved(hf.MLP):
    """Computes something else than its parameters say."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


def frozen() -> nn.Module:
    model = hf.RNN(2, 3, 1)
    model.b_h.requires_grad_(False)
    return model


def tied() -> nn.Module:
    model = hf.MLP([3, 3, 3], ["tanh", "linear"])
    model.layers[1].weight = model.layers[0].weight
    return model


def computed() -> nn.Module:
    model = hf.MLP([3, 3], ["linear"])
    torch.nn.utils.parametrizations.weight_norm(model.layers[0])
    return model


def sparse() -> nn.Module:
    return hf.RNN(2, 20, 1, sparse=True)


@pytest.mark.parametrize(
    "make", [frozen, tied, computed, sparse, lambda: Halved([3, 3], ["linear"])]
)
def test_a_changed_net_is_left_to_autograd(make: Any) -> None:
    model = make()
    assert grouped_gradient(model, hf.losses.SquaredError()) is None
    assert isinstance(
        backpropagation(model, hf.losses.SquaredError(), BATCH), AutogradBackpropagation
    )


def test_a_schedule_is_resumed(tmp_path: Path) -> None:
    problem, start = CASES["addition"]

    def run(folder: str, updates: int, **options: Any) -> tuple[nn.Module, list[float]]:
        model = start.build(problem, 0)
        seen: list[float] = []

        class Watch(Callback):
            def on_step(self, state: TrainState) -> None:
                seen.append(state.optimizer.param_groups[0]["momentum"])

        schedule = Scheduled(momentum=lambda t: 1 - 1 / (t + 2))
        train(
            model,
            problem,
            hf.NAG(model, lr=0.01),
            minibatches=updates * BATCH / 1000,
            run_dir=tmp_path / folder,
            checkpoint_every=4,
            callbacks=[schedule, Watch()],
            **options,
        )
        return model, seen

    whole, momenta = run("whole", 20)
    assert momenta == [1 - 1 / (t + 2) for t in range(1, 21)]  # after update t, for the next
    run("cut", 9)
    resumed, rest = run("cut", 20, resume=True)
    assert rest == momenta[9:]
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_schedule_of_an_unknown_option_is_named() -> None:
    problem, start = CASES["addition"]
    model = start.build(problem, 0)
    with pytest.raises(ValueError, match="speed: is no option of the optimiser"):
        train(model, problem, hf.SGD(model, lr=0.1), callbacks=[Scheduled(speed=1.0)])
