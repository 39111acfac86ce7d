"""hf.train: the loop, its counts, its run folder, resuming, stopping."""

from __future__ import annotations

import copy
import errno
import io
import json
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import hfcore as hf
from hfcore.init import sparse_
from hfcore.models.rnn import RNN
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.problems import Addition
from hfcore.training import (
    Callback,
    CheckpointError,
    ConfigMismatchError,
    RunFolderError,
    TrainResult,
    TrainState,
    train,
)
from hfcore.training.metrics_log import sealed_line
from hfcore.training.progress import ProgressDisplay
from hfcore.training.run_folder import read_metrics

BATCH, GRADIENT_BATCHES = 16, 3


def make_model(seed: int = 0, hidden: int = 6) -> RNN:
    model = RNN(2, hidden, 1)
    sparse_(model, torch.Generator().manual_seed(seed), fan_in=3)
    return model


def make_hf(model: RNN, damping: float = 0.6) -> HessianFree:
    return HessianFree(model, Addition(6).loss, damping=damping, structural=0.03, cg_max_iter=6)


OPTIMIZERS: dict[str, Callable[[RNN], torch.optim.Optimizer]] = {
    "hf": make_hf,
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
    "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=3),
}


def run(
    name: str = "hf", *, model: RNN | None = None, iterations: int | None = None, **options: Any
) -> TrainResult:
    """A tiny run that stops after ``iterations`` (of the whole run) or a small budget."""
    model = make_model() if model is None else model
    callbacks = list(options.pop("callbacks", ()))
    if iterations is not None:
        callbacks.append(StopAt(iterations))
    defaults: dict[str, Any] = {
        "minibatches": 1000,
        "batch_size": BATCH,
        "gradient_batches": GRADIENT_BATCHES,
        "test_size": 40,
        "solved_below": 0.0,
        "test_every": 1,
        "checkpoint_every": 1,
        "progress": False,
    }
    problem = options.pop("problem", Addition(6))
    optimizer = options.pop("optimizer", None) or OPTIMIZERS[name](model)
    return train(model, problem, optimizer, callbacks=callbacks, **{**defaults, **options})


@pytest.fixture
def drawn() -> None:
    """For tests that look at the plots."""


