"""``hfcore reproduce fig3``: what is counted, side by side, resuming, re-printing, refusals."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hfcore as hf
from command_line import invoke, tables_of
from hfcore.experiments import fig3
from hfcore.experiments.fig3 import Case, Settings, cases_of
from hfcore.experiments.fig3_rows import STEPPED, groups_of, is_done, joined, summary
from hfcore.experiments.fig3_runs import Job
from hfcore.experiments.side_by_side import side_by_side
from hfcore.training.run_folder import RunFolder

PNG = b"\x89PNG\r\n\x1a\n"
FIGURE = ["reproduce", "fig3"]
SMALL = ["--hidden", "5", "--batch-size", "6", "--test-size", "12", "--seeds", "1"]
TINY = [*FIGURE, *SMALL, "--limit", "60", "--lengths", "8"]
WHOLE = [*TINY, "--problems", "xor,mem-5"]
SETTINGS = Settings(limit=30, hidden=5, batch_size=6, test_size=12)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return hf.training.read_metrics(folder / "metrics.jsonl")


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a figure by the names of their run folders."""
    rows = json.loads((folder / "fig3.json").read_text())["runs"]
    return {Case.of(row).folder: row for row in rows}


@pytest.fixture(scope="module", autouse=True)
def _without_plots_of_runs() -> Iterator[None]:
    """Those of hf.train, which take longer than the runs here and are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "draw", lambda self, solved_below: ())
        yield


# ---- what a run is


def test_the_order_is_breadth_first() -> None:
    cases = cases_of(["add", "xor"], [30, 50], fig3.DAMPINGS, ["sparse"], ["none"], [0, 1])
    assert [case.folder for case in cases[:5]] == [
        "add-T30-structural-seed0", "xor-T30-structural-seed0", "add-T30-tikhonov-seed0",
        "xor-T30-tikhonov-seed0", "add-T50-structural-seed0",
    ]  # fmt: skip
    assert len(cases) == len(set(cases)) == 16
    assert [case.seed for case in cases] == [0] * 8 + [1] * 8
    assert Case("add", 30, start="esn", preconditioner="fisher").folder == (
        "add-T30-structural-esn-fisher-seed0"
    )


@pytest.mark.parametrize("name", fig3.PROBLEMS)
def test_every_problem_is_the_papers(name: str) -> None:
    config = Case(name, 30).task().config()
    assert (config["name"], config["length"], config["centre"]) == (
        fig3.PROBLEMS[name][0], 30, False,
    )  # fmt: skip
    assert config.get("layout") == ("martens2011" if name.startswith("mem") else None)


@pytest.mark.parametrize("name", ["add", "mul", "mem-20"])
def test_inputs_of_the_echo_state_start_are_of_one_scale(tmp_path: Path, name: str) -> None:
    """Not the 0.001 that momentum has for sums and products."""
    case = Case(name, 30, start="esn")
    W_hx = Job(case, Settings(hidden=500), tmp_path).net(case.task()).W_hx
    assert float(W_hx.std()) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(
    ("case", "unit"),
    [
        (Case("xor", 8), 6),
        (Case("mem-5", 8, "tikhonov"), 32),
        (Case("add", 8, preconditioner="fisher", start="esn"), 6),
    ],
    ids=lambda value: value.folder if isinstance(value, Case) else None,
)
def test_minibatches_are_passes_over_whole_batches(tmp_path: Path, case: Case, unit: int) -> None:
    """Gradients, products and a preconditioner's passes; objective evaluations apart."""
    job = Job(case, SETTINGS, tmp_path / "run")
    assert job.row is None
    assert job.so_far() is None
    assert job.run()
    row, lines = job.row, lines_of(job.folder)
    assert row is not None
    assert row["minibatches"] == sum(line["products"] + line["gradients"] for line in lines)
    assert row["objective_evaluations"] == sum(line["objective_evaluations"] for line in lines)
    assert row["iterations"] == len(lines)
    batches = 1 if unit == 32 else fig3.GRADIENT_BATCHES
    passes = 2 if case.preconditioner == "fisher" else 1
    assert [line["gradients"] for line in lines] == [passes * batches] * len(lines)
    config = json.loads((job.folder / "config.json").read_text())["optimizer"]
    assert config["structural"] == (0.0 if case.damping == "tikhonov" else 0.03)
    assert config["preconditioner"] == (None if case.preconditioner == "none" else "fisher")
    if not row["solved"]:
        assert row["minibatches"] >= 30
        assert sum(line["products"] + line["gradients"] for line in lines[:-1]) < 30
    assert 0 <= row["least_test_error"] <= row["test_error"] <= 1
    assert is_done(row, 30)
    assert is_done({**row, "reason": "budget"}, 31) is (row["minibatches"] >= 31)
    assert not is_done({**row, "reason": "unfinished"}, 1)


