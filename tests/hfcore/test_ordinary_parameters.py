"""What training leaves behind is ordinary: parameters that share memory with nobody else's.

Whatever one does with the parameters of a module works before, between and after updates of every
optimiser, and what shared a parameter's memory before goes on sharing it.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import hfcore as hf

Build = Callable[[Any], Any]

OPTIMISERS: dict[str, Build] = {
    "SGD": lambda params: hf.SGD(params, 0.05),
    "ClassicalMomentum": lambda params: hf.ClassicalMomentum(params, 0.05, 0.9),
    "NAG": lambda params: hf.NAG(params, 0.05, 0.9),
    "AdaptiveNAG": lambda params: hf.AdaptiveNAG(params),
    "NonlinearCG": lambda params: hf.NonlinearCG(params),
    "HessianFree": lambda params: hf.HessianFree(params, damping=1.0),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "sequential": lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),
    "MLP": lambda: hf.MLP([3, 5, 2], ["tanh", "linear"]),
    "RNN": lambda: hf.RNN(3, 5, 2),
}


def started(model: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[model]()


def step(model: nn.Module, optimiser: Any) -> None:
    """One update, by hand, on data that suits all three."""
    x = torch.linspace(-1, 1, 24).view(2, 4, 3)
    optimiser.step(closure_of(model, optimiser, x[0] if isinstance(model, hf.MLP) else x))


def closure_of(
    model: nn.Module, optimiser: Any, x: Tensor, before: Callable[[], None] = lambda: None
) -> Callable[[], Any]:
    """What the optimiser's step calls; it calls ``before`` first."""

    def closure() -> Any:
        before()
        s = model(x)
        loss = s.square().mean()
        if isinstance(optimiser, hf.HessianFree):
            return loss, s
        optimiser.zero_grad()
        loss.backward()
        return loss

    return closure


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(a: nn.Module, b: nn.Module) -> None:
    assert all(map(torch.equal, a.parameters(), b.parameters()))


def check_ordinary(model: nn.Module, like: Callable[[], nn.Module], folder: Path) -> None:
    """What people do with a module; nothing of it may change the module."""
    own = values(model)
    for p in model.parameters():
        assert p.untyped_storage().nbytes() == p.numel() * p.element_size()
        memory = io.BytesIO()
        torch.save(p, memory)
        assert memory.tell() < 2000 + p.numel() * p.element_size()

    safetensors.torch.save_model(model, str(folder / "model.safetensors"))
    loaded = like()
    missing, unexpected = safetensors.torch.load_model(loaded, str(folder / "model.safetensors"))
    assert not missing
    assert not unexpected
    assert_same(loaded, model)
    assert len(safetensors.torch.load_file(folder / "model.safetensors")) == len(own)

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), saved(model)):
        assert_same(twin, model)
        for p in twin.parameters():
            p.data.zero_()
    assigned = like()
    assigned.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert_same(assigned, model)
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    assert_same(averaged.module, model)
    shared = copy.deepcopy(model).share_memory()
    assert_same(shared, model)
    assert all(map(torch.equal, own, model.parameters()))


def saved(model: nn.Module) -> nn.Module:
    memory = io.BytesIO()
    torch.save(model, memory)
    memory.seek(0)
    twin: nn.Module = torch.load(memory, weights_only=False)
    return twin


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_before_between_and_after(name: str, kind: str, tmp_path: Path) -> None:
    model = started(kind)
    optimiser = OPTIMISERS[name](model.parameters())
    untouched = copy.deepcopy(model)
    alone = OPTIMISERS[name](untouched.parameters())
    for _ in range(3):
        check_ordinary(model, MODELS[kind], tmp_path)
        step(model, optimiser)
        step(untouched, alone)
    check_ordinary(model, MODELS[kind], tmp_path)
    assert_same(model, untouched)
    assert not all(map(torch.equal, model.parameters(), started(kind).parameters()))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_inside_of_a_step_too(name: str, tmp_path: Path) -> None:
    """At the point where the gradient is taken; without a hook, in the closure itself."""
    model = started("sequential")
    optimiser = OPTIMISERS[name](model.parameters())
    for _ in range(2):
        step(model, optimiser)
    inside = tmp_path / "inside.safetensors"

    def save() -> None:
        safetensors.torch.save_model(model, str(inside))

    optimiser.step(closure_of(model, optimiser, torch.ones(1, 3), save))
    assert len(safetensors.torch.load_file(inside)) == 4


