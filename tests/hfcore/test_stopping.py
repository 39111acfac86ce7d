"""Limits, early stopping, the best model and phases: why a run stops, and that it resumes so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.training import (
    BestModel,
    Callback,
    CheckpointError,
    EarlyStopping,
    Limits,
    Phased,
    TrainState,
    read_metrics,
)

SQUARED = hf.losses.SquaredError()
VALUES = [5.0, 3.0, 4.0, math.nan, 3.0, 2.0, 2.5, 2.25, 2.125, 1.0]


@pytest.fixture(autouse=True)
def _draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcore.training.plots.draw_plots", lambda *a, **options: ())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def net() -> hf.MLP:
    generator = torch.Generator().manual_seed(0)
    return hf.MLP([3, 4, 2], ["tanh", "linear"], dtype=torch.float64, generator=generator)


DATA = noise(12, 3), noise(12, 2, seed=1)
OTHER = noise(9, 3, seed=2), noise(9, 2, seed=3)


def train(model: nn.Module, **options: Any) -> hf.TrainResult:
    given: dict[str, Any] = {
        "stop": Limits(iterations=10),
        "loss": SQUARED,
        "test_every": 1,
        "checkpoint_every": 1,
        "progress": False,
    }
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.3)
    return hf.train(model, options.pop("data", DATA), optimizer, **{**given, **options})


class Told(Callback):
    """A column of given values."""

    def measure(self, state: TrainState) -> Mapping[str, Any]:
        return {"told": VALUES[state.iteration - 1]}


class Seen(Callback):
    """Remembers the parameters after every iteration."""

    def __init__(self) -> None:
        self.states: dict[int, Tensor] = {}

    def on_step(self, state: TrainState) -> None:
        self.states[state.iteration] = flat(state.model)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---- limits


@pytest.mark.parametrize(
    ("limits", "reason", "iterations"),
    [
        (Limits(iterations=3), "iterations", 3),
        (Limits(minibatches=0.03), "budget", 3),  # of 12 cases each
        (Limits(iterations=5, minibatches=0.02), "budget", 2),
        (Limits(iterations=2, minibatches=100), "iterations", 2),
        (Limits(seconds=1e-9), "seconds", 1),
    ],
)
def test_the_first_limit_stops_the_run(limits: Limits, reason: str, iterations: int) -> None:
    result = train(net(), stop=limits)
    assert (result.reason, result.iterations) == (reason, iterations)


def test_seconds_are_those_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(Callback):
        def measure(self, state: TrainState) -> Mapping[str, Any]:
            clock[0] += 100.0
            return {}

    class Ticking(hf.SGD):
        def step(self, closure: Any = None) -> Any:
            clock[0] += 1.0
            return super().step(closure)

    monkeypatch.setattr("hfcore.training.run.time.perf_counter", lambda: clock[0])
    model = net()
    opt = Ticking(model.parameters(), lr=0.1)
    result = train(model, optimizer=opt, stop=Limits(seconds=4.0), callbacks=[Slow()])
    assert (result.reason, result.iterations) == ("seconds", 4)
    assert result.seconds == 404.0


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"iterations": 0}, ValueError, "iterations: got 0, need at least 1"),
        ({"iterations": 2.5}, TypeError, "iterations: got float, need an integer"),
        ({"iterations": True}, TypeError, "iterations: got True"),
        ({"minibatches": -1}, ValueError, "minibatches: got -1"),
        ({"seconds": math.nan}, ValueError, "seconds: got nan"),
        ({"seconds": math.inf}, ValueError, "seconds: got inf"),
    ],
)
def test_bad_limits_are_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Limits(**options)


def test_a_resume_may_have_other_limits(tmp_path: Path) -> None:
    whole, parts = net(), net()
    train(whole, stop=Limits(iterations=8), run_dir=tmp_path / "whole")
    train(net(), stop=Limits(minibatches=0.03), run_dir=tmp_path / "parts")
    train(net(), stop=Limits(seconds=1e-9), run_dir=tmp_path / "parts", resume=True)
    train(parts, stop=Limits(iterations=8), run_dir=tmp_path / "parts", resume=True)
    assert torch.equal(flat(whole), flat(parts))


# ---- early stopping


@pytest.mark.parametrize(
    ("patience", "min_delta", "stopped", "best"),
    [
        (2, 0.0, 4, 2),  # 3.0, then 4.0 and a NaN
        (3, 0.0, 5, 2),  # the second 3.0 is no better
        (4, 0.0, 10, 10),
        (4, 1.0, 6, 2),  # 2.0 is better by no more than 1
        (4, 0.5, 10, 10),
    ],
)
def test_early_stopping_waits_for_its_patience(
    patience: int, min_delta: float, stopped: int, best: int
) -> None:
    stopping = EarlyStopping(patience, "told", min_delta=min_delta)
    result = train(net(), callbacks=[stopping, Told()])
    assert result.iterations == stopped
    assert result.reason == ("early stopping" if stopped < 10 else "iterations")
    assert (stopping.iteration, stopping.value) == (best, VALUES[best - 1])


def test_greater_may_be_better() -> None:
    stopping, best = EarlyStopping(3, "told", maximize=True), BestModel("told", maximize=True)
    result = train(net(), callbacks=[Told(), stopping, best])
    assert (result.iterations, result.reason, best.iteration) == (4, "early stopping", 1)


def test_iterations_without_a_test_are_passed_over() -> None:
    stopping = EarlyStopping(3)
    result = train(
        net(),
        validation=OTHER,
        test_every=2,
        metric=lambda s, y: 1.0,
        callbacks=[stopping],
    )
    assert (stopping.iteration, result.iterations) == (2, 5)


def test_an_untrained_model_may_stay_the_best(tmp_path: Path) -> None:
    model, start = net(), flat(net())
    best = BestModel(restore=True)
    result = train(
        model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data=(DATA[0], DATA[1] + 100),
        validation=OTHER,
        test_untrained=True,
        callbacks=[EarlyStopping(3), best],
        run_dir=tmp_path / "run",
    )
    assert (result.reason, result.iterations, best.iteration) == ("early stopping", 3, 0)
    assert torch.equal(flat(model), start)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    assert "loss" not in lines[0]
    assert lines[0]["validation_error"] == best.value


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_early_stopping_and_the_best_model_are_resumed(tmp_path: Path, cut: int) -> None:
    def run(folder: str, iterations: int, resume: bool = False) -> tuple[Any, BestModel, Tensor]:
        model, best = net(), BestModel("told")
        result = train(
            model,
            callbacks=[Told(), EarlyStopping(3, "told"), best],
            stop=Limits(iterations=iterations),
            run_dir=tmp_path / folder,
            resume=resume,
        )
        return result, best, flat(model)

    whole, best, theta = run("whole", 10)
    run("parts", cut)
    again, same, parts = run("parts", 10, resume=True)
    assert torch.equal(theta, parts)
    assert (
        (again.reason, again.iterations)
        == (whole.reason, whole.iterations)
        == (
            "early stopping",
            5,
        )
    )
    assert (same.iteration, same.value) == (best.iteration, best.value) == (2, 3.0)
    assert same.model.keys() == best.model.keys()
    assert all(torch.equal(same.model[k], best.model[k]) for k in best.model)
    # what has stopped early stays so, and goes on with more patience
    ended = run("parts", 10, resume=True)[0]
    assert (ended.reason, ended.iterations) == ("early stopping", 5)


def test_more_patience_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"run_dir": tmp_path / "run"}
    assert train(net(), callbacks=[Told(), EarlyStopping(3, "told")], **options).iterations == 5
    more = train(net(), callbacks=[Told(), EarlyStopping(4, "told")], resume=True, **options)
    assert (more.reason, more.iterations) == ("iterations", 10)


def test_the_best_model_is_the_one_of_its_iteration() -> None:
    seen, best, model = Seen(), BestModel("told", restore=True), net()
    train(model, callbacks=[Told(), seen, best])
    assert best.iteration == 10
    seen, best, model = Seen(), BestModel("told", restore=True), net()
    train(model, callbacks=[Told(), seen, best], stop=Limits(iterations=8))
    assert best.iteration == 6
    assert best.metrics["told"] == 2.0
    assert torch.equal(flat(model), seen.states[6])


def test_a_metric_that_nobody_measures_is_named() -> None:
    for callback in (EarlyStopping(2), BestModel()):
        with pytest.raises(ValueError, match=r"no column is called 'validation_error', there are"):
            train(net(), callbacks=[callback])
    with pytest.raises(ValueError, match="patience: got 0"):
        EarlyStopping(0)
    with pytest.raises(ValueError, match="min_delta: got -1"):
        EarlyStopping(1, min_delta=-1)


# ---- callbacks of one's own


class Averaging(Callback):
    """A running mean of the parameters: state with tensors."""

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.count = 0

    def on_step(self, state: TrainState) -> None:
        self.count += 1
        theta = flat(state.model)
        self.mean = theta if self.mean is None else self.mean + (theta - self.mean) / self.count

    def measure(self, state: TrainState) -> Mapping[str, Any]:
        return {"norm": flat(state.model).norm(), "count": self.count}

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.count = state["mean"], state["count"]


def test_callbacks_keep_their_state_to_the_bit(tmp_path: Path) -> None:
    whole = [Averaging(), Averaging()]
    train(net(), callbacks=whole, run_dir=tmp_path / "whole")
    train(
        net(),
        callbacks=[Averaging(), Averaging()],
        stop=Limits(iterations=4),
        run_dir=tmp_path / "parts",
    )
    parts = [Averaging(), Averaging()]
    train(net(), callbacks=parts, run_dir=tmp_path / "parts", resume=True)
    for a, b in zip(whole, parts, strict=True):
        assert a.count == b.count == 10
        assert a.mean is not None
        assert b.mean is not None
        assert torch.equal(a.mean, b.mean)
    columns = [
        [(line["norm"], line["count"]) for line in read_metrics(tmp_path / f / "metrics.jsonl")]
        for f in ("whole", "parts")
    ]
    assert columns[0] == columns[1]


def test_a_callback_names_its_reason() -> None:
    class Because(Callback):
        def on_step(self, state: TrainState) -> str | None:
            return "bored" if state.iteration == 3 else None

    result = train(net(), callbacks=[Because()])
    assert (result.reason, result.iterations) == ("bored", 3)


def test_a_state_that_does_not_fit_is_one_error(tmp_path: Path) -> None:
    class Changed(Averaging):
        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            raise AttributeError("of another version")

    Changed.__name__ = "Averaging"
    options: dict[str, Any] = {"run_dir": tmp_path / "run", "stop": Limits(iterations=2)}
    train(net(), callbacks=[Averaging()], **options)
    with pytest.raises(CheckpointError, match=r"iteration 2 does not fit this .*another vers"):
        train(net(), callbacks=[Changed()], resume=True, **options)


# ---- phases


def phases(optimizer: torch.optim.Optimizer) -> hf.schedules.Phases:
    return hf.schedules.Phases(
        optimizer,
        [
            hf.schedules.Phase(
                "small",
                {"cg_max_iter": 3, "step_size": hf.schedules.Reciprocal(0.5)},
                gradient=1 / 4,
                curvature=1 / 4,
                cg_total=9,
            ),
            hf.schedules.Phase("part", {"cg_max_iter": 4}, curvature=1 / 3, cg_total=8),
            hf.schedules.Phase("whole", {"step_size": 1.0}, cg_total=4),
        ],
    )


def hessian_free(model: nn.Module) -> hf.HessianFree:
    return hf.HessianFree(model, SQUARED, damping=1.0, cg_max_iter=4, cg_tolerance=0.0)


def test_phases_run_as_by_hand(tmp_path: Path) -> None:
    by_hand = net()
    opt = hessian_free(by_hand)
    plan = phases(opt)
    batches = hf.minibatches.PhaseBatches(*DATA, seed=4)
    names = []
    while not plan.done:
        names.append(plan.present.name)
        plan.step(opt.step(batches(plan.present, plan.t)))
    model = net()
    opt = hessian_free(model)
    result = train(
        model,
        optimizer=opt,
        batches=Phased(phases(opt), seed=4),
        loss=None,
        stop=Limits(iterations=50),
        run_dir=tmp_path / "run",
    )
    assert (result.reason, result.iterations) == ("phases", len(names))
    assert torch.equal(flat(model), flat(by_hand))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["phase"] for line in lines] == names
    assert len(set(names)) == 3
    assert lines[-1]["cg_total"] == sum(line["cg_iterations"] for line in lines)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_phases_resume_to_the_bit(tmp_path: Path, cut: int) -> None:
    def run(folder: str, iterations: int, **options: Any) -> tuple[str, Tensor]:
        model = net()
        opt = hessian_free(model)
        result = train(
            model,
            optimizer=opt,
            loss=None,
            batches=Phased(phases(opt)),
            stop=Limits(iterations=iterations),
            run_dir=tmp_path / folder,
            **options,
        )
        return result.reason, flat(model)

    reason, whole = run("whole", 50)
    run("parts", cut)
    again, parts = run("parts", 50, resume=True)
    assert reason == again == "phases"
    assert torch.equal(whole, parts)
    assert run("parts", 50, resume=True)[0] == "phases"


def test_phases_may_go_on_in_the_last() -> None:
    model = net()
    opt = hessian_free(model)
    policy = Phased(phases(opt), stop=False)
    result = train(model, optimizer=opt, batches=policy, loss=None, stop=Limits(iterations=20))
    assert (result.reason, result.iterations) == ("iterations", 20)


# ---- kill -9 and signals of all of these: bitwise, see also test_checkpoint.py


def make_hf(model: nn.Module) -> torch.optim.Optimizer:
    return hessian_free(model)


POLICIES: dict[str, tuple[Callable[[nn.Module], torch.optim.Optimizer], Any]] = {
    "full": (make_hf, hf.minibatches.FullGradient(curvature_batches=3)),
    "growing": (make_hf, hf.minibatches.FullGradient(curvature_batches=6, growth=1.4)),
    "small": (make_hf, hf.minibatches.SmallBatches(size=5)),
    "hf passes": (make_hf, hf.minibatches.Epochs(size=5)),
    "adam passes": (
        lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
        hf.minibatches.Epochs(size=5),
    ),
    "nag": (lambda m: hf.NAG(m, lr=0.01, momentum=0.9), hf.minibatches.SmallBatches(size=5)),
}


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_resumes_to_the_bit(tmp_path: Path, name: str) -> None:
    make, policy = POLICIES[name]

    def run(folder: str, iterations: int, **options: Any) -> Tensor:
        model = net()
        train(
            model,
            optimizer=make(model),
            batches=policy,
            stop=Limits(iterations=iterations),
            run_dir=tmp_path / folder,
            **options,
        )
        return flat(model)

    whole = run("whole", 7)
    run("parts", 2)
    run("parts", 5, resume=True)
    assert torch.equal(run("parts", 7, resume=True), whole)
    lines = [read_metrics(tmp_path / f / "metrics.jsonl") for f in ("whole", "parts")]
    for whole_line, line in zip(*lines, strict=True):
        assert whole_line["loss"] == line["loss"]
        assert whole_line["minibatches"] == line["minibatches"]
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["data"]["batches"] == policy.config()


def test_a_run_killed_before_its_first_iteration_logs_the_untrained_model_once(
    tmp_path: Path,
) -> None:
    class Dies(Callback):
        def on_train_begin(self, state: TrainState) -> None:
            raise ZeroDivisionError

    options: dict[str, Any] = {"run_dir": tmp_path / "run", "test_untrained": True, "test": OTHER}
    with pytest.raises(ZeroDivisionError):
        train(net(), callbacks=[Dies()], **options)
    train(net(), stop=Limits(iterations=2), resume=True, **options)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize("method", ["sgd", "nag", "adam", "lbfgs"])
def test_several_batches_of_an_update_are_one(method: str) -> None:
    """The update on a list of batches of 5, 4 and 3 cases is that on all twelve together."""
    makers: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        "sgd": lambda m: hf.SGD(m, lr=0.1),
        "nag": lambda m: hf.NAG(m, lr=0.1, momentum=0.9),
        "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.1),
        "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=3),
    }
    x, y = DATA
    cuts = (slice(0, 5), slice(5, 9), slice(9, 12))
    policies = (
        lambda step: hf.Batches([hf.Batch(x[cut], y[cut]) for cut in cuts]),
        lambda step: hf.Batch(x, y),
    )
    found = []
    for policy in policies:
        model = net()
        train(model, optimizer=makers[method](model), batches=policy, stop=Limits(iterations=3))
        found.append(flat(model))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