def test_a_summary_knows_when_the_criterion_of_1997_was_met() -> None:
    line: dict[str, Any] = {
        "objective_evaluations_total": 2, "loss": 1.0, "training_seconds": 3.0, "cg_stop": "a",
        "cg_iterations": 7, "accepted": True, "rho": float("-inf"),
    }  # fmt: skip
    lines = [
        {**line, "iteration": 1, "minibatches": 3, "test_error": 0.5, "damping": 1.0},
        {**line, "iteration": 2, "minibatches": 7, "test_error": None, "damping": 4.0},
        {
            **line, "iteration": 3, "minibatches": 8, "test_error": 0.6, "damping": 2.0,
            "solved_1997": True, "accepted": False, "rho": 0.5,
        },
    ]  # fmt: skip
    row = summary(lines, 10.0)
    assert (row["minibatches"], row["minibatches_1997"], row["iterations"]) == (80, 80, 3)
    assert (row["test_error"], row["least_test_error"]) == (0.6, 0.5)
    assert (row["damping_first"], row["damping_last"], row["damping_range"]) == (1.0, 2.0, [1, 4])
    assert (row["rho_median"], row["rho_not_finite"], row["rejected"]) == (0.5, 2, 1)
    assert summary(lines[:2], 1.0)["minibatches_1997"] is None
    assert set(summary(lines, 1.0)) == {"minibatches", "iterations", *STEPPED}


def test_groups_count_what_was_solved_what_failed_and_what_goes_on() -> None:
    def row(seed: int, minibatches: int, reason: str) -> dict[str, Any]:
        case = Case("xor", 30, seed=seed)
        return {**vars(case), "minibatches": minibatches, "reason": reason,
                "solved": reason == "solved"}  # fmt: skip

    rows = [row(0, 500, "solved"), row(1, 50_010, "budget"), row(2, 900, "solved")]
    rows += [row(3, 77, "unfinished")]
    (group,) = groups_of(rows, 50_000)
    assert (group.solved, group.failed, group.unfinished) == ([500, 900], 1, 1)
    later = row(3, 800, "solved")
    (group,) = groups_of(joined(rows, [later]), 50_000)
    assert (group.solved, group.failed, group.unfinished) == ([500, 900, 800], 1, 0)
    for limit, counts in {600: ([500], 3, 0), 60_000: ([500, 900, 800], 0, 1)}.items():
        (group,) = groups_of(joined(rows, [later]), limit)
        assert (group.solved, group.failed, group.unfinished) == counts
    assert joined([later], rows)[0] == later
    assert len(joined([later], rows)) == 4


# ---- the command


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a figure of two problems."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = invoke(*WHOLE, "--run-dir", folder)
    assert result.exit_code == 0, result.output
    assert f"{folder / 'xor-T8-structural-seed0'}: begins" in result.output
    assert (folder / "fig3.md").read_text().strip() in result.output
    return folder


def timeless(folder: Path, damping: str | None = None) -> dict[str, dict[str, Any]]:
    """Rows without their seconds, those of one damping or all."""
    return {
        name: {**row, "seconds": None}
        for name, row in rows_of(folder).items()
        if damping in (None, row["damping"])
    }


