"""``hfcore reproduce``: tables beside the published figures, files, resuming, refusals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import hfcore as hf
from command_line import assert_another_run_is_refused, invoke, table_of
from hfcore.cli.tables import markdown, number
from hfcore.data import Dataset, curves
from hfcore.data.statistics import pca_errors
from hfcore.experiments.commands import autoencoders as command_module
from hfcore.experiments.commands import training as trainings_module
from hfcore.experiments.curves_log import curves_log_table
from hfcore.experiments.published import CURVES_LOG, CURVES_LOG_DAMPING, PUBLISHED
from hfcore.experiments.report import describe, heading
from hfcore.presets import AutoencoderPreset

PNG = b"\x89PNG\r\n\x1a\n"
LOG = ["reproduce", "curves-log"]
TABLE = ["reproduce", "martens2010-table2", "--dataset"]


def tiny_data(name: str) -> Dataset:
    """Few images under the name of the data set; FACES with a validation part."""
    if name == "curves":
        return curves(40, 12, seed=1)
    images = torch.rand(60, 784, generator=torch.Generator().manual_seed(0))
    validation = images[50:] if name == "faces" else None
    return Dataset(name, images[:40], images[40:50], validation, (28, 28), 3, f"{name} made up.")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands with small nets and few images."""
    for name, published in list(hf.presets.autoencoders.items()):
        options = {**published.optimiser, "cg_max_iter": 8}
        preset = AutoencoderPreset(
            (784, 6, 3), published.loss, 3, options, published.starred_l2, iterations=2
        )
        monkeypatch.setitem(hf.presets.autoencoders, name, preset)
    monkeypatch.setattr(command_module, "load", lambda name, folder=None: tiny_data(name))


def by_first_column(text: str) -> dict[str, list[str]]:
    """Cells of the markdown table in ``text`` by those of its first column."""
    return {first: rest for first, *rest in table_of(text)}


# ---- curves-log


def test_curves_log_prints_and_writes_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke(*LOG, "--iterations", "3", "--run-dir", folder, "--threads", "1")
    assert result.exit_code == 0, result.output
    assert heading() in result.output
    table = by_first_column(result.output)
    assert list(table) == ["iteration", "---", "1", "2", "3"]
    numbers = json.loads((folder / "curves_log.json").read_text())
    for i in (1, 2, 3):
        line = numbers["iterations"][i]
        assert describe(line) in result.output
        assert table[str(i)][0] == number(line["train_error"])
        assert table[str(i)][1] == number(CURVES_LOG[i])
        assert table[str(i)][6] == number(line["cg_total"])
    assert table["1"][4:6] == ["45", "45"]
    assert "CURVES is regenerated" in (folder / "curves_log.md").read_text()
    assert (folder / "curves_log.md").read_text().strip() in result.output
    assert (folder / "curves_log.png").read_bytes().startswith(PNG)
    assert numbers["stopped"] == "iterations"
    assert numbers["published"]["train_error"]["300"] == 0.1253
    for name in ("md", "json", "png"):
        assert f"written: {folder / 'curves_log'}.{name}" in result.output


def test_how_long_a_training_has_to_go_is_told() -> None:
    time_left, Limits = trainings_module.time_left, hf.training.Limits
    line = {"iteration": 3, "training_seconds": 30.0}
    assert time_left(line, Limits(iterations=13)) == "at this pace 1 min 40 s more"
    assert time_left(line, Limits(iterations=13, seconds=75)) == "at this pace 45 s more"
    assert time_left(line, Limits(iterations=3)) is None
    assert time_left(line, Limits(minibatches=5)) is None
    assert time_left({**line, "iteration": 4}, Limits(iterations=13)) is None


