"""``hfcore reproduce table1-2011``: columns, the search of the rate, resuming, what is printed."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

import hfcore as hf
from command_line import invoke, tables_of
from hfcore.cli.tables import number
from hfcore.data import SequenceSet
from hfcore.experiments import next_step, plots
from hfcore.experiments.next_step import (
    LSTM,
    TASKS,
    LibraryLSTM,
    Sizes,
    best_line,
    constant_error,
    lstm_training,
)
from hfcore.experiments.published import TABLE1_2011
from hfcore.experiments.table1_2011 import chosen
from hfcore.experiments.training import Trained
from hfcore.training.run_folder import RunFolder

PNG = b"\x89PNG\r\n\x1a\n"
COMMAND = ["reproduce", "table1-2011"]
SIZES = ["--hidden", "5", "--blocks", "2", "--cells", "2", "--curvature-size", "4"]
SIZES += ["--gradient-size", "8", "--batch-size", "3", "--test-size", "6", "--length", "3"]
LIMITS = ["--iterations", "2", "--updates", "8", "--search-updates", "4", "--test-every", "2"]
BALLS = [*COMMAND, "--task", "balls", *SIZES, *LIMITS, "--rates", "1e-2,1e-4", "--threads", "1"]
CPU = torch.device("cpu")


def made_up(size: int) -> SequenceSet:
    generator = torch.Generator().manual_seed(0)
    parts = {part: [(torch.rand(30, size, generator=generator) < 0.3).float()]
             for part in ("train", "validation", "test")}  # fmt: skip
    return SequenceSet("made_up", **parts, facts="Pieces made up.")  # type: ignore[arg-type]


READ = hf.problems.SpokenDigits._read


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Pieces of every set are made up, and runs leave out their plots, which take longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf.problems.PianoRolls, "_read", lambda self: made_up(88))
        patch.setattr(hf.problems.SpokenDigits, "_read", lambda self: made_up(39))
        patch.setattr(RunFolder, "draw", lambda self, *, solved_below: ())
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished call in its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    torch.manual_seed(0)  # the state of torch's generator is part of a checkpoint
    result = invoke(*BALLS, "--run-dir", folder)
    assert result.exit_code == 0, result.output
    return folder, result


def test_the_table_of_balls(whole: tuple[Path, Result]) -> None:
    folder, result = whole
    results, search = tables_of(result.output)
    rows = {first: rest for first, *rest in results[2:]}
    numbers = json.loads((folder / "table1_2011_balls.json").read_text())
    labels = {"rnn-hf": "RNN + HF", "lstm": "LSTM + GD"}
    assert list(rows) == ["mean frame", *labels.values()]
    for column, label in labels.items():
        found = numbers["columns"][column]
        best = next(i for i in found["iterations"] if i["iteration"] == found["counts"])
        least = min(line["validation_error"] for line in found["iterations"])
        assert best["validation_error"] == least
        assert rows[label][0] == number(best["test_error"])
        assert rows[label][2] == str(found["counts"])
    assert [rows[label][1] for label in labels.values()] == ["22", "35"]
    assert rows["RNN + HF"][3] == "2"
    # 8 updates on batches of 3, the search's among them
    assert rows["LSTM + GD"][3:5] == ["8", "24"]
    assert [row[0] for row in search[2:]] == ["0.01", "0.0001"]
    assert "Films are made anew" in result.output
    assert TABLE1_2011.source in result.output
    assert (folder / "table1_2011_balls.md").read_text().strip() in result.output
    assert (folder / "table1_2011_balls.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("task", TASKS)
def test_the_unit_beside_the_plot_fits(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    lines = [{"training_seconds": float(i), "test_error": 9.0 / (1 + i)} for i in range(3)]
    label = f"test error (negative {TASKS[task].unit})"
    run = {"RNN + HF": Trained("iterations", lines, 0)}
    plots.plot_seconds(run, {}, Path("no file"), "", error="test_error", label=label)
    (figure,) = drawn
    figure.canvas.draw()
    box = figure.axes[0].yaxis.label.get_window_extent()
    assert 0 <= box.y0 < box.y1 <= figure.bbox.y1


@pytest.mark.parametrize(
    ("task", "published", "stands_in"),
    [("midi", ["-569"], "MIDI data are not public"), ("speech", ["–"], "The paper has TIMIT")],
)
def test_tables_of_windows(task: str, published: list[str], stands_in: str, tmp_path: Path) -> None:
    arguments = [*COMMAND, "--task", task, *SIZES, *LIMITS, "--rates", "1e-4", "--quiet"]
    columns = "rnn-hf" if task == "midi" else "nn-lstm"
    result = invoke(*arguments, "--columns", columns, "--run-dir", tmp_path / "run")
    assert result.exit_code == 0, result.output
    (table,) = tables_of(result.output)  # of one rate there is no search
    rows = table[3:]
    assert [row[2] for row in rows] == published
    # log-likelihoods are listed as they are, errors are their negatives
    assert all(float(row[1].replace(",", "")) * TASKS[task].sign > 0 for row in rows)
    assert stands_in in result.output
    assert "Pieces made up." in result.output
    assert "Sequences of 3 steps: 9 to train, 9 to validate, 9 to test." in result.output


def test_stopped_and_resumed_the_table_is_the_same(
    whole: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the search; no run is done twice."""
    on_step, asked = next_step.Reported.on_step, []

    def interrupted(self: Any, state: hf.TrainState) -> None:
        on_step(self, state)
        asked.append(state.iteration)
        if len(asked) == 6:  # four of the first rate, two of the second
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(next_step.Reported, "on_step", interrupted)
    torch.manual_seed(0)
    arguments = [*BALLS, "--columns", "lstm", "--run-dir", tmp_path / "run"]
    stopped = invoke(*arguments)
    assert stopped.exit_code == 130, stopped.output
    assert "not finished" in stopped.output
    assert f"--run-dir {tmp_path / 'run'} --resume" in stopped.output
    resumed = invoke(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert asked[6:] == [3, 4, 5, 6, 7, 8]  # the second rate's search, then the best one's rest
    (found, search), (expected, its_search) = tables_of(resumed.output), tables_of(whole[1].output)
    assert found[-1][:6] == expected[-1][:6]  # seconds are others
    assert search == its_search


def test_resumed_when_all_is_done_the_numbers_are_the_same(whole: tuple[Path, Result]) -> None:
    """The search of the chosen rate too, whose run has gone on since."""
    path = whole[0] / "table1_2011_balls.json"
    before = json.loads(path.read_text())["columns"]
    best = before["lstm"]["searched"][f"{before['lstm']['rate']:g}"]
    assert best["iterations"][-1]["iteration"] == 4
    resumed = invoke(*BALLS, "--run-dir", whole[0], "--resume", "--quiet")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(path.read_text())["columns"] == before


def test_rates_that_diverge(tmp_path: Path) -> None:
    rates = ["--rates", "1e38,3e38", "--columns", "lstm", "--quiet"]
    result = invoke(*BALLS[:-4], *rates, "--run-dir", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "all rates diverged" in result.output
    assert result.output.count("(diverged)") == 2


def test_the_least_validation_error_within_the_search_decides() -> None:
    def trained(reason: str, *errors: float) -> Trained:
        lines = [{"iteration": i, "validation_error": e} for i, e in enumerate(errors)]
        return Trained(reason, lines, 0)

    runs = {
        1.0: trained("diverged", 9, 1),
        0.1: trained("iterations", 9, 4, 0.5),  # 0.5 came after the search
        0.01: trained("iterations", 9, 3),
    }
    assert chosen(runs, 1) == 0.01
    assert chosen(runs, 2) == 0.1
    assert chosen({1.0: runs[1.0]}, 1) is None
    assert best_line(runs[0.1].lines)["iteration"] == 2


def test_the_mean_frame_is_the_best_constant() -> None:
    problem = hf.problems.SpokenDigits(3)
    found = constant_error(problem, Sizes(test=9))
    y = problem.all_cases().targets.double()
    test = problem.part("test", 9).targets.double()
    expected = (test - y.mean((0, 1))).square().sum(2).mean()
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_an_lstm_learns_a_little() -> None:
    """Of one window, by the training that the command uses."""
    problem = hf.problems.PianoRolls(3, sequences=1)
    training = lstm_training(problem, LSTM, 1e-2, Sizes(blocks=2, cells=3, batch=9), 0, CPU)
    assert training.batches == {"batch_size": 1}  # all there are
    x, y, _ = problem.all_cases()
    before = problem.errors(training.model(x).detach(), hf.Batch(x, y)).mean()
    result = hf.train(
        training.model, problem, training.optimizer, **training.batches, progress=False,
        stop=hf.training.Limits(40), test_size=9, test_every=100,
    )  # fmt: skip
    assert result.reason == "iterations"
    after = problem.errors(training.model(x).detach(), hf.Batch(x, y)).mean()
    assert math.isfinite(after)
    assert after < 0.6 * before


def test_the_lstm_of_torch_starts_like_ours() -> None:
    first, again, other = LibraryLSTM(3, 4, 0), LibraryLSTM(3, 4, 0), LibraryLSTM(3, 4, 1)
    state = torch.get_rng_state()
    LibraryLSTM(3, 4, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.lstm.get_parameter("weight_hh_l0"), again.lstm.get_parameter("weight_hh_l0"))  # fmt: skip # noqa: E501
    assert not torch.equal(first.outputs.weight, other.outputs.weight)
    assert first.lstm.get_parameter("bias_ih_l0")[4:8].tolist() == [1.0] * 4
    assert not first.lstm.get_parameter("bias_hh_l0").any()


REFUSED = {
    "": "Missing option '--task'",
    "--task text": "Invalid value for '--task'",
    "--task balls --columns gru": "got 'gru', need rnn-hf, lstm, nn-lstm",
    "--task balls --columns lstm,lstm": "need different names",
    "--task balls --rates 0": "need positive numbers",
    "--task balls --dataset musedata": "got option 'dataset', need length, balls, side",
    "--task speech --dataset musedata": "got option 'dataset', need length, clips, sequences",
    "--task balls --sequences 3": "got option 'sequences'",
    "--task midi --dataset bach": "dataset: got 'bach', need one of 'piano_midi'",
    "--task balls --updates 5 --search-updates 6": "got 6, need at most --updates, 5",
    "--task balls --iterations 0": "Invalid value for '--iterations'",
    "--task balls --resume": "--resume needs --run-dir",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_bad_options(arguments: str) -> None:
    result = invoke(*COMMAND, *arguments.split())
    assert result.exit_code == 2
    assert REFUSED[arguments] in result.output


def test_windows_that_are_too_long(tmp_path: Path) -> None:
    result = invoke(*COMMAND, "--task", "midi", "--length", "30", "--run-dir", tmp_path / "run")
    assert result.exit_code == 1
    assert "Error: length: got 30, need at most 29: a window has one frame more" in result.output


def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf.problems.SpokenDigits, "_read", READ)
    arguments = ["--task", "speech", "--folder", tmp_path, "--run-dir", tmp_path / "run"]
    result = invoke(*COMMAND, *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path / 'fsdd_8khz.npz'}: is not there; put")


def test_another_run_in_the_folder(whole: tuple[Path, Result]) -> None:
    arguments = [*BALLS, "--quiet", "--run-dir", whole[0]]
    assert "already holds a run" in invoke(*arguments).output
    other = invoke(*arguments, "--seed", "1", "--resume")
    assert other.exit_code == 1
    assert "belongs to another config" in other.output
