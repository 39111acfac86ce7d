"""``hfcore sweep``: the table, files, stopping and resuming, refusals, exit codes."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest
import torch
from click.testing import Result
from interrupts import interrupted_sweeps

from command_line import assert_another_run_is_refused, invoke, table_of
from hfcore.cli.tables import number
from hfcore.problems import Addition, reconstruction
from hfcore.sweeps import RnnStart, engine, sweep

IMAGES = torch.rand(30, 784, generator=torch.Generator().manual_seed(0))
PNG = b"\x89PNG\r\n\x1a\n"
SMALL = ["--length", "6", "--hidden", "7", "--updates", "30", "--test-every", "10"]
SMALL += ["--batch-size", "5", "--test-size", "40", "--threads", "1", "--quiet"]
TINY = ["sweep", "addition", *SMALL, "--learning-rate", "0.05,0.01"]
GRID = [*TINY, "--momentum", "0,0.9", "--method", "nag,cm", "--seeds", "1,3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Result:
    result = invoke(*GRID, "--run-dir", tmp_path_factory.mktemp("whole") / "run")
    assert result.exit_code == 0, result.output
    return result


def test_the_table_is_that_of_sweep(whole: Result) -> None:
    expected = sweep(
        Addition(6, centre=True),
        {"method": ["nag", "cm"], "learning_rate": [0.05, 0.01], "momentum": [0.0, 0.9]},
        seeds=[1, 3],
        updates=30,
        batch_size=5,
        start=RnnStart(hidden_size=7),
        test_every=10,
        test_size=40,
        progress=False,
    )
    table = table_of(whole.output)
    assert table[0][:4] == ["momentum", "learning_rate", "seed", "outcome"]
    assert len(table) == 2 + 12  # SGD counts once for both methods
    for cells, run, row in zip(table[2:], expected.runs, expected.rows(), strict=True):
        assert cells[:3] == [run.label, f"{run.learning_rate:g}", str(run.seed)]
        shown = [row["outcome"], *(number(row[k]) for k in ("updates", "error", "wrong"))]
        assert cells[3:7] == shown
    assert f"error {expected.constant.error:.4g}" in whole.output


def test_tables_are_written_where_asked(tmp_path: Path) -> None:
    at = tmp_path / "new" / "t.csv"
    arguments = [*TINY, "--input-scale", "0.001,0.1", "--csv", at, "--run-dir", tmp_path / "run"]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert table_of(result.output)[0][2] == "input_scale"
    with at.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["input_scale"]) for r in rows] == [0.001, 0.1] * 2
    assert at.read_bytes() == (tmp_path / "run" / "runs.csv").read_bytes()
    assert f"written: {at}" in result.output
    for name in ("error", "outcomes"):
        plot = tmp_path / "run" / "plots" / f"{name}.png"
        assert plot.read_bytes().startswith(PNG)
        assert f"plot: {plot}" in result.output


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    at = tmp_path / "t.parquet"
    result = invoke(*TINY, "--parquet", at, "--run-dir", tmp_path / "run")
    assert result.exit_code == 0, result.output
    table = parquet.read_table(at)
    assert table.column("learning_rate").to_pylist() == [0.05, 0.01]
    assert table.column("outcome").to_pylist() == [
        cells[3] for cells in table_of(result.output)[2:]
    ]


def test_parquet_without_pyarrow_is_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = invoke(*TINY, "--parquet", tmp_path / "t.parquet", "--run-dir", tmp_path / "run")
    assert result.exit_code == 2
    assert "needs pyarrow: pip install hfcore[parquet]" in result.output
    assert not (tmp_path / "run").exists()


def test_stopped_and_resumed_the_table_is_the_same(tmp_path: Path, whole: Result) -> None:
    with interrupted_sweeps(25):
        stopped = invoke(*GRID, "--run-dir", tmp_path / "run")
    assert stopped.exit_code == 130, stopped.output
    assert f"continue with the same command and: --run-dir {tmp_path / 'run'}" in stopped.output
    resumed = invoke(*GRID, "--run-dir", tmp_path / "run", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert table_of(resumed.output) == table_of(whole.output)


def test_a_second_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(self: object, cohort: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.SweepLoop, "_test", at_once)
    result = invoke(*TINY, "--run-dir", tmp_path / "run")
    assert result.exit_code == 130
    assert f"interrupted; the last checkpoint is in {tmp_path / 'run'}" in result.stderr


@pytest.mark.parametrize(("below", "code"), [("0", 1), ("1", 0)])
def test_require_solved(tmp_path: Path, below: str, code: int) -> None:
    arguments = [*TINY, "--momentum", "0.5", "--run-dir", tmp_path / "run"]
    assert invoke(*arguments, "--require-solved", "--solved-below", below).exit_code == code


def test_other_starts_and_schedules(tmp_path: Path) -> None:
    arguments = [*TINY, "--init", "sparse", "--scale", "0.5,1", "--no-centre"]
    arguments += ["--schedule", "increasing", "--final-updates", "10", "--weight-decay", "1e-4"]
    result = invoke(*arguments, "--run-dir", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert [cells[2] for cells in table_of(result.output)[2:]] == ["0.5", "1"] * 2


def test_autoencoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "_training_images", lambda name, folder: IMAGES)
    arguments = [
        "sweep",
        "curves",
        "--images",
        "20",
        "--learning-rate",
        "0.01",
        "--batch-size",
        "5",
    ]
    arguments += ["--scale", "0.5,1", "--updates", "2", "--test-every", "1", "--quiet"]
    result = invoke(*arguments, "--threads", "1", "--run-dir", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert [cells[2] for cells in table_of(result.output)[2:]] == ["0.5", "1"]
    refused = invoke(*arguments, "--hidden", "7", "--run-dir", tmp_path / "other")
    assert refused.exit_code == 2
    assert "--hidden has no meaning with the autoencoder of curves" in refused.output
    refused = invoke(*arguments, "--length", "7", "--run-dir", tmp_path / "other")
    assert "got option 'length'" in refused.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--momentum", "1"], "grid['momentum']: got 1.0, need at least 0 and below 1"),
        (["--momentum", "0.9,0.9"], "got '0.9,0.9', need different numbers"),
        (["--learning-rate", "0"], "grid['learning_rate']: got 0.0, need a positive"),
        (["--learning-rate", "a"], "got 'a', need numbers"),
        (["--method", "nag,adam"], "grid['method']: got 'adam', need one of nag, cm, sgd"),
        (["--method", "cm,cm"], "need different names"),
        (["--scale", "1,2"], "got the key 'scale', need one of"),
        (["--init", "glorot", "--input-scale", "1"], "got the key 'input_scale'"),
        (["--seeds", "0"], "need at least 1 seed"),
        (["--seeds", str(10**30)], "need at most 1000000 seeds"),
        (["--length", "2"], "length: got 2"),
        (["--images", "5"], "got option 'images'"),
        (["--csv", "t.txt"], "need a name that ends in .csv"),
        (["--final-updates", "31"], "final_updates: got 31, need 0 to updates = 30"),
        (["--resume"], "--resume needs --run-dir"),
        (["--device", "tpu"], "need cpu or cuda"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_bad_options(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*TINY, *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_problem_and_a_missing_rate() -> None:
    unknown = invoke("sweep", "subtraction", "--learning-rate", "0.1")
    assert unknown.exit_code == 2
    assert "PROBLEM: got 'subtraction', need one of addition" in unknown.output
    assert "Missing option '--learning-rate'" in invoke("sweep", "addition").output


def test_on_device_is_for_cases_that_are_counted_out() -> None:
    rest = [*SMALL, "--learning-rate", "0.05", "--on-device"]
    refused = invoke("sweep", "temporal-order-2bit", *rest[2:], "--length", "20")
    assert refused.exit_code in (1, 2)
    assert "on_device: temporal-order-2bit draws new cases by a generator, need" in refused.output
    assert invoke("sweep", "addition", *rest).exit_code == 0


def test_a_folder_with_another_sweep(tmp_path: Path) -> None:
    arguments = [*TINY, "--run-dir", tmp_path / "run"]
    assert_another_run_is_refused(arguments, "--momentum", "0.5")