def test_the_figure_is_printed_written_and_printed_again(tmp_path: Path, whole: Path) -> None:
    folder = whole
    arguments = [*WHOLE, "--run-dir", folder]
    result = invoke(*arguments, "--resume")  # trains nothing
    assert result.exit_code == 0, result.output
    assert "begins" not in result.output
    figure, runs = tables_of(result.output)
    assert [row[:4] for row in figure[2:]] == [
        ["xor", "8", "structural", "1"], ["xor", "8", "tikhonov", "1"],
        ["mem-5", "8", "structural", "1"], ["mem-5", "8", "tikhonov", "1"],
    ]  # fmt: skip
    rows = rows_of(folder)
    assert len(rows) == len(runs) - 2 == 4
    for cells in runs[2:]:
        row = rows[f"{cells[0]}-T{cells[1]}-{cells[2]}-seed{cells[3]}"]
        assert cells[5] == f"{row['minibatches']:,}"
        assert cells[4] == ("solved" if row["solved"] else row["reason"])
        assert row["machine"] == cells[-1]
    assert (folder / "fig3.md").read_text().strip() in result.output
    assert (folder / "fig3.png").read_bytes().startswith(PNG)
    # A file of results alone is printed as well.
    stored = tmp_path / "committed.json"
    stored.write_bytes((folder / "fig3.json").read_bytes())
    arguments = [*TINY, "--problems", "xor", "--results", stored, "--print-only"]
    printed = invoke(*arguments, "--run-dir", tmp_path / "printed")
    assert tables_of(printed.output) == tables_of(result.output)
    assert rows_of(tmp_path / "printed") == rows
    more = invoke(
        *TINY, "--problems", "xor,add", "--damping", "structural", "--results", stored,
        "--run-dir", tmp_path / "more",
    )  # fmt: skip
    assert "add-T8-structural-seed0: begins" in more.output
    assert "xor-T8-structural-seed0: begins" not in more.output
    assert len(rows_of(tmp_path / "more")) == 5
    other = [*(a if a != "5" else "4" for a in TINY), "--problems", "xor"]
    refused = invoke(*other, "--results", stored, "--run-dir", tmp_path / "other")
    assert refused.exit_code == 1
    assert "had hidden 5, need 4 like here" in refused.output