@pytest.fixture(autouse=True)
def _draw_only_for_tests_that_look(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing takes longer than a tiny run."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("hfcore.training.plots.draw_plots", lambda *a, **options: ())


class StopAt(Callback):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_step(self, state: TrainState) -> bool:
        return state.iteration >= self.iteration


class Signal(Callback):
    """Sends a signal to this process ``times`` times during one step."""

    def __init__(self, number: int, at: int, times: int = 1) -> None:
        self.number, self.at, self.times = number, at, times

    def on_step(self, state: TrainState) -> None:
        if state.iteration == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def trajectory(folder: Path) -> list[dict[str, Any]]:
    """The metrics without wall-clock fields."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    wall_clock = ("seconds", "training_seconds", "step_seconds", "crc32")
    return [{k: v for k, v in line.items() if k not in wall_clock} for line in lines]


def parameters(model: RNN) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


# ---- the loop


def test_hf_counts_products_and_gradients_in_thousands_of_sequences(tmp_path: Path) -> None:
    result = run(iterations=4, run_dir=tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    work = sum(line["products"] + line["gradients"] for line in lines)
    assert all(line["gradients"] == GRADIENT_BATCHES for line in lines)
    assert result.minibatches == pytest.approx(work * BATCH / 1000)
    assert lines[-1]["minibatches"] == result.minibatches
    apart = sum(line["objective_evaluations"] for line in lines)
    assert apart > 0
    assert result.objective_evaluations == pytest.approx(apart * BATCH / 1000)
    assert lines[-1]["objective_evaluations_total"] == result.objective_evaluations
    assert (result.reason, result.iterations, result.solved) == ("callback", 4, False)
    for line in lines:
        assert {"data", "test"} < line["seconds"].keys()
        assert min(line["seconds"].values()) >= 0
        assert sum(line["seconds"].values()) > 0
    assert result.seconds >= lines[-1]["training_seconds"] > lines[0]["training_seconds"] > 0


def test_hf_lowers_the_loss(tmp_path: Path) -> None:
    run(iterations=15, run_dir=tmp_path / "run", batch_size=100)
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < 0.5 * losses[0]


def test_first_order_update_is_the_gradient_of_the_mean_sequence_loss() -> None:
    model, before = make_model(), make_model()
    problem = Addition(6)
    seen: list[Any] = []

    class Recorder(Addition):
        def batch(self, *arguments: Any, **options: Any) -> Any:
            seen.append(super().batch(*arguments, **options))
            return seen[-1]

    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    result = run(model=model, optimizer=sgd, problem=Recorder(6), iterations=1)
    batch = next(b for b in seen if b.inputs.shape[1] == BATCH)  # the other one is the test set
    s = before(batch.inputs)
    assert batch.mask is not None
    (0.5 * ((s - batch.targets)[batch.mask] ** 2).sum() / BATCH).backward()
    for p, q in zip(before.parameters(), model.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.detach() - p.grad, q.detach(), rtol=1e-5, atol=1e-7)
    assert result.minibatches == BATCH / 1000
    assert problem.config() == Recorder(6).config()


class Copying:
    """Cases without a time axis: an hf.MLP is to give back the first two of three inputs."""

    name, input_size, output_size = "copying", 3, 2
    loss = hf.losses.SquaredError()

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> hf.Batch:
        x = torch.from_numpy(generator.random((size, 3))).to(dtype)
        return hf.Batch(x, x[:, :2].clone())

    def wrong(self, s: Tensor, batch: hf.Batch) -> Tensor:
        return (s - batch.targets).abs().amax(1) > 0.04

    def config(self) -> dict[str, Any]:
        return {"name": self.name}


def test_a_feed_forward_net_trains_too(tmp_path: Path) -> None:
    model = hf.MLP([3, 2], ["linear"], generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(model)
    start = hf.train(
        model,
        Copying(),
        torch.optim.SGD(model.parameters(), lr=0.5),
        minibatches=0.2,
        batch_size=200,
        test_size=50,
        progress=False,
    )
    assert (start.iterations, start.minibatches) == (1, 0.2)
    stream = np.random.SeedSequence(0).spawn(2)[0]
    batch = Copying().batch(200, np.random.Generator(np.random.PCG64(stream)))
    loss = 0.5 * (before(batch.inputs) - batch.targets).square().sum() / 200
    (gradient,) = torch.autograd.grad(loss, [before.layers[0].weight])
    moved = before.layers[0].weight - 0.5 * gradient
    torch.testing.assert_close(model.layers[0].weight, moved)
    result = hf.train(
        model,
        Copying(),
        hf.HessianFree(model, Copying.loss, damping=0.1),
        minibatches=50,
        batch_size=200,
        gradient_batches=2,
        test_size=50,
        progress=False,
        run_dir=tmp_path / "run",
    )
    assert result.solved


def test_a_closure_optimiser_pays_for_every_gradient(tmp_path: Path) -> None:
    result = run("lbfgs", iterations=2, run_dir=tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert result.minibatches == pytest.approx(sum(line["gradients"] for line in lines))
    assert result.minibatches > 2 * BATCH / 1000


def test_stops_when_solved() -> None:
    result = run(solved_below=1.0, iterations=50)
    assert result.solved
    assert result.reason == "solved"
    assert result.test_error < 1.0


def test_stops_when_the_budget_is_spent() -> None:
    result = run("sgd", minibatches=5 * BATCH / 1000)
    assert (result.reason, result.iterations, result.solved) == ("budget", 5, False)


def test_an_untested_last_iteration_is_tested_before_the_verdict() -> None:
    result = run("sgd", minibatches=5 * BATCH / 1000, test_every=100, solved_below=1.0)
    assert result.iterations == 5
    assert result.solved


@pytest.mark.usefixtures("drawn")
def test_stops_when_the_loss_is_not_finite(tmp_path: Path) -> None:
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=1e30)
    result = run(model=model, optimizer=sgd, run_dir=tmp_path / "run", iterations=50)
    assert result.reason == "diverged"
    assert not result.solved
    text = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    loss = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))["loss"]
    assert loss in ("nan", "inf")
    assert result.plots


def test_seed_decides_the_data() -> None:
    models = [make_model() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        run("sgd", model=model, iterations=3, seed=seed)
    assert parameters(models[0]) == parameters(models[1])
    assert parameters(models[0]) != parameters(models[2])


def test_training_data_do_not_depend_on_the_test_set() -> None:
    models = [make_model() for _ in range(2)]
    for model, size in zip(models, (7, 1500), strict=True):
        run("sgd", model=model, iterations=3, test_size=size)
    assert parameters(models[0]) == parameters(models[1])


def test_nothing_is_written_without_a_run_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(iterations=2)
    assert (result.run_dir, result.plots) == (None, ())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("minibatches", 0),
        ("minibatches", float("nan")),
        ("batch_size", 0),
        ("gradient_batches", 0),
        ("test_size", 0),
        ("test_every", 0),
        ("checkpoint_every", -1),
        ("solved_below", 1.5),
        ("seed", -1),
    ],
)
def test_bad_settings_are_named(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: got {value}"):
        run(**{option: value})


def test_an_optimiser_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer: holds parameters that are not the model's"):
        run(optimizer=torch.optim.SGD(make_model().parameters(), lr=0.1))


# ---- callbacks


def test_callbacks_see_the_run() -> None:
    seen: list[tuple[str, int]] = []

    class Watch(Callback):
        def on_train_begin(self, state: TrainState) -> None:
            assert state.metrics == {}
            seen.append(("begin", state.iteration))

        def on_step(self, state: TrainState) -> None:
            assert state.metrics["iteration"] == state.iteration
            assert state.metrics["minibatches"] == state.minibatches
            assert state.test_error == state.metrics["test_error"]
            seen.append(("step", state.iteration))

        def on_train_end(self, state: TrainState) -> None:
            seen.append(("end", state.iteration))

    # the stopping callback comes first: the others still see the last step
    run(callbacks=[StopAt(2), Watch()])
    assert seen == [("begin", 0), ("step", 1), ("step", 2), ("end", 2)]


def test_callbacks_end_when_the_run_fails() -> None:
    ended: list[int] = []

    class Fails(Callback):
        def on_step(self, state: TrainState) -> None:
            raise ZeroDivisionError

        def on_train_end(self, state: TrainState) -> None:
            ended.append(state.iteration)

    with pytest.raises(ZeroDivisionError):
        run(callbacks=[Fails()])
    assert ended == [1]


# ---- progress


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "log"])
def test_progress_shows_the_numbers_of_the_step(terminal: bool) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=80, color_system=None)
    seen: list[TrainState] = []

    class Watch(Callback):
        def on_step(self, state: TrainState) -> None:
            seen.append(state)

    run("hf", iterations=1, callbacks=[Watch(), ProgressDisplay(console)])
    m, text = seen[0].metrics, output.getvalue()
    for number in (
        f"loss {m['loss_after']:.4g}",
        f"error {100 * m['test_error']:.2f}%",
        f"λ {m['damping']:.3g}",
        f"CG {m['cg_iterations']}",
        f"{m['minibatches']:,.6g}/1,000 minibatches",
        "left",
    ):
        assert number in text
    assert ("addition" in text) == terminal  # the bar is for terminals only


# ---- the run folder


@pytest.mark.usefixtures("drawn")
def test_the_folder_tells_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any, **options: Any) -> None:
        raise AssertionError("nothing is pickled")

    for module, name in ((pickle, "dump"), (pickle, "dumps"), (torch, "save")):
        monkeypatch.setattr(module, name, forbidden)
    folder = tmp_path / "deep" / "run"
    result = run(iterations=5, run_dir=folder, notes={"init": "sparse"})
    assert result.run_dir == folder
    config = json.loads((folder / "config.json").read_text())
    assert config["problem"] == Addition(6).config()
    assert config["model"]["parameters"]["W_hh"] == [6, 6]
    assert config["optimizer"]["name"] == "HessianFree"
    assert config["optimizer"]["damping"] == 0.6
    assert config["data"]["batch_size"] == BATCH
    assert config["notes"] == {"init": "sparse"}
    assert [p.name for p in result.plots] == [
        "loss_error.png",
        "damping_rho.png",
        "cg_iterations.png",
    ]
    for path in result.plots:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(data) > 5000
    files = {p for p in folder.rglob("*") if p.is_file() and "tfevents" not in p.name}
    assert {p.suffix for p in files} == {".json", ".jsonl", ".png", ".safetensors"}


@pytest.mark.usefixtures("drawn")
def test_first_order_runs_have_no_damping_to_plot(tmp_path: Path) -> None:
    result = run("adam", iterations=3, run_dir=tmp_path / "run")
    assert [p.name for p in result.plots] == ["loss_error.png"]


def events(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return [(e.step, e.value) for e in accumulator.Scalars(tag)]


def test_tensorboard_shows_the_metrics_once_also_after_a_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # the checkpoint of iteration 3 is removed, so iteration 3 is computed and logged twice
    run(iterations=3, run_dir=folder)
    time.sleep(1.1)  # TensorBoard orders event files by the second in their names
    (folder / "checkpoints" / "00000003.json").unlink()
    run(iterations=5, run_dir=folder, resume=True)
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5]
    for tag in ("loss", "damping", "cg_iterations", "test_error"):
        shown = events(folder, tag)
        assert [step for step, _ in shown] == [1, 2, 3, 4, 5]
        assert [v for _, v in shown] == pytest.approx([line[tag] for line in lines], rel=1e-6)


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    run(iterations=1, run_dir=tmp_path / "run")
    with pytest.raises(RunFolderError, match="run: already holds a run; resume it"):
        run(iterations=1, run_dir=tmp_path / "run")


def test_a_run_without_an_iteration_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when its first iteration raised: what it would have computed is not lost."""
    folder = tmp_path / "run"
    model = hf.MLP((3, 2), ("linear",))
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    data: dict[str, Any] = {"stop": hf.training.Limits(iterations=2), "run_dir": folder}

    def optimizer() -> HessianFree:
        return HessianFree(model, hf.losses.SquaredError())

    broken = y.clone()
    broken[0] = math.nan
    with pytest.raises(ValueError, match="need finite values"):
        hf.train(model, (x, broken), optimizer(), **data)
    assert (folder / "config.json").exists()
    note = folder / "note.txt"
    note.write_text("precious")
    with pytest.raises(RunFolderError, match="already holds a run"):
        hf.train(model, (x, y), optimizer(), **data)
    note.unlink()
    caplog.set_level("INFO", "hfcore")
    assert hf.train(model, (x, y), optimizer(), **data).iterations == 2
    assert "holds a run without an iteration, which is begun anew" in caplog.text
    assert len(list((folder / "tensorboard").iterdir())) == 1
    with pytest.raises(RunFolderError, match="already holds a run"):
        hf.train(model, (x, y), optimizer(), **data)


def test_a_folder_with_other_things_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match="neither empty nor a run folder"):
        run(iterations=1, run_dir=tmp_path)
    with pytest.raises(RunFolderError, match=r"has no config\.json"):
        run(iterations=1, run_dir=tmp_path, resume=True)


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    assert run(iterations=1, run_dir=tmp_path).run_dir == tmp_path


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file/run: cannot be written: Not a directory"):
        run(iterations=1, run_dir=tmp_path / "file" / "run")
    with pytest.raises(RunFolderError, match=r"/file: is a file, need a folder$"):
        run(iterations=1, run_dir=tmp_path / "file")


