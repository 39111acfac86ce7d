"""Autoencoder runs: what they measure, when they stop, and that they resume to the bit."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.data import Dataset, curves
from hfcore.experiments import training as training_module
from hfcore.experiments.experiment import (
    FIRST_ORDER,
    METHODS,
    Experiment,
    Method,
    with_validation,
    without_validation,
)
from hfcore.experiments.training import Line, Trained, Training, errors
from hfcore.presets import AutoencoderPreset
from hfcore.training import CheckpointError, ConfigMismatchError, Limits, RunFolderError, loop
from hfcore.training import run as run_module


class Crash(Exception):
    """Stands for a kill at that moment."""


def tiny(**changes: Any) -> Experiment:
    """CURVES with few images and few units."""
    options = {**hf.presets.martens2010_curves, "cg_max_iter": 12}
    preset = AutoencoderPreset((784, 7, 3), hf.losses.LogisticCrossEntropy(), 3, options)
    return Experiment(curves(61, 17, seed=2), preset, **changes)


def go(
    folder: Path,
    iterations: int,
    method: str = "hf",
    experiment: Experiment | None = None,
    **options: Any,
) -> tuple[Training, Trained]:
    training = (experiment or tiny()).training(Method.parse(method))
    return training, training(folder, Limits(iterations=iterations), **options)


def timeless(lines: list[Line]) -> list[Line]:
    """Without what no two runs share."""
    kept = [{k: v for k, v in x.items() if k not in ("phases", "seconds")} for x in lines]
    for line in kept:
        assert line.pop("training_seconds") >= 0
    return json.loads(json.dumps(kept))  # type: ignore[no-any-return]


def bits(run: Training) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in run.model.parameters()]


def crash_at(iteration: int) -> Callable[[Line], None]:
    """Crashes after the iteration's line is logged and before its checkpoint."""

    def report(line: Line) -> None:
        if line["iteration"] == iteration:
            raise Crash

    return report


def signal_at(iteration: int, number: signal.Signals) -> Callable[[Line], None]:
    def report(line: Line) -> None:
        if line["iteration"] == iteration:
            os.kill(os.getpid(), number)

    return report


# ---- measuring


@pytest.mark.parametrize("count", [1, 5, 13])
def test_errors_are_sums_over_pixels_averaged_over_images(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "ROWS", 5)
    generator = torch.Generator().manual_seed(count)
    images = torch.rand(count, 11, generator=generator)
    model = hf.MLP([11, 11], ["linear"], generator=generator)
    s, x = model(images).double(), images.double()
    squared = errors(model, hf.losses.SquaredError(), images)
    half = 0.5 * (s - x).square().sum(1).mean().item()
    assert squared == pytest.approx((2 * half, half))
    y = torch.sigmoid(s)
    cross = -(x * y.log() + (1 - x) * (1 - y).log()).sum(1).mean().item()
    expected = ((y - x).square().sum(1).mean().item(), cross)
    assert errors(model, hf.losses.LogisticCrossEntropy(), images) == pytest.approx(expected)


def test_lines_begin_with_the_untrained_net_and_hold_every_part(tmp_path: Path) -> None:
    experiment = replace(tiny(), dataset=with_validation(tiny().dataset))
    seen: list[Line] = []
    run, result = go(tmp_path / "run", 2, experiment=experiment, report=seen.append)
    assert result.reason == "iterations"
    assert [line["iteration"] for line in result.lines] == [0, 1, 2]
    assert [line["iteration"] for line in seen] == [0, 1, 2]
    fresh = experiment.training(Method("hf"))
    for part in ("train", "test", "validation"):
        for r, line in ((fresh, result.lines[0]), (run, result.lines[2])):
            expected = errors(r.model, r.loss, getattr(r.dataset, part))
            assert (line[f"{part}_error"], line[f"{part}_loss"]) == expected
    assert result.lines[2]["cg_total"] == sum(x["cg_iterations"] for x in result.lines[1:])
    assert result.final is result.lines[2]
    assert result.seconds == pytest.approx(sum(x["seconds"] for x in result.lines))


def test_a_run_is_the_steps_of_the_optimiser(tmp_path: Path) -> None:
    run, _ = go(tmp_path / "run", 3)
    experiment = tiny()
    images = experiment.dataset.train
    model = hf.Autoencoder([784, 7, 3])
    hf.init.sparse_(model, torch.Generator().manual_seed(0), replacement=True)
    options = {**hf.presets.martens2010_curves, "cg_max_iter": 12}
    opt = hf.HessianFree(model, hf.losses.LogisticCrossEntropy(), **options)
    policy = hf.minibatches.FullGradient(images, images, curvature_batches=3)
    for i in range(3):
        opt.step(policy(i))
    assert bits(run) == [p.detach().numpy().tobytes() for p in model.parameters()]