@pytest.mark.parametrize("name", OPTIMISERS)
def test_views_of_before_the_first_step_stay_views(name: str) -> None:
    model = started("sequential")
    weight = next(model.parameters())
    view, array, state = weight.detach()[1], weight.detach().numpy(), model.state_dict()
    optimiser = OPTIMISERS[name](model.parameters())
    for _ in range(3):
        step(model, optimiser)
        assert torch.equal(view, weight[1])
        assert np.array_equal(array, weight.detach().numpy())
        assert all(torch.equal(state[key], p) for key, p in model.named_parameters())
    fresh = started("sequential")
    other = OPTIMISERS[name](fresh.parameters())
    for _ in range(3):
        step(fresh, other)
    assert_same(fresh, model)


@pytest.mark.parametrize("name", ["SGD", "ClassicalMomentum", "NAG", "HessianFree"])
def test_another_dtype_and_back(name: str) -> None:
    model = started("sequential")
    optimiser = OPTIMISERS[name](model.parameters())
    step(model, optimiser)
    before = values(model)
    model.half().float()
    assert all(
        torch.equal(p, b.half().float()) for p, b in zip(model.parameters(), before, strict=True)
    )
    step(model, optimiser)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["SGD", "ClassicalMomentum", "NAG"])
def test_the_state_is_ordinary_too(name: str) -> None:
    model = started("sequential")
    optimiser = OPTIMISERS[name](model.parameters())
    step(model, optimiser)
    for p in model.parameters():
        velocity = optimiser.state[p]["velocity"]
        assert velocity.untyped_storage().nbytes() == velocity.numel() * velocity.element_size()


def test_gradients_that_training_leaves_are_ordinary() -> None:
    model = hf.MLP([3, 5, 2], ["tanh", "linear"])

    class Look(hf.Callback):
        def on_step(self, state: Any) -> None:
            for p in model.parameters():
                assert p.grad is not None
                assert p.grad.untyped_storage().nbytes() == p.grad.numel() * p.grad.element_size()

    class Task(hf.problems.Reconstruction):
        def __init__(self) -> None:
            self.name, self.input_size, self.output_size = "task", 3, 2
            self.loss = hf.losses.SquaredError()

        def batch(self, size: int, generator: Any, dtype: torch.dtype = torch.float32) -> hf.Batch:
            x = torch.from_numpy(generator.random((size, 3))).to(dtype)
            return hf.Batch(x, x[:, :2].contiguous())

        def test_set(self, size: int, dtype: torch.dtype = torch.float32) -> list[hf.Batch]:
            return [self.batch(4, np.random.default_rng(0), dtype)]

        def errors(self, s: Tensor, batch: hf.Batch) -> Tensor:
            return (s - batch.targets).square().sum(-1).double()

        def config(self) -> dict[str, Any]:
            return {"name": self.name}

    hf.train(
        model, Task(), hf.SGD(model, 0.1), minibatches=0.02, batch_size=5, callbacks=[Look()],
        progress=False,
    )  # fmt: skip


def test_ddp_can_be_built_around_a_trained_module(tmp_path: Path) -> None:
    model = started("sequential")
    optimiser = hf.NAG(model.parameters(), 0.05)
    step(model, optimiser)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert_same(wrapped.module, model)
        assert wrapped(torch.ones(1, 3)).shape == (1, 2)
    finally:
        torch.distributed.destroy_process_group()


def test_neighbours_by_chance_are_not_taken_for_one_piece() -> None:
    """Two parameters cut out of one array, with storages of their own, beside one another."""
    array = np.zeros(6, dtype=np.float32)
    a, b = (nn.Parameter(torch.from_numpy(array[i : i + 3])) for i in (0, 3))
    assert b.data_ptr() == a.data_ptr() + 12
    optimiser = hf.SGD([a, b], 1.0)
    a.grad, b.grad = torch.ones(3), torch.full((3,), 2.0)
    optimiser.step()
    assert torch.equal(a, torch.full((3,), -1.0))
    assert torch.equal(b, torch.full((3,), -2.0))