def test_a_resume_in_a_folder_that_may_only_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is mounted read-only: what is removed first cannot be."""
    folder = tmp_path / "run"
    run(iterations=1, run_dir=folder)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(RunFolderError, match=r"result.json: cannot be written: Read-only file"):
        run(iterations=2, run_dir=folder, resume=True)


def test_a_folder_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(iterations=1, run_dir=folder)
    hold = (
        "import sys, pathlib; from hfcore.training.atomic import lock_folder;"
        "lock_folder(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", hold, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="another process is training in this folder"):
            run(iterations=2, run_dir=folder, resume=True)
        other.kill()
    run(iterations=2, run_dir=folder, resume=True)  # the lock went with its process


# ---- resuming


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_is_bitwise(tmp_path: Path, name: str) -> None:
    whole = make_model()
    run(name, model=whole, iterations=8, run_dir=tmp_path / "whole")
    run(name, iterations=3, run_dir=tmp_path / "parts")
    torch.manual_seed(99)  # whatever happened in between
    run(name, model=make_model(seed=5), iterations=5, run_dir=tmp_path / "parts", resume=True)
    last = make_model(seed=6)
    run(name, model=last, iterations=8, run_dir=tmp_path / "parts", resume=True)
    assert parameters(last) == parameters(whole)
    assert trajectory(tmp_path / "parts") == trajectory(tmp_path / "whole")
    times = [m["training_seconds"] for m in read_metrics(tmp_path / "parts" / "metrics.jsonl")]
    assert times == sorted(times)


def test_resume_drops_lines_after_the_checkpoint_and_a_torn_one(tmp_path: Path) -> None:
    run(iterations=6, run_dir=tmp_path / "whole")
    run(iterations=4, run_dir=tmp_path / "torn")
    (tmp_path / "torn" / "checkpoints" / "00000004.json").unlink()
    with (tmp_path / "torn" / "metrics.jsonl").open("a") as file:
        file.write(sealed_line({"iteration": 5, "loss": 0.0}) + '{"iteration": 6, "lo')
    run(iterations=6, run_dir=tmp_path / "torn", resume=True)
    assert trajectory(tmp_path / "torn") == trajectory(tmp_path / "whole")


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    budget = 3 * BATCH / 1000
    first = run("sgd", minibatches=budget, run_dir=tmp_path / "run")
    again = run("sgd", minibatches=budget, run_dir=tmp_path / "run", resume=True)
    assert (again.reason, again.iterations) == ("budget", 3)
    assert again.test_error == first.test_error
    longer = run("sgd", minibatches=2 * budget, run_dir=tmp_path / "run", resume=True)
    assert longer.iterations == 6


def test_resume_goes_back_to_the_previous_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(iterations=6, run_dir=tmp_path / "whole")
    run(iterations=4, run_dir=tmp_path / "hurt")
    newest = tmp_path / "hurt" / "checkpoints" / "00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, "hfcore"):
        run(iterations=6, run_dir=tmp_path / "hurt", resume=True)
    assert "00000004.safetensors" in caplog.text
    assert trajectory(tmp_path / "hurt") == trajectory(tmp_path / "whole")


def test_resume_without_any_good_checkpoint_names_the_file(tmp_path: Path) -> None:
    run(iterations=2, run_dir=tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"00000002\.safetensors"):
        run(iterations=3, run_dir=tmp_path / "run", resume=True)


def test_resume_with_all_checkpoints_gone_is_an_error(tmp_path: Path) -> None:
    run(iterations=2, run_dir=tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="holds no checkpoint although"):
        run(iterations=3, run_dir=tmp_path / "run", resume=True)


def test_a_run_of_another_config_names_keys_and_values(tmp_path: Path) -> None:
    run(iterations=1, run_dir=tmp_path / "run")
    again = {"iterations": 2, "run_dir": tmp_path / "run", "resume": True}
    with pytest.raises(ConfigMismatchError, match=r"problem\.length is 6 there and 7 here"):
        run(problem=Addition(7), **again)
    with pytest.raises(ConfigMismatchError, match=r"data\.seed is 0 there and 3 here"):
        run(seed=3, **again)
    with pytest.raises(ConfigMismatchError, match=r"optimizer\.name is 'HessianFree' there"):
        run("sgd", **again)
    with pytest.raises(ConfigMismatchError, match=r"W_hh is \[6, 6\] there and \[7, 7\] here"):
        run(model=make_model(hidden=7), **again)
    model = make_model()
    with pytest.raises(ConfigMismatchError, match=r"optimizer\.damping is 0\.6 there and 5\.0"):
        run(model=model, optimizer=make_hf(model, damping=5.0), **again)


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_a_corrupt_config_is_named(tmp_path: Path, content: str) -> None:
    run(iterations=1, run_dir=tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"config\.json: corrupt"):
        run(iterations=2, run_dir=tmp_path / "run", resume=True)


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nowhere: there is no run folder to resume"):
        run(iterations=1, run_dir=tmp_path / "nowhere", resume=True)
    with pytest.raises(ValueError, match="resume: got True without run_dir"):
        run(iterations=1, resume=True)


def test_a_changed_environment_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(iterations=1, run_dir=tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["environment"]["torch"] = "1.0"
    path.write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING, "hfcore"):
        run(iterations=2, run_dir=tmp_path / "run", resume=True)
    assert "begun with torch = '1.0'" in caplog.text


# ---- a full disk


@pytest.mark.parametrize("failing_write", [8, 9])
def test_full_disk_in_a_checkpoint_ends_the_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_write: int
) -> None:
    """Write 1 is the config, then two a checkpoint (tensors, JSON): 8 and 9 are checkpoint 3."""
    run(iterations=6, run_dir=tmp_path / "whole")
    writes = 0

    def full(file: Any, data: bytes) -> None:
        nonlocal writes
        writes += 1
        file.write(data[: len(data) // 2])
        if writes == failing_write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.write(data[len(data) // 2 :])

    with monkeypatch.context() as patch:
        patch.setattr("hfcore.training.atomic.write_all", full)
        with pytest.raises(RunFolderError, match=r"00000003\.\w+: the disk is full"):
            run(iterations=6, run_dir=tmp_path / "full")
    names = {p.name for p in (tmp_path / "full" / "checkpoints").iterdir()}
    assert names == {f"0000000{i}.{end}" for i in (1, 2) for end in ("json", "safetensors")}
    run(iterations=6, run_dir=tmp_path / "full", resume=True)
    assert trajectory(tmp_path / "full") == trajectory(tmp_path / "whole")


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.usefixtures("drawn")
def test_a_signal_ends_after_the_step_with_a_checkpoint(tmp_path: Path, number: int) -> None:
    run(iterations=6, run_dir=tmp_path / "whole")
    handler = signal.getsignal(number)
    result = run(
        iterations=6,
        run_dir=tmp_path / "cut",
        checkpoint_every=100,
        callbacks=[Signal(number, at=2)],
    )
    assert (result.reason, result.iterations) == ("interrupted", 2)
    assert result.plots
    assert signal.getsignal(number) is handler
    assert (tmp_path / "cut" / "checkpoints" / "00000002.json").exists()
    run(iterations=6, run_dir=tmp_path / "cut", resume=True)
    assert trajectory(tmp_path / "cut") == trajectory(tmp_path / "whole")


def test_a_second_ctrl_c_acts_at_once() -> None:
    seen = []

    class Watch(Callback):
        def on_step(self, state: TrainState) -> None:
            seen.append(state.iteration)

    with pytest.raises(KeyboardInterrupt):
        run(iterations=6, callbacks=[Watch(), Signal(signal.SIGINT, at=2, times=2)])
    assert seen == [1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_trains_outside_the_main_thread() -> None:
    results: list[TrainResult] = []
    thread = threading.Thread(target=lambda: results.append(run(iterations=2)))
    thread.start()
    thread.join()
    assert results[0].iterations == 2