def test_curves_log_resumes_after_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    torch.manual_seed(0)  # the state of torch's generator is part of a checkpoint
    assert invoke(*LOG, "--iterations", "3", "--run-dir", whole, "--quiet").exit_code == 0

    def interrupted(line: dict[str, Any]) -> str:
        if line["iteration"] == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return describe(line)

    monkeypatch.setattr(trainings_module, "describe", interrupted)
    arguments = [*LOG, "--iterations", "3", "--run-dir", folder]
    torch.manual_seed(0)
    stopped = invoke(*arguments)
    assert stopped.exit_code == 130
    assert f"continue with the same command and: --run-dir {folder} --resume" in stopped.output
    assert list(by_first_column(stopped.output)) == ["iteration", "---", "1"]
    monkeypatch.setattr(trainings_module, "describe", describe)
    resumed = invoke(*arguments, "--resume", "--quiet")
    assert resumed.exit_code == 0, resumed.output
    assert heading() not in resumed.output
    end = "3.safetensors"
    stored = [f / "checkpoints" / f"0000000{end}" for f in (whole, folder)]
    assert stored[0].read_bytes() == stored[1].read_bytes()


def test_curves_log_table_has_the_iterations_of_the_log() -> None:
    lines = [
        {
            "iteration": i,
            "train_error": 1.0 / (i + 1),
            "train_loss": 60.0,
            "test_error": 2.0,
            "damping": 0.5,
            "cg_total": 200 * i,
            "training_seconds": 61.0 * i,
        }
        for i in range(311)
    ]
    text = curves_log_table(lines, tiny_data("curves"))
    table = by_first_column(text)
    expected = sorted({*CURVES_LOG, *CURVES_LOG_DAMPING, 310})
    assert list(table)[2:] == [str(i) for i in expected]
    assert table["300"] == ["0.003322", "0.1253", "60", "2", "0.5", "2e-18", "60,000", "60,221"]
    assert table["15"][1] == "–"
    assert table["15"][5] == "0.23"
    assert table["310"][1] == "–"
    assert "5 h 15 min 10 s of training up to iteration 310" in text
    later = curves_log_table(lines[5:], tiny_data("curves"))  # of a log whose beginning is lost
    assert "Before training" in text
    assert "Before training" not in later


# ---- martens2010-table2


def test_table2_puts_references_and_papers_beside_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke(*TABLE, "mnist", "--run-dir", folder)
    assert result.exit_code == 0, result.output
    table, dataset = by_first_column(result.output), tiny_data("mnist")
    assert table["mean image"][:2] == [number(x) for x in pca_errors(dataset, 0)]
    assert table["PCA-3"][:2] == [number(x) for x in pca_errors(dataset, 3)]
    assert table["Hinton & Salakhutdinov (2006)"][1] == "3"
    assert table["RAND+HF, published (Martens (2010), table 2)"][:2] == ["1.64", "2.78"]
    assert table["PT+NCG, published (Martens (2010), table 2)"][:2] == ["2.31", "2.72"]
    unstopped = "RAND+HF, published (Martens (2010), section 8, without early stopping)"
    assert table[unstopped][:2] == ["1.4", "–"]
    numbers = json.loads((folder / "table2_mnist.json").read_text())
    last = numbers["methods"]["hf"]["iterations"][-1]
    row = table["RAND+HF, here (iterations)"]
    assert row[:3] == [number(last["train_error"]), number(last["test_error"]), "2"]
    first = numbers["methods"]["hf"]["iterations"][0]
    assert f"loss {number(first['train_loss'])} (published, another draw: 870.3)" in result.output
    assert "mnist made up." in result.output
    assert (folder / "table2_mnist.png").read_bytes().startswith(PNG)
    assert (folder / "hf" / "metrics.jsonl").exists()


def test_table2_with_several_methods_and_early_stopping(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*TABLE, "faces", "--run-dir", folder, "--early-stopping", "1"]
    arguments += ["--methods", "hf,adam=0.002,sgd=1e-30", "--quiet", "--iterations", "3"]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    table = by_first_column(result.output)
    assert {"RAND+HF, here (iterations)", "adam=0.002, here (iterations)"} <= set(table)
    # A step of nothing never betters the net it started from.
    assert table["sgd=1e-30, here (early stopping)"][2] == "0"
    numbers = json.loads((folder / "table2_faces.json").read_text())
    assert set(numbers["methods"]) == {"hf", "adam=0.002", "sgd=1e-30"}
    assert "validation_error" in numbers["methods"]["hf"]["iterations"][0]
    again = invoke(*arguments, "--resume")
    assert by_first_column(again.output) == table