@pytest.mark.parametrize("lr", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25)])
def test_any_real_number_is_a_learning_rate(lr: Any) -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    for parameter, rate in ((p, lr), (q, 0.25)):
        optimiser = hf.NAG([parameter], rate, 0.5)
        for _ in range(2):
            optimiser.step(closure_on(parameter, optimiser))
    assert torch.equal(p, q)


def closure_on(p: nn.Parameter, optimiser: Any) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("name", ["SGD", "ClassicalMomentum", "NAG"])
def test_a_rate_of_zero_is_a_step_of_zero(name: str) -> None:
    """A warm-up that begins at 0, and a schedule that ends there."""
    p = nn.Parameter(torch.ones(3))
    optimiser = OPTIMISERS[name]([p])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: t / 3)
    assert optimiser.param_groups[0]["lr"] == 0
    optimiser.step(closure_on(p, optimiser))
    assert torch.equal(p, torch.ones(3))
    schedule.step()
    optimiser.step(closure_on(p, optimiser))
    assert not torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("name", ["SGD", "ClassicalMomentum", "NAG"])
@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf"), True, "0.1", 1j, None])
def test_other_rates_are_refused(name: str, lr: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="lr: got"):
        {"SGD": hf.SGD, "ClassicalMomentum": hf.ClassicalMomentum, "NAG": hf.NAG}[name](
            [nn.Parameter(torch.ones(3))], lr
        )


@pytest.mark.parametrize(
    "other",
    [
        [nn.Parameter(torch.ones(2, 3))],
        [nn.Parameter(torch.ones(3, 2, dtype=torch.float64))],
        [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(1))],
    ],
    ids=["transposed", "dtype", "count"],
)
def test_the_state_of_another_net_is_refused(other: list[nn.Parameter]) -> None:
    own = nn.Parameter(torch.ones(3, 2))
    mine, theirs = hf.NAG([own], 0.1), hf.NAG(other, 0.1)
    for p in other:
        p.grad = torch.ones_like(p)
    theirs.step(lambda: torch.zeros(()))
    before = copy.deepcopy(mine.state_dict())
    with pytest.raises(ValueError, match="state_dict: "):
        mine.load_state_dict(theirs.state_dict())
    assert mine.state_dict() == before


def test_nag_under_autocast_sees_the_lookahead_point() -> None:
    """A look at the model before the step leaves casts of θ in autocast's cache."""

    def trained(*, look: bool) -> list[Tensor]:
        model = started("sequential")
        optimiser = hf.NAG(model.parameters(), 0.5, 0.9)
        x = torch.linspace(-1, 1, 12).view(4, 3)

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = model(x).float().square().mean()
            loss.backward()
            return loss

        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                if look:
                    model(x).float().square().mean().backward()
                optimiser.step(closure)
                if look:
                    model(x)
        return values(model)

    assert all(map(torch.equal, trained(look=True), trained(look=False)))


@pytest.mark.parametrize("name", ["SGD", "ClassicalMomentum"])
def test_the_first_gradient_is_taken_where_the_parameters_stay(name: str) -> None:
    """On some machines the bits of torch's products depend on the place of a matrix."""
    model = started("sequential")
    optimiser = OPTIMISERS[name](model.parameters())
    places = []

    def closure() -> Tensor:
        places.append([p.data_ptr() for p in model.parameters()])
        loss = model(torch.ones(1, 3)).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimiser.step(closure)
    assert places[0] == places[1]


@pytest.mark.parametrize("name", ["SGD", "ClassicalMomentum", "NAG"])
def test_a_sparse_net_in_float64_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    task = hf.problems.Addition(6)

    def run(minibatches: float, folder: Path, *, resume: bool = False) -> nn.Module:
        model = hf.RNN(2, 16, 1, sparse=True, dtype=torch.float64)
        hf.init.esn_(model, torch.Generator().manual_seed(0), fan_in=3)
        optimiser = OPTIMISERS[name](model.parameters())
        hf.train(
            model, task, optimiser, minibatches=minibatches, batch_size=10, test_size=10,
            run_dir=folder, resume=resume, progress=False,
        )  # fmt: skip
        return model

    whole = run(0.06, tmp_path / "whole")
    run(0.03, tmp_path / "parts")
    assert_same(run(0.06, tmp_path / "parts", resume=True), whole)
