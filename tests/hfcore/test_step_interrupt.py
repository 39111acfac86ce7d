"""Ctrl-C and SIGTERM during a Hessian-free step: what is said, where it ends, what stays."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from python_process import forked
from torch import Tensor

import hfcore as hf
from hfcore.solvers import device_conjugate_gradient as device
from hfcore.solvers.conjugate_gradient import StopRule
from hfcore.step_interrupt import WITHIN, check_interrupt, interruptible_step, leave
from hfcore.training import interrupts

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Every test leaves the handlers as they were."""
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before


class Signalling:
    """A loss that sends signals to this process at chosen calls, counted from 1."""

    def __init__(self, number: int, calls: set[int]) -> None:
        self.number, self.calls, self.called = number, calls, 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.called += 1
        if self.called in self.calls:
            os.kill(os.getpid(), self.number)
        return (outputs - targets).square().mean()


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Dropout(0.0), torch.nn.Linear(4, 2)
    ).double()


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(20, 3, generator=g, dtype=torch.float64)
    return x, torch.randn(20, 2, generator=g, dtype=torch.float64)


def optimizer(model: torch.nn.Module, loss: Any, **options: Any) -> hf.HessianFree:
    return hf.HessianFree(
        model,
        loss,
        **{"damping": 0.1, "cg_max_iter": 8, "cg_evaluate_every": 1, "chunk_size": None} | options,
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def calls_of_a_step(steps: int) -> int:
    """How often the loss is called by the first steps."""
    loss = Signalling(signal.SIGINT, set())
    opt = optimizer(net(), loss)
    for _ in range(steps):
        opt.step(data())
    return loss.called


def test_ctrl_c_in_a_step_by_itself_leaves_all_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    before, after = calls_of_a_step(2), calls_of_a_step(3)
    assert after - before > 6  # gradient, curvature, iterates
    for call in range(before + 1, after):  # at the last one the step cannot be left any more
        loss = Signalling(signal.SIGINT, {call})
        model = net()
        opt = optimizer(model, loss)
        opt.step(data())
        opt.step(data())
        state, theta = copy.deepcopy(opt.state_dict()), copy.deepcopy(model.state_dict())
        with pytest.raises(hf.StepInterrupted):
            opt.step(data())
        assert same(opt.state_dict(), state)
        assert same(model.state_dict(), theta)
        assert capfd.readouterr().err.count(WITHIN) == 1
        opt.step(data())  # goes on as if nothing had been
        undisturbed = net()
        other = optimizer(undisturbed, Signalling(signal.SIGINT, set()))
        for _ in range(3):
            other.step(data())
        assert same(undisturbed.state_dict(), model.state_dict())


def test_ctrl_c_after_the_last_check_is_not_lost() -> None:
    loss = Signalling(signal.SIGINT, {calls_of_a_step(1)})
    model = net()
    opt = optimizer(model, loss)
    with pytest.raises(KeyboardInterrupt, match="after a whole step"):
        opt.step(data())
    assert opt.steps == 1


def test_a_second_ctrl_c_acts_at_once_in_a_step_by_itself() -> None:
    loss = Signalling(signal.SIGINT, {1, 2})
    opt = optimizer(net(), loss)
    with pytest.raises(KeyboardInterrupt) as raised:
        opt.step(data())
    assert not isinstance(raised.value, hf.StepInterrupted)
    assert loss.called == 2


def test_a_program_s_own_handler_is_left_alone() -> None:
    came: list[int] = []
    own: Callable[..., None] = lambda number, frame: came.append(number)  # noqa: E731
    before = signal.signal(signal.SIGINT, own)
    try:
        opt = optimizer(net(), Signalling(signal.SIGINT, {2}))
        opt.step(data())
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [signal.SIGINT]
    assert opt.steps == 1


def test_a_step_within_a_closure_of_another_keeps_the_request() -> None:
    def outer() -> None:
        with interruptible_step():
            leave()
            with interruptible_step():
                pass
            check_interrupt()

    with pytest.raises(hf.StepInterrupted):
        outer()


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_lets_the_step_end(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loss = Signalling(number, {calls_of_a_step(1) - 2})
    result = train(loss, tmp_path)
    assert (result.reason, result.iterations) == ("interrupted", 1)
    assert interrupts.AFTER_STEP in capfd.readouterr().err


def train(loss: Any, folder: Path, **options: Any) -> hf.TrainResult:
    model = net()
    return hf.train(
        model,
        data(),
        optimizer(model, loss),
        loss=loss,
        batch_size=7,
        seed=3,
        run_dir=folder,
        progress=False,
        **{"stop": hf.training.Limits(iterations=4), "checkpoint_every": 100, "metric": metric}
        | options,
    )


def metric(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def test_a_second_signal_leaves_the_step_and_a_resume_is_bitwise(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    undisturbed = Signalling(signal.SIGTERM, set())
    train(undisturbed, tmp_path / "whole")
    middle = undisturbed.called * 2 // 3
    loss = Signalling(signal.SIGTERM, {middle, middle + 1})
    result = train(loss, tmp_path / "cut")
    assert result.reason == "interrupted"
    assert 1 <= result.iterations < 4
    said = capfd.readouterr().err
    assert said.index(interrupts.AFTER_STEP) < said.index(WITHIN)
    name = f"{result.iterations:08d}.json"
    assert (tmp_path / "cut" / "checkpoints" / name).exists()
    train(Signalling(signal.SIGTERM, set()), tmp_path / "cut", resume=True)
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_a_row_of_steps_goes_back_to_its_first(tmp_path: Path) -> None:
    """Two steps an iteration; the second one is left."""
    x, y = data()

    def policy(iteration: int) -> list[hf.Batches]:
        return [hf.Batches([hf.Batch(x, y)]), hf.Batches([hf.Batch(x, y)])]

    two = calls_of_a_step(2)
    loss = Signalling(signal.SIGINT, {two - 3, two - 2})
    model = net()
    theta = copy.deepcopy(model.state_dict())
    result = hf.train(
        model,
        data(),
        optimizer(model, loss),
        batches=policy,
        loss=loss,
        metric=metric,
        run_dir=tmp_path,
        progress=False,
    )
    assert (result.reason, result.iterations) == ("interrupted", 0)
    assert same(model.state_dict(), theta)


def test_device_cg_ends_between_looks() -> None:
    """The host asks while the device's solve is under way; no further iteration is given to it."""
    A = torch.diag(torch.arange(1.0, 51.0, dtype=torch.float64))
    products: list[int] = []

    def product(v: Tensor, out: Tensor, stop: Tensor) -> Tensor:
        products.append(1)
        if len(products) == 3:
            leave()
        return torch.mv(A, v, out=out)

    class Solve:
        """Counts as the device's does; never ends by itself."""

        rz = 1.0

        def __init__(self, b: Tensor, **options: Any) -> None:
            self.b, self.done = b, 0

        def begin(self, product: Any, b: Tensor, x0: Tensor) -> None:
            pass

        def iterate(self, product: Any, key: Any) -> None:
            self.done += 1
            product(self.b, torch.empty_like(self.b), None)

        def look(self) -> tuple[int, int, int]:
            return 0, self.done, self.done

        def history(self, iterations: int) -> list[float]:
            return [0.0] * (iterations + 1)

    b = torch.ones(50, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "DeviceSolve", Solve)
        with pytest.raises(hf.StepInterrupted), interruptible_step():
            device.device_conjugate_gradient(
                product, b, torch.zeros_like(b), rule=StopRule(max_iterations=10**6), look_every=5
            )
    assert len(products) == 5


COMMAND = """
import os, signal, sys
import hfcore.cli.{module} as command
def interrupted(*args, **options):
    os.kill(os.getpid(), signal.{number})
command.{name} = interrupted
from hfcore.cli import main
main({arguments!r})
"""

COMMANDS = {
    "train": ("train", ["train", "addition"]),
    "sweep": ("sweep", ["sweep", "addition", "--learning-rate", "0.1", "--momentum", "0.9"]),
    "info": ("instruction_set", ["info"]),
}


def test_a_signal_outside_of_training_ends_every_command_alike(tmp_path: Path) -> None:
    programs = [
        COMMAND.format(module=module, name=name, number=number, arguments=arguments)
        for module, (name, arguments) in COMMANDS.items()
        for number in ("SIGINT", "SIGTERM")
    ]
    imports = "import " + ", ".join(f"hfcore.cli.{module}" for module in COMMANDS)
    for program, done in zip(programs, forked(imports, programs, cwd=tmp_path), strict=True):
        ended = done.returncode, done.stdout, done.stderr.strip()
        assert ended == (130, "", "interrupted"), (program, ended)
