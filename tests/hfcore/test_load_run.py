"""hf.load_run and hfcore evaluate: a run folder as objects again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from command_line import invoke
from hfcore.training import BestModel, CheckpointError, Limits, RunFolderError

SQUARED = hf.losses.SquaredError()


@pytest.fixture(autouse=True)
def _draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcore.training.plots.draw_plots", lambda *a, **options: ())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def net(**options: Any) -> hf.RNN:
    generator = torch.Generator().manual_seed(0)
    model = hf.RNN(2, 6, 1, generator=generator, **options)
    hf.init.sparse_(model, generator, fan_in=3)
    return model


def train(model: nn.Module, data: Any, optimizer: Any, folder: Path, **options: Any) -> Any:
    options.setdefault("stop", Limits(iterations=4))
    return hf.train(
        model, data, optimizer, run_dir=folder, progress=False, checkpoint_every=1, **options
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "rnn": net,
    "sparse rnn": lambda: net(sparse=True, fan_in=3),
    "logistic rnn": lambda: net(nonlinearity="logistic", dtype=torch.float64),
}
OPTIMISERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "hf": lambda m: hf.HessianFree(m, SQUARED, **hf.presets.rnn2011),
    "nag": lambda m: hf.NAG(m, lr=0.01, momentum=0.5),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, betas=(0.8, 0.9)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", OPTIMISERS)
def test_a_run_goes_on_from_what_was_loaded(tmp_path: Path, name: str, method: str) -> None:
    """Model and optimiser come back to the bit: a further step by hand is the same."""
    model = MODELS[name]()
    opt = OPTIMISERS[method](model)
    problem = hf.problems.Addition(6)
    options: dict[str, Any] = {"batch_size": 8, "test_size": 30, "solved_below": 0.0}
    if method == "hf":
        options["gradient_batches"] = 2
    result = train(model, problem, opt, tmp_path / "run", **options)
    run = hf.load_run(tmp_path / "run")
    assert type(run.model) is type(model)
    assert (run.iteration, run.result) == (4, result)
    assert run.problem is not None
    assert run.problem.config() == problem.config()
    assert run.column("iteration") == [1, 2, 3, 4]
    assert run.optimizer is not None
    for state, other in (
        (run.model.state_dict(), model.state_dict()),
        (run.optimizer.state_dict()["state"], opt.state_dict()["state"]),
    ):
        torch.testing.assert_close(dict(state), dict(other), rtol=0, atol=0)
    assert run.test() == result.test_error
    if method == "hf":
        batch = problem.batch(8, np.random.default_rng(5), next(model.parameters()).dtype)
        for net, optimiser in ((model, opt), (run.model, run.optimizer)):
            optimiser.step(batch)  # type: ignore[arg-type]
            assert net is not None
        for p, q in zip(model.parameters(), run.model.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize(
    "model",
    [
        hf.MLP([3, 5, 2], ["relu", "linear"]),
        hf.Autoencoder([3, 2]),
        hf.Autoencoder([3, 5, 4, 2], activation="tanh", code="logistic"),
    ],
    ids=lambda m: "-".join(map(str, m.sizes)),
)
def test_feed_forward_nets_come_back(tmp_path: Path, model: hf.MLP) -> None:
    x = noise(8, 3).float().abs().clamp_max(1)
    y = x[:, : model.sizes[-1]].clone()
    opt = hf.HessianFree(model, SQUARED, damping=1.0)
    train(model, (x, y), opt, tmp_path / "run", test=(x, y))
    run = hf.load_run(tmp_path / "run")
    assert isinstance(run.model, hf.MLP)
    assert type(run.model) is type(model)
    assert run.model.activations == model.activations
    assert torch.equal(run.model(x), model(x))
    assert run.problem is None
    assert run.config["data"]["train"]["inputs"]["shape"] == [8, 3]
    assert run.result is not None
    assert run.test((x, y)) == run.result.test_error
    with pytest.raises(ValueError, match="data: got None, and the data of"):
        run.test()
    with pytest.raises(KeyError, match=r"los: is no column of the metrics, need one of .*loss"):
        run.column("los")


def test_a_stacked_net_comes_back(tmp_path: Path) -> None:
    model = hf.StackedRNN(3, [4, 2], 2, nonlinearity="logistic")
    x, y = noise(5, 8, 3).float(), noise(5, 8, 2).float()
    opt = hf.HessianFree(model, SQUARED, damping=1.0)
    train(model, (x, y), opt, tmp_path / "run", test=(x, y))
    run = hf.load_run(tmp_path / "run")
    assert type(run.model) is hf.StackedRNN
    assert (run.model.hidden_sizes, run.model.nonlinearity) == ((4, 2), "logistic")
    assert torch.equal(run.model(x), model(x))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x))


def test_a_class_of_ones_own_needs_a_factory(tmp_path: Path) -> None:
    x, y = noise(8, 3).float(), noise(8, 2).float()
    model = Own()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01)
    train(model, (x, y), optimizer, tmp_path / "run", loss=nn.MSELoss())
    with pytest.raises(RunFolderError, match="model: is a Own, which hfcore does not know how to"):
        hf.load_run(tmp_path / "run")
    for given in (Own, Own()):
        run = hf.load_run(tmp_path / "run", model=given)
        assert torch.equal(run.model(x), model(x))
        assert isinstance(run.optimizer, torch.optim.RMSprop)
    with pytest.raises(CheckpointError, match="does not fit: RuntimeError"):
        hf.load_run(tmp_path / "run", model=lambda: nn.Linear(3, 2))


def test_the_best_and_any_kept_checkpoint(tmp_path: Path) -> None:
    x, y = noise(20, 3), noise(20, 2, seed=1)
    model = hf.MLP([3, 4, 2], ["tanh", "linear"], dtype=torch.float64)
    states: dict[int, list[Tensor]] = {}

    class Watch(hf.Callback):
        def on_step(self, state: hf.TrainState) -> None:
            states[state.iteration] = [p.detach().clone() for p in state.model.parameters()]

    best = BestModel()
    train(
        model,
        (x, y),
        torch.optim.SGD(model.parameters(), lr=0.4),
        tmp_path / "run",
        loss=SQUARED,
        validation=(noise(20, 3, seed=5), noise(20, 2, seed=6)),
        callbacks=[Watch(), best],
        stop=Limits(iterations=9),
        test_every=1,
        keep_checkpoints=3,
    )
    errors = hf.load_run(tmp_path / "run").column("validation_error")
    assert best.iteration == errors.index(min(errors)) + 1
    for which, iteration in (("last", 9), (8, 8), (7, 7), ("best", best.iteration)):
        run = hf.load_run(tmp_path / "run", which)  # type: ignore[arg-type]
        assert run.iteration == iteration
        for p, q in zip(run.model.parameters(), states[iteration], strict=True):
            assert torch.equal(p, q)
    with pytest.raises(CheckpointError, match="no checkpoint of iteration 5, there are 9, 8, 7"):
        hf.load_run(tmp_path / "run", 5)
    for odd in ("first", True, 2.5):
        with pytest.raises(ValueError, match="checkpoint: got"):
            hf.load_run(tmp_path / "run", odd)  # type: ignore[arg-type]


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"has no config\.json, it is not a run folder"):
        hf.load_run(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 2, "sweep": {}}')
    with pytest.raises(RunFolderError, match=r"is not a folder of hf\.train"):
        hf.load_run(tmp_path)
    model = net()
    train(model, hf.problems.Addition(6), OPTIMISERS["nag"](model), tmp_path / "run", test_size=10)
    with pytest.raises(CheckpointError, match="'best', but iteration 4 holds no best model"):
        hf.load_run(tmp_path / "run", "best")
    (tmp_path / "run" / "result.json").write_text('{"solved": 3}')
    with pytest.raises(RunFolderError, match=r"result\.json: corrupt"):
        hf.load_run(tmp_path / "run")


def test_the_result_is_written_when_training_has_ended(tmp_path: Path) -> None:
    model = net()
    seen: list[bool] = []

    class Watch(hf.Callback):
        def on_step(self, state: hf.TrainState) -> None:
            assert state.run_dir is not None
            seen.append((state.run_dir / "result.json").exists())
            if state.iteration == 2:
                assert hf.load_run(state.run_dir).result is None  # it may be read meanwhile

    folder = tmp_path / "run"
    options: dict[str, Any] = {"test_size": 10, "callbacks": [Watch()], "batch_size": 8}
    train(model, hf.problems.Addition(6), OPTIMISERS["nag"](model), folder, **options)
    stored = json.loads((folder / "result.json").read_text())
    assert (stored["reason"], stored["iterations"]) == ("iterations", 4)
    again = net()
    options |= {"stop": Limits(iterations=6), "resume": True}
    train(again, hf.problems.Addition(6), OPTIMISERS["nag"](again), folder, **options)
    assert seen == [False] * 6
    assert json.loads((folder / "result.json").read_text())["iterations"] == 6


def test_the_command_prints_the_error(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["train", "addition", "--length", "6", "--hidden", "5", "--optimizer", "nag"]
    arguments += ["--lr", "0.01", "--minibatches", "0.05", "--batch-size", "10", "--quiet"]
    arguments += ["--test-size", "200", "--run-dir", str(folder)]
    trained = invoke(*arguments)
    assert trained.exit_code == 0, trained.output
    line = next(text for text in trained.output.splitlines() if text.startswith("test error"))
    shown = invoke("evaluate", folder)
    assert shown.exit_code == 0, shown.output
    assert line.split()[2] in shown.output
    assert "iteration             5" in shown.output
    for wrong, message in (
        (["--checkpoint", "best"], "holds no best model"),
        (["--checkpoint", "3"], "has no checkpoint of iteration 3"),
        (["--checkpoint", "first"], "need last, best or an iteration"),
    ):
        refused = invoke("evaluate", folder, *wrong)
        assert refused.exit_code in (1, 2)
        assert message in refused.output
        assert "Traceback" not in refused.output