# ---- first-order methods


@pytest.mark.parametrize("loss", [hf.losses.LogisticCrossEntropy(), hf.losses.SquaredError()])
def test_a_first_order_iteration_is_a_pass_of_plain_torch(
    loss: hf.losses.Loss, tmp_path: Path
) -> None:
    dataset = curves(23, 1)
    images = dataset.train
    models = [hf.Autoencoder([784, 5, 2], generator=_seeded()) for _ in range(2)]
    sgd = [torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9) for m in models]
    passes = hf.minibatches.Epochs(size=7, seed=4)
    training = Training(models[0], dataset, loss, sgd[0], passes)
    reports = training(tmp_path / "run", Limits(iterations=2)).lines[1:]
    policy = hf.minibatches.SmallBatches(images, images, size=7, seed=4)
    for i in range(6):
        batch = policy(i).gradient
        assert isinstance(batch, hf.Batch)
        x, s = batch.inputs, models[1](batch.inputs)
        if isinstance(loss, hf.losses.SquaredError):
            value = 0.5 * (s - x).square().sum() / 7
        else:
            value = nn.functional.binary_cross_entropy_with_logits(s, x, reduction="sum") / 7
        sgd[1].zero_grad()
        value.backward()
        sgd[1].step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert reports[0]["updates"] == 3
    assert reports[1]["loss"] < reports[0]["loss"]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_every_method_starts_from_the_same_weights_with_the_same_decay() -> None:
    runs = [tiny(seed=3, l2=0.25).training(Method(name)) for name in METHODS]
    assert len({tuple(bits(run)) for run in runs}) == 1
    for name, run in zip(METHODS, runs, strict=True):
        group = run.optimizer.param_groups[0]
        decay = group.get("l2", group.get("weight_decay"))
        assert decay == (0.0 if name == "ncg" else 0.25)  # NCG has none but in starred runs
    assert bits(tiny(seed=4).training(Method("hf"))) != bits(runs[0])
    assert tiny().weight_decay == 2e-5


@pytest.mark.parametrize(
    ("text", "expected"),
    [("hf", Method("hf")), (" nag", Method("nag")), ("adam=0.5", Method("adam", 0.5))],
)
def test_methods_by_name(text: str, expected: Method) -> None:
    assert Method.parse(text) == expected
    assert Method.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "hf=1", "lbfgs", "adam=-1", "adam=fast", "adam=nan"])
def test_bad_methods(text: str) -> None:
    with pytest.raises(ValueError, match=r"^method: got .*\(name or name=rate"):
        Method.parse(text)


def test_a_learning_rate_reaches_the_optimiser() -> None:
    for name, (kind, defaults) in FIRST_ORDER.items():
        optimizer = tiny().training(Method(name, 0.125)).optimizer
        assert isinstance(optimizer, kind)
        assert optimizer.param_groups[0]["lr"] == 0.125
        assert tiny().training(Method(name)).optimizer.defaults["lr"] == defaults["lr"]


# ---- resuming


@pytest.mark.parametrize("method", ["hf", "nag", "adam"])
@pytest.mark.parametrize(
    "crash", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(3, marks=pytest.mark.slow)]
)
def test_resumes_bitwise_after_a_crash(method: str, crash: int, tmp_path: Path) -> None:
    whole, expected = go(tmp_path / "whole", 4, method)
    with pytest.raises(Crash):
        go(tmp_path / "run", 4, method, report=crash_at(crash))
    resumed, result = go(tmp_path / "run", 4, method, resume=True)
    assert bits(resumed) == bits(whole)
    assert timeless(result.lines) == timeless(expected.lines)
    assert result.reason == "iterations"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_ends_the_run_after_its_iteration(number: signal.Signals, tmp_path: Path) -> None:
    whole, _ = go(tmp_path / "whole", 3)
    _, stopped = go(tmp_path / "run", 3, report=signal_at(1, number))
    assert stopped.reason == "interrupted"
    assert [line["iteration"] for line in stopped.lines] == [0, 1]
    resumed, result = go(tmp_path / "run", 3, resume=True)
    assert result.reason == "iterations"
    assert bits(resumed) == bits(whole)


def test_more_iterations_continue_a_finished_run(tmp_path: Path) -> None:
    whole, _ = go(tmp_path / "whole", 3)
    go(tmp_path / "run", 2)
    longer, result = go(tmp_path / "run", 3, resume=True)
    assert bits(longer) == bits(whole)
    assert [line["iteration"] for line in result.lines] == [0, 1, 2, 3]


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    go(tmp_path / "run", 1)
    with pytest.raises(ConfigMismatchError, match=r"notes\.seed is 0 there and 1 here"):
        go(tmp_path / "run", 2, experiment=tiny(seed=1), resume=True)
    with pytest.raises(ConfigMismatchError, match=r"optimizer\.l2"):
        go(tmp_path / "run", 2, experiment=tiny(l2=1e-3), resume=True)
    with pytest.raises(RunFolderError, match="already holds a run"):
        go(tmp_path / "run", 2)


