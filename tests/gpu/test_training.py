"""Hessian-free end to end on the GPU: it learns, repeats to the bit, and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hfcore as hf
from hfcore.solvers import device_conjugate_gradient
from hfcore.solvers.conjugate_gradient import StopRule

pytestmark = pytest.mark.gpu


def net(task: hf.problems.Addition, hidden: int = 50) -> hf.RNN:
    model = hf.RNN(task.input_size, hidden, task.output_size)
    hf.init.sparse_(model, torch.Generator().manual_seed(0))
    return model.to("cuda")


def train(task: hf.problems.Addition, model: hf.RNN, **options: Any) -> hf.TrainResult:
    opt = hf.HessianFree(model, task.loss, **hf.presets.rnn2011)
    settings = {"batch_size": 500, "test_size": 1000, "progress": False, **options}
    return hf.train(model, task, opt, **settings)


def flat(model: hf.RNN) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1).cpu() for p in model.parameters()])


def test_learns_the_addition_problem() -> None:
    task = hf.problems.Addition(length=8)
    with hf.use_backend("cuda"):
        result = train(task, net(task), minibatches=4000)
    assert result.solved


def test_two_runs_give_the_same_bits_and_so_does_a_resumed_one(tmp_path: Path) -> None:
    task = hf.problems.Addition(length=10)
    ends = []
    for _ in range(2):
        model = net(task)
        train(task, model, minibatches=150, solved_below=0.0)
        ends.append(flat(model))
    assert torch.equal(*ends)
    train(task, net(task), minibatches=60, solved_below=0.0, run_dir=tmp_path / "run")
    model = net(task)
    train(task, model, minibatches=150, solved_below=0.0, run_dir=tmp_path / "run", resume=True)
    assert torch.equal(flat(model), ends[0])


def test_a_step_decides_as_on_the_cpu() -> None:
    draw = torch.Generator().manual_seed(1)
    batch = hf.Batch(torch.rand(20, 100, 2, generator=draw), torch.rand(20, 100, 1, generator=draw))
    steps = []
    for device in ("cpu", "cuda"):
        task = hf.problems.Addition(length=10)
        model = net(task).to(device)
        opt = hf.HessianFree(model, task.loss, damping=1.0, structural=0.03)
        steps.append(opt.step(hf.Batch(batch.inputs.to(device), batch.targets.to(device))))
    host, gpu = steps
    assert (gpu.cg_stop, gpu.accepted, gpu.alpha) == (host.cg_stop, host.accepted, host.alpha)
    assert abs(gpu.cg_iterations - host.cg_iterations) <= 1
    assert gpu.loss_after == pytest.approx(host.loss_after, rel=1e-2)


@pytest.mark.parametrize("look_every", [1, 7, 50])
def test_the_host_looks_every_kth_iteration_and_never_else(
    monkeypatch: pytest.MonkeyPatch, look_every: int
) -> None:
    """Same bits whatever k; inside the loop torch refuses to wait, but for the look itself."""
    from hfcore.bindings.device_conjugate_gradient import DeviceSolve

    task = hf.problems.Addition(length=10)
    model = net(task)
    draw = torch.Generator().manual_seed(1)
    x, y = (torch.rand(12, 100, w, generator=draw).to("cuda") for w in (2, 1))
    G = hf.GaussNewton(model, task.loss, x, y, damping=0.1)
    b = torch.randn(G.shape[0], generator=draw).to("cuda")
    G @ b  # loads and compiles
    looked = 0
    look, iterate = DeviceSolve.look, DeviceSolve.iterate

    def counted_look(self: Any) -> Any:
        nonlocal looked
        looked += 1
        return look(self)

    def strict_iterate(self: Any, product: Any, key: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            iterate(self, product, key)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    rule = StopRule(max_iterations=60)

    def solve(k: int) -> Any:
        return device_conjugate_gradient.device_conjugate_gradient(
            lambda v, out, stop: G.matvec(v, out=out), b, torch.zeros_like(b), rule=rule,
            look_every=k,
        )[0]  # fmt: skip

    want = solve(1)
    monkeypatch.setattr(DeviceSolve, "look", counted_look)
    monkeypatch.setattr(DeviceSolve, "iterate", strict_iterate)
    got = solve(look_every)
    assert torch.equal(got.x, want.x)
    assert got.history == want.history
    assert looked <= got.iterations // look_every + 1


def test_a_generator_on_the_cpu_gives_the_net_of_the_cpu() -> None:
    nets = [
        hf.RNN(2, 5, 1, device=device, generator=torch.Generator().manual_seed(3))
        for device in ("cpu", "cuda")
    ]
    assert torch.equal(flat(nets[0]), flat(nets[1]))


def test_first_order_training_and_autograd() -> None:
    task = hf.problems.Addition(length=8)
    model = net(task)
    x = torch.rand(7, 5, 2, device="cuda")
    on_gpu = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    host = net(task).cpu()
    on_cpu = torch.autograd.grad(host(x.cpu()).square().sum(), list(host.parameters()))
    for a, b in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4)
    opt = torch.optim.Adam(model.parameters())
    result = hf.train(
        model, task, opt, minibatches=3, batch_size=500, test_size=100, progress=False
    )
    assert result.iterations == 6
