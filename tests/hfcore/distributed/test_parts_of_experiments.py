"""``hfcore reproduce`` in parts: jobs of an array, workers, submitit; the tables of one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import invoke
from hfcore.sweeps import engine, jobs
from hfcore.training.run_folder import RunFolder

TABLE5 = ["reproduce", "table5", "--quiet", "--threads", "1", "--hidden", "4", "--updates", "4"]
TABLE5 += ["--test-every", "2", "--seeds", "2", "--batch-size", "3", "--columns", "0,0.9N"]
TABLE5 += ["--problems", "add-3", "--rates", "0.1,0.01"]
FIG3 = ["reproduce", "fig3", "--hidden", "5", "--batch-size", "6", "--test-size", "12", "--quiet"]
FIG3 += ["--seeds", "1", "--limit", "60", "--lengths", "8", "--problems", "xor,mem-5"]
ABLATION = ["reproduce", "ablation", "--quiet", "--threads", "1", "--iterations", "2"]
ABLATION += ["--hidden", "5", "--batch-size", "4", "--problem", "add-5", "--of", "cg-start,stop"]
COMMANDS = {"table5": TABLE5, "fig3": FIG3, "ablation": ABLATION}
SAID = "is done; when all are, the same command with --resume in place of --cohort unites them"


@pytest.fixture(scope="module", autouse=True)
def _without_plots() -> Iterator[None]:
    """They take longer than the runs here and are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda self, to, **_: to.write(b"PNG"))
        for module in (engine, jobs):
            patch.setattr(module, "drawn", lambda result: result)
        patch.setattr(RunFolder, "draw", lambda self, solved_below: ())
        yield


def call(arguments: list[str], folder: Path, *more: str) -> str:
    result = invoke(*arguments, "--run-dir", folder, *more)
    assert result.exit_code == 0, result.output
    return result.output


def numbers_of(folder: Path, name: str) -> Any:
    """The file of results, without what differs from call to call."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if "seconds" not in k}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    return timeless(json.loads((folder / f"{name}.json").read_text()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of all commands in one process."""
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for name, arguments in COMMANDS.items():
        call(arguments, folder / name)
        found[name] = numbers_of(folder / name, name)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_an_array_of_jobs(whole: dict[str, Any], name: str, tmp_path: Path) -> None:
    """Its second job ends before the first, and one is begun again."""
    for part in ("2/3", "1/3", "1/3", "3/3"):
        said = call(COMMANDS[name], tmp_path / "run", "--cohort", part)
        assert f"part {part} {SAID}" in said
        assert not (tmp_path / "run" / f"{name}.json").exists()
    call(COMMANDS[name], tmp_path / "run", "--resume")
    assert numbers_of(tmp_path / "run", name) == whole[name]


def test_what_no_job_did_is_done_by_the_union(whole: dict[str, Any], tmp_path: Path) -> None:
    for name in COMMANDS:
        call(COMMANDS[name], tmp_path / name, "--cohort", "2/4")
        call(COMMANDS[name], tmp_path / name, "--resume")
        assert numbers_of(tmp_path / name, name) == whole[name]


def test_a_search_and_what_follows_from_it(tmp_path: Path) -> None:
    """Two arrays: the second one begins where the search is whole."""
    arguments = [*TABLE5, "--search-updates", "2"]
    for _ in range(2):
        for part in ("1/2", "2/2"):
            call(arguments, tmp_path / "run", "--cohort", part)
    assert (tmp_path / "run/add-3/seeds/cohorts/002-of-002/result.json").exists()
    call(arguments, tmp_path / "run", "--resume")
    call(arguments, tmp_path / "alone")
    assert numbers_of(tmp_path / "run", "table5") == numbers_of(tmp_path / "alone", "table5")


@pytest.mark.parametrize("name", ["fig3", "ablation"])
def test_jobs_of_submitit(whole: dict[str, Any], name: str, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    call(COMMANDS[name], tmp_path / "run", "--slurm", "cluster=debug,timeout_min=1")
    assert numbers_of(tmp_path / "run", name) == whole[name]


@pytest.mark.slow  # two processes that import everything
def test_workers(whole: dict[str, Any], tmp_path: Path) -> None:
    for name in COMMANDS:
        call(COMMANDS[name], tmp_path / name, "--workers", "2")
        assert numbers_of(tmp_path / name, name) == whole[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_options_that_exclude_one_another(name: str, tmp_path: Path) -> None:
    for more, message in (
        (["--cohort", "1/3"], "--cohort needs --run-dir"),
        (["--cohort", "0/3", "--run-dir", str(tmp_path / "a")], "need I/N such as 3/16"),
        (["--workers", "2", "--cohort", "1/2"], "--workers and --cohort exclude one another"),
        (["--slurm", "a=1", "--workers", "2"], "--workers and --slurm exclude one another"),
    ):
        result = invoke(*COMMANDS[name], *more)
        assert result.exit_code == 2, result.output
        assert message in result.output