def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = go(tmp_path / "run", 1)
    model = hf.Autoencoder([784, 8, 3])  # another net, and a config made to fit
    other = replace(run, model=model, optimizer=hf.HessianFree(model, run.loss))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config.pop("format")
    monkeypatch.setattr(loop, "run_config", lambda *arguments, **options: config)
    with pytest.raises(CheckpointError, match="does not fit this model and optimiser"):
        other(tmp_path / "run", Limits(iterations=2), resume=True)


# ---- stopping


class Scripted(torch.optim.SGD):
    """Makes the model reproduce images times a given factor, in a second of ``clock`` each."""

    def __init__(self, model: nn.Module, factors: list[float]) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self._weight: Tensor = model.layers[0].weight  # type: ignore[index, union-attr]
        self._factors = iter(factors)
        self.clock = 0.0

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        self.clock += 1.0
        with torch.no_grad():
            self._weight.copy_(next(self._factors) * torch.eye(len(self._weight)))
        return loss


def scripted(factors: list[float], validation: bool = True) -> Training:
    images = torch.ones(2, 3)
    model = hf.MLP([3, 3], ["linear"], generator=_seeded())
    with torch.no_grad():
        model.layers[0].weight.mul_(100)  # far off to begin with
    dataset = Dataset("x", images, images, images if validation else None, (1, 3), 1, "made up")
    passes = hf.minibatches.Epochs(size=2)
    return Training(model, dataset, hf.losses.SquaredError(), Scripted(model, factors), passes)


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    run = scripted([0.1, 0.8, 0.7, 0.75, 1.0, 1.0])
    result = run(tmp_path / "run", Limits(iterations=6), patience=2)
    assert result.reason == "early stopping"
    assert len(result.lines) == 5  # 0 to 4
    assert result.best == 2
    assert result.final["validation_error"] == pytest.approx(3 * 0.2**2)
    best = hf.load_run(tmp_path / "run", checkpoint="best").model
    torch.testing.assert_close(best.layers[0].weight, 0.8 * torch.eye(3))
    again = scripted([1.0, 1.0])
    longer = again(tmp_path / "run", Limits(iterations=6), patience=3, resume=True)
    assert longer.reason == "iterations"
    assert longer.best == 5


def test_without_early_stopping_the_last_counts(tmp_path: Path) -> None:
    result = scripted([0.9, 0.1])(tmp_path / "run", Limits(iterations=2))
    assert result.best == 2
    assert result.final["train_error"] == pytest.approx(3 * 0.9**2)


def test_early_stopping_needs_a_validation_part(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patience: early stopping needs a validation part"):
        scripted([1.0], validation=False)(tmp_path / "run", Limits(iterations=1), patience=1)
    assert not (tmp_path / "run").exists()


def test_the_limit_of_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = scripted([1.0] * 9)
    clock = SimpleNamespace(perf_counter=lambda: run.optimizer.clock)
    monkeypatch.setattr(run_module, "time", clock)
    result = run(tmp_path / "run", Limits(iterations=9, seconds=2.5))
    assert result.reason == "seconds"
    assert result.seconds == 3.0
    assert [line["seconds"] for line in result.lines] == [0.0, 1.0, 1.0, 1.0]


def test_a_run_that_diverges_ends(tmp_path: Path) -> None:
    result = scripted([1.0, math.nan, 1.0])(tmp_path / "run", Limits(iterations=3))
    assert result.reason == "diverged"
    assert len(result.lines) == 3
    assert math.isnan(result.final["train_error"])
    resumed = scripted([1.0])(tmp_path / "run", Limits(iterations=3), resume=True)
    assert resumed.reason == "diverged"
    assert len(resumed.lines) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations: got 0"),
        ({"iterations": 1, "seconds": 0.0}, "seconds: got 0.0"),
        ({"iterations": 1, "seconds": math.nan}, "seconds: got nan"),
    ],
    ids=str,
)
def test_bad_limits(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**options)


def test_bad_patience(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patience: got 0"):
        scripted([1.0])(tmp_path / "run", Limits(iterations=1), patience=0)
    assert not (tmp_path / "run").exists()


# ---- parts of the data


def test_the_last_tenth_is_held_out_where_there_is_no_validation() -> None:
    dataset = tiny().dataset
    held = with_validation(dataset)
    assert held.validation is not None
    assert torch.equal(torch.cat([held.train, held.validation]), dataset.train)
    assert len(held.validation) == 6
    assert with_validation(held) is held
    assert without_validation(held).validation is None
