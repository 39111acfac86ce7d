"""``hfcore reproduce table5``: choice of ε, seeds, resuming, published figures, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from interrupts import interrupted_sweeps

from command_line import assert_another_run_is_refused, invoke, tables_of
from hfcore.cli.tables import clock, number
from hfcore.experiments import tuning
from hfcore.experiments.published import TABLE5
from hfcore.experiments.table5 import (
    COLUMNS,
    PROBLEMS,
    RATES,
    TEST_SIZE,
    Rung,
    columns_of,
)
from hfcore.experiments.tuning import (
    Column,
    ColumnResult,
    Procedure,
    SweepRun,
    Tuned,
    column_settings,
)
from hfcore.problems import Addition
from hfcore.sweeps import RnnStart, sweep

PNG = b"\x89PNG\r\n\x1a\n"
TABLE = ["reproduce", "table5", "--quiet", "--threads", "1", "--hidden", "9"]
SMALL = ["--updates", "20", "--test-every", "10", "--seeds", "2", "--batch-size", "5"]
TINY = [*TABLE, *SMALL, "--problems", "add-5,mem-5-2", "--columns", "0,0.9N"]
RATE = ["--rates", "0.1,0.01"]
OPTIONS: dict[str, Any] = {
    "batch_size": 5,
    "test_every": 10,
    "test_size": 40,
    "start": RnnStart(hidden_size=9),
    "progress": False,
}
NAG = {"method": "nag", "momentum": 0.9}
SGD = {"method": "sgd", "momentum": 0.0}


# ---- the procedure


def tune(folder: Path, columns: list[Column], **changes: Any) -> Tuned:
    arguments: dict[str, Any] = {"seeds": (0, 1), "updates": 20, "search_updates": 20}
    return Procedure(**{**arguments, **changes}, options=OPTIONS)(
        Addition(5, centre=True), columns, folder
    )


def test_the_rate_with_the_least_error_of_the_first_seed_is_run_with_all_seeds(
    tmp_path: Path,
) -> None:
    columns = [Column("0", SGD, (0.3, 0.01, 1e30)), Column("0.9N", NAG, (0.03, 1e-3))]
    tuned = tune(tmp_path, columns, seeds=(3, 1, 2), choose_by="first-seed")
    assert tuned.finished
    assert tuned.search is not None
    assert tuned.final is not None
    assert [run.seed for run in tuned.search.runs] == [3] * 5
    assert [run.seed for run in tuned.final.runs] == [1, 2] * 2
    for column, result in zip(columns, tuned.columns, strict=True):
        ended = [row for row in (run.row for run in result.searched) if row["error"] is not None]
        best = min(ended, key=lambda row: (row["error"], row["test_loss"]))
        assert result.chosen == best["learning_rate"]
        assert [row["seed"] for row in result.rows] == [3, 1, 2]
        alone = sweep(
            Addition(5, centre=True), column.grid([result.chosen]), seeds=[3, 1, 2], updates=20,
            **OPTIONS,
        )  # fmt: skip
        same = ("error", "test_loss", "outcome", "updates", "seed")
        assert [[r[k] for k in same] for r in result.rows] == [
            [r[k] for k in same] for r in alone.rows()
        ]
        assert result.error == pytest.approx(sum(r["error"] for r in alone.rows()) / 3)
    assert tuned.seconds == tuned.search.seconds + tuned.final.seconds


def row(rate: float, seed: int, error: float | None, loss: float | None = 1.0) -> SweepRun:
    return SweepRun(
        {"learning_rate": rate, "seed": seed, "error": error, "test_loss": loss, **SGD}, []
    )


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        # The first seed alone would take 0.1, and a median 0.1 too.
        ({0.1: (0.0, 0.0, 0.9), 0.01: (0.2, 0.3, 0.2)}, 0.01),
        ({0.1: (0.0, None, 0.0), 0.01: (0.8, 0.8, 0.8)}, 0.01),  # one diverged
        ({0.1: (0.5, None, 0.0), 0.01: (0.8, 0.8, None)}, None),
        ({0.1: (0.5, 0.1, 0.0)}, 0.1),
    ],
)
def test_the_rate_with_the_best_average_is_chosen(
    errors: dict[float, tuple[float | None, ...]], chosen: float | None
) -> None:
    """Sutskever et al. (2013), table 5: over all seeds, not over the first."""
    searched = [row(rate, seed, e) for rate, es in errors.items() for seed, e in enumerate(es)]
    assert tuning.best_rate(Column("0", SGD, tuple(errors)), searched) == chosen
    equal = [row(0.1, 0, 0.5, 2.0), row(0.1, 1, 0.5, 2.0), row(0.3, 0, 0.4, 1.0)]
    equal.append(row(0.3, 1, 0.6, 2.0))
    assert tuning.best_rate(Column("0", SGD, (0.1, 0.3)), equal) == 0.3  # by the loss


def test_averages_are_of_runs_of_all_seeds(tmp_path: Path) -> None:
    columns = [Column("0", SGD, (0.3, 0.01)), Column("0.9N", NAG, (0.03,))]
    tuned = tune(tmp_path, columns, seeds=(3, 1))
    assert tuned.search is not None
    assert tuned.final is None  # the search was as long: nothing is done again
    assert sorted(run.seed for run in tuned.search.runs) == [1, 1, 1, 3, 3, 3]
    rates = {run.row["learning_rate"] for run in tuned.column("0").searched}
    means = {
        rate: sum(
            r.row["error"] for r in tuned.column("0").searched if r.row["learning_rate"] == rate
        )
        for rate in rates
    }
    assert means[tuned.column("0").chosen] == min(means.values())
    assert [row["seed"] for row in tuned.column("0").rows] == [3, 1]
    shorter = tune(tmp_path / "shorter", columns, seeds=(3, 1), search_updates=10)
    assert shorter.search is not None
    assert shorter.final is not None
    assert sorted(run.seed for run in shorter.search.runs) == [1, 1, 3, 3]
    assert sorted(run.seed for run in shorter.final.runs) == [1, 1, 3, 3]


def test_a_shorter_search_leaves_all_seeds_to_the_final_runs(tmp_path: Path) -> None:
    columns = [Column("0", SGD, (0.3, 0.01)), Column("0.9N", NAG, (0.03,))]
    tuned = tune(tmp_path, columns, search_updates=10)
    assert tuned.search is not None
    assert tuned.search.updates == 10
    assert {run.label for run in tuned.search.runs} == {"0"}  # one rate is no choice
    assert [row["seed"] for row in tuned.column("0").rows] == [0, 1]
    assert tuned.column("0.9N").chosen == 0.03
    assert tuned.column("0.9N").updates == 20
    single = tune(tmp_path / "single", columns[1:], search_updates=10)
    assert single.search is None
    assert single.finished


def test_one_seed_needs_no_final_runs(tmp_path: Path) -> None:
    tuned = tune(tmp_path, [Column("0", SGD, (0.3, 0.01))], seeds=(0,))
    assert tuned.final is None
    assert tuned.finished
    assert len(tuned.column("0").rows) == 1


def test_a_column_that_always_diverges_has_no_rate(tmp_path: Path) -> None:
    tuned = tune(tmp_path, [Column("0", SGD, (1e30, 1e32)), Column("0.9N", NAG, (0.01,))])
    lost = tuned.column("0")
    assert lost.chosen is None
    assert lost.error is None
    assert lost.rows == []
    assert [run.row["outcome"] for run in lost.searched] == ["diverged"] * 4
    assert len(tuned.column("0.9N").rows) == 2


def test_a_diverged_seed_makes_the_mean_infinite() -> None:
    rows = [{"error": 0.1, "outcome": "escaped"}, {"error": None, "outcome": "diverged"}]
    runs = [SweepRun(row, []) for row in rows]
    result = ColumnResult(Column("0", SGD, (0.1,)), 0.1, [], runs)
    assert result.error == float("inf")
    assert result.outcomes == {"escaped": 1, "diverged": 1}


# ---- rows, columns and rates


def test_rungs_and_columns() -> None:
    for name in PROBLEMS:
        assert str(Rung.parse(name)) == name
        assert Rung.parse(name).problem().centre
    assert Rung.parse("mem-20-80").problem().name == "memorization-20bit"
    assert Rung.parse("mem-5-200").problem().config()["length"] == 200
    assert column_settings("0.995M") == {"method": "cm", "momentum": 0.995}
    assert column_settings("0") == SGD
    rates = {"": (1.0,), "0": (2.0,), "add-80": (3.0,), "mul-80/0": (4.0,)}
    at = [
        [c.rates[0] for c in columns_of(Rung.parse(name), ["0", "0.9N"], rates)]
        for name in ("add-80", "mul-80")
    ]
    assert at == [[2.0, 3.0], [4.0, 1.0]]
    assert columns_of(Rung.parse("add-80"), ["0"], {})[0].rates == RATES["add"]


def test_published_numbers_have_all_rows_and_columns() -> None:
    assert tuple(TABLE5.numbers) == PROBLEMS
    for row in TABLE5.numbers.values():
        assert tuple(row) == ("biases", *COLUMNS)
    assert TABLE5.get("add-80", "0.995N") == 0.00025
    assert TABLE5.get("add-20", "0.995N") is None


# ---- the command


def test_the_table_stands_beside_the_published_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*TABLE, *SMALL, "--problems", "add-80,add-5", "--columns", "0,0.995M"]
    arguments += ["--rates", "0.1,0.01", "--rates", "add-80/0=0.1", "--run-dir", str(folder)]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    main_table, details = tables_of(result.output)
    assert main_table[0] == ["", "biases", "0", "0.995M"]
    assert main_table[2] == ["add-80, published", "0.82", "0.39", "0.036"]
    assert main_table[4] == ["add-5, published", "–", "–", "–"]
    numbers = json.loads((folder / "table5.json").read_text())
    assert "Sutskever et al. (2013), table 5" in result.output
    assert numbers["published_source"] == TABLE5.source
    assert numbers["settings"]["updates"] == 20
    for row, name in ((main_table[3], "add-80"), (main_table[5], "add-5")):
        columns = numbers["problems"][name]["columns"]
        assert row == [
            f"{name}, here",
            number(0.8464),
            *(number(c["error"]) for c in columns.values()),
        ]
        for column in columns.values():
            assert column["error"] == sum(r["error"] for r in column["runs"]) / 2
            assert sum(column["outcomes"].values()) == 2
    assert [row[:4] for row in details[2:]] == [
        ["add-80", "0", "0.1", "1"],
        *([p, c, f"{numbers['problems'][p]['columns'][c]['chosen']:g}", "2"]
          for p, c in (("add-80", "0.995M"), ("add-5", "0"), ("add-5", "0.995M"))),
    ]  # fmt: skip
    assert (folder / "table5.md").read_text().strip() in result.output
    for name in ("table5", "add-80_map", "add-5_map"):
        assert (folder / f"{name}.png").read_bytes().startswith(PNG)
    with (folder / "add-5_map.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = sorted((r["stage"], r["seed"]) for r in rows)
    assert found == [("search", "0")] * 4 + [("search", "1")] * 4
    assert {r["outcome"] for r in rows} <= {"plateau", "escaped", "solved", "collapsed"}
    # When all is done the same command prints the table again.
    assert invoke(*arguments, "--resume").output == result.output


def test_sequences_drawn_where_nets_are(tmp_path: Path) -> None:
    """The runs are those of a sweep that does so, and the table says it."""
    folder = tmp_path / "run"
    arguments = [*TABLE, *SMALL, "--problems", "add-5", "--columns", "0.9N", "--rates", "0.01"]
    result = invoke(*arguments, "--on-device", "--run-dir", str(folder))
    assert result.exit_code == 0, result.output
    numbers = json.loads((folder / "table5.json").read_text())
    assert numbers["settings"]["on_device"] is True
    (column,) = numbers["problems"]["add-5"]["columns"].values()
    errors = [run["error"] for run in column["runs"]]
    for on_device in (True, False):
        alone = sweep(
            Rung.parse("add-5").problem(),
            {"learning_rate": [0.01], "method": ["nag"], "momentum": [0.9]},
            seeds=2,
            updates=20,
            schedule="delayed",
            on_device=on_device,
            **{**OPTIONS, "test_size": TEST_SIZE},
        )
        assert ([row["error"] for row in alone.rows()] == errors) is on_device


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Result:
    result = invoke(*TINY, *RATE, "--run-dir", tmp_path_factory.mktemp("whole") / "run")
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("after", [7, 65])
def test_stopped_and_resumed_the_table_is_the_same(
    tmp_path: Path, whole: Result, after: int
) -> None:
    """Stopped in the search of a problem, and in the next problem."""
    arguments = [*TINY, *RATE, "--run-dir", tmp_path / "run"]
    with interrupted_sweeps(after):
        stopped = invoke(*arguments)
    assert stopped.exit_code == 130, stopped.output
    assert f"--run-dir {tmp_path / 'run'} --resume" in stopped.output
    assert "Not finished" in stopped.output
    resumed = invoke(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert tables_of(resumed.output) == tables_of(whole.output)


@pytest.mark.parametrize(
    ("option", "key", "stored", "column", "says"),
    [
        ("--final-phase", "final_phase", "final_updates", "then 0.9", "have μ = 0.9"),
        ("--falling-rate", "falling_rate", "falling_updates", "ε falling", "have an ε that falls"),
    ],
)
def test_remedies_stand_in_columns_of_their_own(
    tmp_path: Path, option: str, key: str, stored: str, column: str, says: str
) -> None:
    """Last updates of smaller μ or ε, beside the paper's columns, not in their place."""
    plain = [*TABLE, *SMALL, "--problems", "mem-5-2", "--columns", "0,0.9N,0.995N", *RATE]
    before = invoke(*plain, "--run-dir", tmp_path / "plain")
    folder = tmp_path / "run"
    result = invoke(*plain, option, "5", "--run-dir", folder)
    assert result.exit_code == 0, result.output
    numbers = [json.loads((f / "table5.json").read_text()) for f in (tmp_path / "plain", folder)]
    errors = [
        {name: column["error"] for name, column in found["problems"]["mem-5-2"]["columns"].items()}
        for found in numbers
    ]
    assert errors[0] == errors[1]
    assert key not in numbers[0]
    phase = numbers[1][key]["mem-5-2"]["columns"]
    assert list(phase) == ["0.995N"]  # SGD and 0.9 have nothing to lower
    config = json.loads((folder / f"mem-5-2/{option[2:]}/search/config.json").read_text())
    assert config["training"][stored] == 5
    header = tables_of(result.output)[0][0]
    assert header[-1] == f"0.995N, {column}"
    assert len(header) == len(tables_of(before.output)[0][0]) + 1
    assert f"not the paper's: the last 5 updates {says}" in result.output


