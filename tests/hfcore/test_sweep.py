"""Sweeps: each run is what it is alone, through groups, cohorts, divergence, stops and resumes."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupts import interrupted_sweeps
from matplotlib.figure import Figure
from rich.console import Console

import hfcore as hf
from hfcore.problems import Addition
from hfcore.sweeps import RnnStart, SweepResult, join, sweep, sweep_in_rounds
from hfcore.sweeps.cohort import ARRAYS
from hfcore.sweeps.grid import expand
from hfcore.sweeps.outcome import Constant, Test, constant_output, escape, outcome
from hfcore.sweeps.progress import SweepDisplay
from hfcore.training import CheckpointError, ConfigMismatchError, RunFolderError
from hfcore.training.data import TrainingData
from hfcore.training.plots import scale

GRID = {"learning_rate": [0.05, 0.01], "momentum": [0.0, 0.9], "method": ["nag", "cm"]}
SMALL: dict[str, Any] = {
    "updates": 25,
    "batch_size": 7,
    "test_every": 10,
    "test_size": 50,
    "start": RnnStart(hidden_size=11),
    "progress": False,
}


def run(grid: Any = GRID, **options: Any) -> SweepResult:
    return sweep(Addition(10, centre=True), grid, **{**SMALL, **options})


def assert_same(a: SweepResult, b: SweepResult, pairs: list[tuple[int, int]]) -> None:
    for i, j in pairs:
        assert a.runs[i] == b.runs[j]
        assert a.tests[i] == b.tests[j]
        assert torch.equal(a.parameters[i], b.parameters[j])


def same_run(result: SweepResult, settings: Any) -> int:
    return list(result.runs).index(settings)


@pytest.fixture(scope="module")
def whole() -> SweepResult:
    torch.set_num_threads(1)
    return run(seeds=2)


def test_every_run_equals_the_run_alone(whole: SweepResult) -> None:
    for i, settings in enumerate(whole.runs):
        grid = {
            "learning_rate": [settings.learning_rate],
            "momentum": [settings.momentum],
            "method": [settings.method],
        }
        alone = run(grid, seeds=[settings.seed])
        assert_same(whole, alone, [(i, 0)])


def test_cohorts_cut_by_memory_change_nothing(whole: SweepResult) -> None:
    numel = whole.parameters[0].numel()
    cut = run(seeds=2, max_bytes=2 * ARRAYS * 4 * numel)
    assert_same(whole, cut, [(i, i) for i in range(len(whole.runs))])


def test_a_limit_below_one_net_still_trains_one_at_a_time(whole: SweepResult) -> None:
    assert_same(whole, run(seeds=2, max_bytes=1), [(i, i) for i in range(len(whole.runs))])


def test_threads_change_nothing(whole: SweepResult) -> None:
    torch.set_num_threads(2)
    assert_same(whole, run(seeds=2), [(i, i) for i in range(len(whole.runs))])


@pytest.mark.parametrize(
    ("method", "falling"), [("sgd", 0), ("cm", 0), ("nag", 0), ("nag", 5)], ids=str
)
def test_updates_follow_the_equations(method: str, falling: int) -> None:
    """Eqs. 1-4 by autograd in float64 on the same batches; ε is whole, or falls at the end."""
    rate, mu, updates, problem = 0.05, 0.9, 12, Addition(10, centre=True)
    start = RnnStart(hidden_size=11)
    grid = {"learning_rate": [rate], "momentum": [mu], "method": [method]}
    ending = {"falling_updates": falling} if falling else {}
    result = run(grid, updates=updates, schedule="constant", **ending)
    model = start.build(problem, 0).double()
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    v, data = (
        torch.zeros_like(theta),
        TrainingData(problem, 0, torch.float32, torch.device("cpu")),
    )
    mu = 0.0 if method == "sgd" else mu
    for t in range(updates):
        (batch,) = data.batches(1, SMALL["batch_size"])
        point = theta + mu * v if method == "nag" else theta
        torch.nn.utils.vector_to_parameters(point, model.parameters())
        s = model(batch.inputs.double())
        loss = 0.5 * (s[-1] - batch.targets[-1].double()).square().sum() / batch.inputs.shape[1]
        g = torch.cat([p.reshape(-1) for p in torch.autograd.grad(loss, list(model.parameters()))])
        share = min(1.0, (updates - t) / falling) if falling else 1.0
        v = mu * v - share * rate * g
        theta = theta + v
    got = result.parameters[0].double()
    start_theta = torch.nn.utils.parameters_to_vector(start.build(problem, 0).parameters())
    moved = (theta - start_theta.detach()).norm()
    assert moved > 1e-3  # else the comparison says nothing
    assert (got - theta).norm() < 1e-4 * moved


def test_weight_decay_is_part_of_the_gradient() -> None:
    grid = {"learning_rate": [0.1], "method": ["sgd"]}
    plain = run(grid, updates=1).parameters[0]
    decayed = run(grid, updates=1, weight_decay=0.5).parameters[0]
    start = RnnStart(hidden_size=11).build(Addition(10, centre=True), 0)
    theta = torch.nn.utils.parameters_to_vector(start.parameters()).detach()
    torch.testing.assert_close(plain - decayed, 0.1 * 0.5 * theta, rtol=0, atol=1e-6)


def test_diverged_runs_are_retired_and_disturb_nobody(whole: SweepResult) -> None:
    grid = {**GRID, "learning_rate": [0.05, 1e30, 0.01]}
    result = run(grid, seeds=2)
    for i, settings in enumerate(whole.runs):
        assert_same(whole, result, [(i, same_run(result, settings))])
    wild = [i for i, r in enumerate(result.runs) if r.learning_rate == 1e30]
    assert sorted(result.diverged_at) == wild
    assert all(i not in result.parameters for i in wild)
    for row in result.rows():
        assert (row["outcome"] == "diverged") == (row["run"] in wild)
        if row["run"] in wild:
            assert row["error"] is None
            assert row["updates"] < SMALL["updates"]


def test_a_sweep_whose_runs_all_diverge_ends() -> None:
    result = run({"learning_rate": [1e30, 1e31]}, seeds=2)
    assert [row["outcome"] for row in result.rows()] == ["diverged"] * 4
    assert not result.parameters
    with pytest.raises(ValueError, match="no run with"):
        result.best()


@pytest.mark.parametrize("after", [0, 1, 17, 40])
def test_a_stopped_and_resumed_sweep_has_the_same_bits(
    whole: SweepResult, tmp_path: Path, after: int
) -> None:
    folder = tmp_path / "sweep"
    with interrupted_sweeps(after):
        stopped = run(seeds=2, run_dir=folder)
    assert stopped.reason == "interrupted"
    assert stopped.updates < SMALL["updates"]
    resumed = run(seeds=2, run_dir=folder, resume=True)
    assert resumed.reason == "updates"
    assert_same(whole, resumed, [(i, i) for i in range(len(whole.runs))])
    uninterrupted = run(seeds=2, run_dir=tmp_path / "other")
    for name in ("runs.csv", "history.csv", "parameters.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert uninterrupted.rows() == resumed.rows()


@pytest.mark.parametrize("damage", ["lost", "altered", "emptied"])
def test_results_do_not_rest_on_the_log(whole: SweepResult, tmp_path: Path, damage: str) -> None:
    with interrupted_sweeps(40):
        run(seeds=2, run_dir=tmp_path / "s")
    log = tmp_path / "s" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    first = {"lost": "", "altered": lines[0].replace("1", "2"), "emptied": ""}[damage]
    log.write_text("" if damage == "emptied" else first + "".join(lines[1:]))
    resumed = run(seeds=2, run_dir=tmp_path / "s", resume=True)
    assert_same(whole, resumed, [(i, i) for i in range(len(whole.runs))])


def test_resume_after_divergence(tmp_path: Path) -> None:
    grid = {"learning_rate": [0.05, 1e30]}
    with interrupted_sweeps(16):
        run(grid, run_dir=tmp_path / "s")
    resumed = run(grid, run_dir=tmp_path / "s", resume=True)
    through = run(grid)
    assert resumed.diverged_at == through.diverged_at
    assert_same(resumed, through, [(0, 0)])


def test_a_finished_sweep_goes_on_with_more_updates(tmp_path: Path) -> None:
    run(seeds=1, updates=10, run_dir=tmp_path / "s")
    longer = run(seeds=1, updates=20, run_dir=tmp_path / "s", resume=True)
    assert_same(longer, run(seeds=1, updates=20), [(i, i) for i in range(len(longer.runs))])


FALLING: dict[str, Any] = {"seeds": 2, "final_updates": 10, "schedule": "constant"}


@pytest.mark.parametrize(
    ("lost", "ending"),
    [(0, FALLING), (7, FALLING), (25, FALLING), (7, {"seeds": 2, "falling_updates": 10})],
)
def test_a_sweep_in_its_last_phase_is_extended_from_where_that_began(
    tmp_path: Path, lost: int, ending: dict[str, Any]
) -> None:
    """Finished, or stopped in the last phase and resumed with other updates."""
    through = run(updates=40, **ending)
    folder = tmp_path / "s"
    if lost:
        with interrupted_sweeps(2 * 30 - lost):  # two cohorts, and a question an update
            stopped = run(updates=30, run_dir=folder, **ending)
        assert stopped.reason == "interrupted"
    else:
        run(updates=30, run_dir=folder, **ending)
    longer = run(updates=40, run_dir=folder, resume=True, **ending)
    assert_same(through, longer, [(i, i) for i in range(len(through.runs))])
    assert longer.history() == through.history()
    again = run(updates=60, run_dir=folder, resume=True, **ending)  # and once more
    assert_same(run(updates=60, **ending), again, [(i, i) for i in range(len(again.runs))])


def test_runs_that_diverge_in_the_last_phase_come_back(tmp_path: Path) -> None:
    grid = {"learning_rate": [0.05, 1.0], "momentum": [0.999]}
    options = {**FALLING, "seeds": 1, "final_updates": 20}
    short = run(grid, updates=40, run_dir=tmp_path / "s", **options)
    through = run(grid, updates=60, **options)
    longer = run(grid, updates=60, run_dir=tmp_path / "s", resume=True, **options)
    assert longer.diverged_at == through.diverged_at
    assert longer.history() == through.history()
    assert [at >= 20 for at in short.diverged_at.values()] == [True]


def test_an_end_that_cannot_be_moved(tmp_path: Path) -> None:
    run(updates=30, run_dir=tmp_path / "s", **FALLING)
    with pytest.raises(ConfigMismatchError, match=r"updates: got 25, .* cannot end earlier"):
        run(updates=25, run_dir=tmp_path / "s", resume=True, **FALLING)
    untested = {**FALLING, "test_every": 7}
    run(updates=30, run_dir=tmp_path / "t", **untested)
    with pytest.raises(ConfigMismatchError, match="one stays where test_every divides"):
        run(updates=40, run_dir=tmp_path / "t", resume=True, **untested)
    same = run(updates=30, run_dir=tmp_path / "t", resume=True, **untested)
    assert same.updates == 30


def test_folders_of_other_sweeps_are_refused(tmp_path: Path) -> None:
    grid = {"learning_rate": [0.01]}
    run(grid, updates=5, run_dir=tmp_path / "s")
    with pytest.raises(RunFolderError, match="already holds a run"):
        run(grid, updates=5, run_dir=tmp_path / "s")
    with pytest.raises(ConfigMismatchError, match=r"learning_rate is 0\.01 there and 0\.02 here"):
        run({"learning_rate": [0.02]}, updates=5, run_dir=tmp_path / "s", resume=True)
    with pytest.raises(ValueError, match="resume: got True without run_dir"):
        run(grid, resume=True)
    for path in (tmp_path / "s" / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        run(grid, updates=5, run_dir=tmp_path / "s", resume=True)


def test_tables(whole: SweepResult, tmp_path: Path) -> None:
    rows = whole.rows()
    with whole.write(tmp_path / "t.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(row["error"]) for row in read] == [row["error"] for row in rows]
    assert [row["method"] for row in read] == [row["method"] for row in rows]
    with whole.write(tmp_path / "h.csv", history=True).open() as file:
        history = list(csv.DictReader(file))
    assert len(history) == len(rows) * 3  # tests at 10, 20 and 25
    assert {row["update"] for row in history} == {"10", "20", "25"}
    assert whole.best(method="nag")["error"] == min(
        row["error"] for row in rows if row["method"] == "nag"
    )
    with pytest.raises(ValueError, match=r"need a name that ends in .csv or .parquet"):
        whole.write(tmp_path / "t.xlsx")


def test_parquet(whole: SweepResult, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(whole.write(tmp_path / "t.parquet"))
    assert table.to_pylist() == whole.rows()


def test_the_folder_holds_tables_and_plots(tmp_path: Path) -> None:
    result = run(seeds=1, run_dir=tmp_path / "s")
    assert result.run_dir == tmp_path / "s"
    assert [path.name for path in result.plots] == ["error.png", "outcomes.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in result.plots)
    assert (tmp_path / "s" / "runs.csv").read_text().count("\n") == 1 + len(result.runs)


def test_test_errors_are_those_of_the_model(whole: SweepResult) -> None:
    problem, index = Addition(10, centre=True), 3
    model = RnnStart(hidden_size=11).build(problem, whole.runs[index].seed)
    torch.nn.utils.vector_to_parameters(whole.parameters[index], model.parameters())
    data = TrainingData(problem, whole.runs[index].seed, torch.float32, torch.device("cpu"))
    batches = data.test_set(SMALL["test_size"])
    with torch.no_grad():
        wrong = [float(problem.wrong(model(b.inputs), b).double().mean()) for b in batches]
    assert whole.tests[index][-1].wrong == pytest.approx(np.mean(wrong), abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"updates": 0}, "updates"),
        ({"batch_size": 0}, "batch_size"),
        ({"test_every": 0}, "test_every"),
        ({"test_size": 0}, "test_size"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"schedule": "cosine"}, "schedule"),
        ({"final_updates": 26}, "final_updates"),
        ({"falling_updates": 26}, "falling_updates"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_decay": float("nan")}, "weight_decay"),
    ],
)
def test_refused_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        run({"learning_rate": [0.1]}, **options)


def test_a_problem_may_be_named() -> None:
    with pytest.raises(ValueError, match="problem: got 'nothing'"):
        sweep("nothing", {"learning_rate": [0.1]}, progress=False)


def test_exported() -> None:
    assert hf.sweep is sweep


# ---- outcomes

CONSTANT = Constant(loss=1.0, error=0.8)


def made(*points: tuple[float, float]) -> list[Test]:
    """Tests with these (test loss, error), one every 100 updates."""
    return [Test(100 * (i + 1), 0.0, loss, e, e) for i, (loss, e) in enumerate(points)]


@pytest.mark.parametrize(
    ("points", "expected", "at"),
    [
        ([(0.99, 0.8), (0.95, 0.79)], "plateau", None),
        ([(0.99, 0.8), (0.3, 0.2), (0.01, 0.005)], "solved", 200),
        ([(0.99, 0.8), (0.3, 0.39)], "escaped", 200),
        ([(0.99, 0.8), (0.9, 0.8), (1.0, 0.8)], "collapsed", None),
        ([(1.0, 0.8), (0.999, 0.8)], "plateau", None),
        ([(0.2, 0.3), (1.0, 0.8)], "collapsed", 100),
        ([], "untested", None),
    ],
)
def test_outcomes(points: list[tuple[float, float]], expected: str, at: int | None) -> None:
    tests = made(*points)
    assert outcome(tests, CONSTANT, diverged=False, solved_below=0.01) == expected
    assert outcome(tests, CONSTANT, diverged=True, solved_below=0.01) == "diverged"
    assert escape(tests, CONSTANT) == at


def test_the_constant_output_is_the_best_one() -> None:
    problem = Addition(10)
    data = TrainingData(problem, 0, torch.float64, torch.device("cpu"))
    batches = data.test_set(500)
    constant = constant_output(problem, batches)
    targets = torch.cat([b.targets[-1, :, 0] for b in batches])
    assert constant.loss == pytest.approx(0.5 * float(targets.var(unbiased=False)), rel=1e-12)
    wrong = (targets - targets.mean()).abs() > problem.tolerance
    assert constant.error == pytest.approx(float(wrong.double().mean()), abs=1e-12)


# ---- rounds


def in_rounds(folder: Path, rates: list[float], seeds: int, **options: Any) -> SweepResult:
    runs = expand({"learning_rate": rates, "momentum": [0.9]}, seeds, ())
    return sweep_in_rounds(Addition(10, centre=True), runs, folder, **{**SMALL, **options})


def test_later_runs_go_to_further_folders_and_none_is_done_twice(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    in_rounds(folder, [0.05, 0.01], 1)
    grown = in_rounds(folder, [0.01, 0.02], 2, resume=True)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["s", "s-2"]
    wanted = [(0.01, 0), (0.01, 1), (0.02, 0), (0.02, 1)]
    assert sorted((r.learning_rate, r.seed) for r in grown.runs) == wanted
    added = csv_rows(tmp_path / "s-2" / "runs.csv")
    assert sorted((float(r["learning_rate"]), int(r["seed"])) for r in added) == wanted[1:]
    alone = in_rounds(tmp_path / "other", [0.01, 0.02], 2)
    assert_same(grown, alone, [(i, same_run(alone, r)) for i, r in enumerate(grown.runs)])


def test_a_stopped_round_is_finished_first(tmp_path: Path) -> None:
    with interrupted_sweeps(12):
        assert in_rounds(tmp_path / "s", [0.05], 1).reason == "interrupted"
    grown = in_rounds(tmp_path / "s", [0.05, 0.01], 1, resume=True)
    assert (grown.reason, grown.updates) == ("updates", SMALL["updates"])
    assert_same(grown, in_rounds(tmp_path / "other", [0.05, 0.01], 1), [(0, 0), (1, 1)])


def test_rounds_need_resume_and_a_sweep(tmp_path: Path) -> None:
    in_rounds(tmp_path / "s", [0.05], 1)
    with pytest.raises(RunFolderError, match="already holds a run"):
        in_rounds(tmp_path / "s", [0.01], 1)
    (tmp_path / "s" / "config.json").write_text('{"format": 2}')
    with pytest.raises(RunFolderError, match="is not the config of a sweep"):
        in_rounds(tmp_path / "s", [0.01], 1, resume=True)


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_join_numbers_runs_anew(whole: SweepResult) -> None:
    wild = run({"learning_rate": [1e30, 0.05], "method": ["sgd"]})
    both = join([whole, wild])
    n = len(whole.runs)
    assert list(both.runs) == [*whole.runs, *wild.runs]
    assert set(both.diverged_at) == {n}
    assert torch.equal(both.parameters[n + 1], wild.parameters[1])
    assert [row["run"] for row in both.rows()] == list(range(n + 2))
    last = both.of([n + 1, 0])
    assert_same(last, wild, [(0, 1)])
    assert_same(last, whole, [(1, 0)])
    assert not last.diverged_at
    with pytest.raises(ValueError, match="results: got none"):
        join([])


# ---- what is seen of it


def test_lines_without_a_terminal_say_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("hfcore.sweeps.progress.time.perf_counter", lambda: now)
    written = io.StringIO()
    display = SweepDisplay(Console(file=written))
    display.begin(total=1000, done=200)
    display.advance(4)
    assert written.getvalue() == ""  # too early to tell
    now = 104.0
    display.advance(6)  # 10 of 800 in 4 s
    display.report(5, made((0.5, 0.25)))
    now = 140.0
    display.advance(90)
    assert written.getvalue().splitlines() == [
        "210 of 1,000 updates  about 5:16 left",
        "300 of 1,000 updates  about 4:40 left  best error after 5 updates 0.25",
    ]


def test_axes_are_logarithmic_where_values_differ_by_a_factor_of_ten() -> None:
    for values, scale_of_y in (([0.8, 0.09], "linear"), ([0.8, 0.08, 0.0, math.nan], "log")):
        ax = Figure().add_subplot()
        scale(ax, values)
        assert ax.get_yscale() == scale_of_y