def test_stopped_within_a_run_and_resumed(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure has the counts of one that was not stopped."""
    arguments = [*TINY, "--problems", "xor,mem-5", "--damping", "structural"]
    seen = 0

    class Interrupting(hf.Callback):
        def on_step(self, state: hf.TrainState) -> None:
            nonlocal seen
            seen += 1
            if seen == 1:
                os.kill(os.getpid(), signal.SIGINT)

    train = hf.train
    with monkeypatch.context() as patch:
        patch.setattr(
            hf, "train", lambda *a, **k: train(*a, **{**k, "callbacks": [Interrupting()]})
        )
        stopped = invoke(*arguments, "--run-dir", tmp_path / "run")
    assert stopped.exit_code == 130
    assert f"--run-dir {tmp_path / 'run'} --resume" in stopped.output
    (cells,) = tables_of(stopped.output)[0][2:]
    assert cells[-1] == "1"  # unfinished
    assert "already holds a run" in invoke(*arguments, "--run-dir", tmp_path / "run").output
    resumed = invoke(*arguments, "--run-dir", tmp_path / "run", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert timeless(tmp_path / "run") == timeless(whole, "structural")


@pytest.mark.parametrize(("option", "had"), {"hidden": 5, "batch-size": 6, "test-size": 12}.items())
@pytest.mark.parametrize("done", [True, False])
def test_runs_with_other_settings_are_not_shown_as_ones_with_these(
    tmp_path: Path, whole: Path, option: str, had: int, done: bool
) -> None:
    name = "xor-T8-structural-seed0"
    shutil.copytree(whole / name, tmp_path / "run" / name)
    if not done:
        (tmp_path / "run" / name / "row.json").unlink()
    for how in ("--resume", "--print-only") if done else ("--print-only",):
        result = invoke(
            *TINY, "--problems", "xor", "--damping", "structural", f"--{option}", had + 1,
            "--run-dir", tmp_path / "run", how,
        )  # fmt: skip
        assert result.exit_code == 1
        setting = option.replace("-", "_")
        assert f"{name} had {setting} {had}, need {had + 1} like here" in result.output


def test_a_lower_limit_fails_what_came_later(tmp_path: Path, whole: Path) -> None:
    (row,) = (
        row
        for row in rows_of(whole).values()
        if (row["problem"], row["damping"]) == ("mem-5", "structural")
    )
    path = tmp_path / "fig3.json"
    path.write_text(json.dumps({"runs": [{**row, "solved": True, "reason": "solved"}]}))
    at = {
        row["minibatches"]: ("solved", "1", "0"),
        row["minibatches"] - 1: ("solved too late", "0", "1"),
    }
    for limit, (outcome, solved, failed) in at.items():
        printed = invoke(
            *TINY, "--problems", "mem-5", "--results", path, "--print-only", "--limit", limit,
            "--run-dir", tmp_path / str(limit),
        )  # fmt: skip
        figure, runs = tables_of(printed.output)
        assert (figure[2][4], figure[2][8], runs[2][4]) == (solved, failed, outcome)


@pytest.mark.parametrize("text", ["{", "[1]", '{"reason": "budget"}', "lacks"])
def test_a_damaged_row_is_named(tmp_path: Path, whole: Path, text: str) -> None:
    """Without it the run's log gives the same row."""
    name = "xor-T8-structural-seed0"
    folder = tmp_path / "run" / name
    shutil.copytree(whole / name, folder)
    row = json.loads((folder / "row.json").read_text())
    lacking = {key: value for key, value in row.items() if key != "damping_range"}
    (folder / "row.json").write_text(json.dumps(lacking) if text == "lacks" else text)
    arguments = [*TINY, "--problems", "xor", "--damping", "structural", "--run-dir", folder.parent]
    result = invoke(*arguments, "--resume")
    assert result.exit_code == 1
    assert f"{folder / 'row.json'}: holds no row of this figure" in result.output
    (folder / "row.json").unlink()
    assert invoke(*arguments, "--resume").exit_code == 0
    assert json.loads((folder / "row.json").read_text()) == row


def test_a_higher_limit_goes_on_with_what_failed(tmp_path: Path) -> None:
    arguments = [*TINY, "--problems", "add", "--damping", "tikhonov", "--run-dir", tmp_path / "run"]
    first = rows_of_after(invoke(*arguments), tmp_path / "run")
    more = rows_of_after(invoke(*arguments, "--resume", "--limit", "90"), tmp_path / "run")
    (a,), (b,) = first.values(), more.values()
    assert (a["reason"], b["reason"]) == ("budget", "budget")
    assert a["minibatches"] < 90 <= b["minibatches"]
    assert b["iterations"] > a["iterations"]


def rows_of_after(result: Any, folder: Path) -> dict[str, dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return rows_of(folder)


@pytest.mark.slow  # two processes that import everything
def test_two_workers_do_what_one_does(
    tmp_path: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A failing run beside a good one is named when the good one has ended."""
    good = Job(Case("mem-5", 8), replace(SETTINGS, limit=60), tmp_path / "good")
    bad = Job(Case("xor", 8), SETTINGS, tmp_path / "bad")
    bad.folder.mkdir()
    (bad.folder / "other.txt").write_text("no run")
    ended: list[Job] = []
    with pytest.raises(RuntimeError, match=f"{bad}: failed, see above"):
        side_by_side([good, bad], 2, ended=ended.append)
    assert ended == [good]
    assert "has no config.json, it is not a run folder" in capfd.readouterr().err
    row = rows_of(whole)["mem-5-T8-structural-seed0"]
    assert good.row is not None
    assert {**good.row, "seconds": None} == {**row, "seconds": None}


def test_an_interrupt_ends_the_processes(tmp_path: Path) -> None:
    """The second job is interrupted while it begins; there is no third."""
    begun: list[Job] = []

    def begin(job: Job) -> None:
        begun.append(job)
        if len(begun) == 2:
            raise KeyboardInterrupt

    jobs = [Job(Case("xor", 8, seed=i), SETTINGS, tmp_path / str(i)) for i in range(3)]
    assert not side_by_side(jobs, 2, begun=begin)
    assert begun == jobs[:2]
    assert multiprocessing.active_children() == []


REFUSED = {
    "--problems sub": "got 'sub', need some of add, mul, xor",
    "--problems add,add": "need different names",
    "--lengths 2": "add with T = 2: length: got 2, need at least 3",
    "--problems mem-20 --lengths 10": "mem-20 with T = 10: length: got 10, need at least 11",
    "--lengths 30.5": "need whole numbers",
    "--lengths x": "got 'x', need numbers",
    "--damping none": "got 'none', need some of structural, tikhonov",
    "--starts dense": "got 'dense', need some of sparse, esn",
    "--preconditioners jacobi": "got 'jacobi', need some of none, fisher",
    "--seeds 0": "need at least 1 seed",
    "--limit 0": "Invalid value for '--limit'",
    "--workers 0": "Invalid value for '--workers'",
    "--results nowhere.json": "'nowhere.json' does not exist",
    "--resume": "--resume needs --run-dir",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_bad_options(arguments: str) -> None:
    result = invoke(*FIGURE, *arguments.split())
    assert result.exit_code == 2
    assert REFUSED[arguments] in " ".join(result.output.replace("│", " ").split())


def test_a_file_that_holds_no_results(tmp_path: Path) -> None:
    path = tmp_path / "fig3.json"
    case = json.dumps(vars(Case("xor", 8)))
    for text in ("{", "{}", '{"runs": [{"problem": "add"}]}', "[]", f'{{"runs": [{case}]}}'):
        path.write_text(text)
        arguments = [*TINY, "--problems", "xor", "--print-only", "--run-dir", tmp_path / "run"]
        result = invoke(*arguments, "--results", path)
        assert result.exit_code == 1
        assert f"{path}: holds no results of this figure" in result.output