def test_what_begins_is_said(tmp_path: Path) -> None:
    arguments = [a for a in TINY if a != "--quiet"]
    result = invoke(*arguments, "--rates", "0.1", "--run-dir", tmp_path / "run")
    assert f"{tmp_path / 'run' / 'add-5' / 'search'}: 4 runs of 20 updates" in result.output


REFUSED = {
    "--problems sub-3": "problem: got 'sub-3', need add-T",
    "--problems add-80,add-80": "need different names",
    "--problems add-2": "length: got 2",
    "--columns 0.99": "column: got '0.99', need 0 or a momentum",
    "--columns 0.0N": "column: got '0.0N'",
    "--columns 0,,0.9N": "need different names",
    "--rates x": "got 'x', need numbers",
    "--rates 0": "need positive numbers",
    "--rates 1e-2,0.01": "need different numbers",
    "--rates add-7=1e-2": "need a problem, a column or problem/column",
    "--rates 0=1e-2 --rates 0=1e-3": "got '0' twice",
    "--seeds 0": "need at least 1 seed",
    "--seeds 1,1": "different seeds",
    "--seeds -1,2": "different seeds",
    "--seeds a": "a number of seeds",
    "--updates 0": "Invalid value for '--updates'",
    "--resume": "--resume needs --run-dir",
    "--device tpu": "got 'tpu', need cpu or cuda",
    "--columns 0,0.9N --final-phase 5": "Invalid value for --final-phase: got an option for",
    "--columns 0.9M --falling-rate 5": "columns with μ above 0.9, need one of these",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_bad_options(arguments: str) -> None:
    result = invoke("reproduce", "table5", *arguments.split())
    assert result.exit_code == 2
    assert REFUSED[arguments] in result.output


def test_fewer_updates_than_the_runs_have_had(tmp_path: Path) -> None:
    """A table of 10 updates does not show runs of 20, nor averages of runs of both."""
    arguments = [*TINY, "--problems", "add-5", "--rates", "0.1", "--run-dir", tmp_path / "run"]
    assert invoke(*arguments).exit_code == 0
    for more in ((), ("--seeds", "3")):
        fewer = invoke(*arguments, "--updates", "10", *more, "--resume")
        assert fewer.exit_code == 1
        assert "updates: got 10, but runs in" in fewer.output
        assert "have had 20; need as many" in fewer.output
    assert invoke(*arguments, "--resume").exit_code == 0


def test_another_table_in_the_folder(tmp_path: Path) -> None:
    arguments = [*TINY, "--problems", "add-5", "--rates", "0.1", "--run-dir", tmp_path / "run"]
    assert_another_run_is_refused(arguments, "--batch-size", "3")
    finer = invoke(*arguments, "--rates", "0.9N=0.2,0.1", "--resume")
    assert finer.exit_code == 0, finer.output  # further rates are tried beside those there
    assert (tmp_path / "run" / "add-5" / "search-2" / "runs.csv").exists()
    more = invoke(*arguments[:-4], "--problems", "add-5,add-6", *arguments[-4:], "--resume")
    assert more.exit_code == 0, more.output  # a further problem is begun beside those there


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (315 * 60 + 10, "5 h 15 min 10 s"),
        (3600, "1 h 0 min 0 s"),
    ],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