def test_a_starred_run_has_its_own_weight_decay(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke(*TABLE, "mnist", "--starred", "--run-dir", folder, "--quiet")
    assert "L2: 0.0001, of the connection weights alone." in result.output
    table = by_first_column(result.output)
    assert table["RAND+HF, published (Martens (2010), table 2)"][:2] == ["1.75", "2.55"]
    assert (folder / "table2_mnist-starred.json").exists()
    config = json.loads((folder / "hf" / "config.json").read_text())
    assert config["optimizer"]["l2"] == 1e-4
    plain = invoke(*TABLE, "mnist", "--l2", "0.5", "--run-dir", tmp_path / "l2", "--quiet")
    assert "L2: 0.5; of NCG none." in plain.output


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*LOG, "--resume"], "--resume needs --run-dir"),
        ([*LOG, "--iterations", "0"], "Invalid value for '--iterations'"),
        ([*LOG, "--device", "tpu"], "--device: got 'tpu', need cpu or cuda"),
        (TABLE[:2], "Missing option '--dataset'"),
        ([*TABLE, "svhn"], "Invalid value for '--dataset'"),
        ([*TABLE, "curves", "--starred"], "there is no starred run of curves"),
        ([*TABLE, "mnist", "--starred", "--l2", "1"], "leave out --l2"),
        ([*TABLE, "curves", "--methods", "hf,lbfgs"], "method: got 'lbfgs', need one of 'hf'"),
        ([*TABLE, "curves", "--methods", "nag,nag"], "got 'nag,nag', need different ones"),
        ([*TABLE, "curves", "--early-stopping", "0"], "Invalid value for '--early-stopping'"),
        ([*TABLE, "curves", "--seconds", "0"], "Invalid value for '--seconds'"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_options(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output.replace("Invalid value for --device: ", "--device: ")


def test_a_folder_with_another_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*LOG, "--iterations", "1", "--run-dir", folder, "--quiet"]
    assert_another_run_is_refused(arguments, "--seed", "1")


@pytest.mark.parametrize("arguments", [LOG, [*TABLE, "mnist"], ["reproduce", "table5"]])
def test_a_folder_that_is_not_there(arguments: list[str], tmp_path: Path) -> None:
    result = invoke(*arguments, "--run-dir", tmp_path / "rum", "--resume")
    assert result.exit_code == 1
    assert f"{tmp_path / 'rum'}: there is no run folder to resume" in result.output
    assert not (tmp_path / "rum").exists()


def test_data_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    result = invoke(*TABLE, "mnist", "--folder", tmp_path, "--run-dir", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path / 'train-images-idx3-ubyte.gz'}: is not")
    assert not (tmp_path / "run").exists()


def test_a_second_ctrl_c_says_where_the_checkpoint_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(line: dict[str, Any]) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainings_module, "describe", at_once)
    result = invoke(*LOG, "--run-dir", tmp_path / "run")
    assert result.exit_code == 130
    assert f"interrupted; the last checkpoint is in {tmp_path / 'run'}" in result.stderr


# ---- small pieces


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (3, "3"),
        (60221, "60,221"),
        (0.12345678, "0.1235"),
        (16.9, "16.9"),
        (12345.6, "12,346"),
        (2e-18, "2e-18"),
        (float("-inf"), "-inf"),
        (float("nan"), "nan"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_markdown_tables() -> None:
    rows = [["1", "2"], ["3", "4"]]
    assert markdown(["a", "b"], rows) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n| 3 | 4 |"


def test_published_log_and_summary_agree() -> None:
    assert PUBLISHED["curves"].train_error == CURVES_LOG[300]
