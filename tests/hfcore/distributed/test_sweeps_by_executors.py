"""Sweeps in parts: on any executor, and as an array of jobs, the bits of one process."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

import hfcore as hf
from command_line import invoke
from hfcore.sweeps.jobs import Job, parts_of
from hfcore.training import RunFolderError
from hfcore.training.errors import ConfigMismatchError, ExecutorError
from hfcore.training.run_folder import read_config

GRID = {"learning_rate": [0.1, 1e9, 0.01], "momentum": [0.0, 0.9]}
SIZES: dict[str, Any] = {
    "seeds": 2,
    "updates": 6,
    "batch_size": 3,
    "test_every": 2,
    "test_size": 7,
    "progress": False,
}


def start() -> hf.RnnStart:
    return hf.RnnStart(hidden_size=4)


def task() -> hf.problems.Addition:
    return hf.problems.Addition(3)


@pytest.fixture(scope="module")
def whole() -> hf.SweepResult:
    return hf.sweep(task(), GRID, start=start(), **SIZES)


def assert_same(found: hf.SweepResult, whole: hf.SweepResult) -> None:
    assert found.runs == whole.runs
    # As text: NaN is not equal to itself.
    assert repr(found.history()) == repr(whole.history())
    assert repr(found.rows()) == repr(whole.rows())
    assert found.diverged_at == whole.diverged_at
    assert found.parameters.keys() == whole.parameters.keys()
    for index, theta in whole.parameters.items():
        assert torch.equal(found.parameters[index], theta)


def test_parts_are_all_runs_once() -> None:
    seeds = [0, 1, 0, 1, 2, 0, 1]
    for count in range(1, 8):
        parts = parts_of(seeds, count)
        assert sorted(i for part in parts for i in part.indices) == list(range(7))
        assert max(map(len, (p.indices for p in parts))) - min(len(p.indices) for p in parts) <= 1
    with pytest.raises(ValueError, match="cohorts: got 8, need 1 to 7"):
        parts_of(seeds, 8)


@pytest.mark.parametrize("cohorts", [None, 5])
def test_an_executor_gives_the_same_bits(whole, cohorts, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        found = hf.sweep(
            task(), GRID, start=start(), run_dir=tmp_path, executor=executor, cohorts=cohorts,
            **SIZES,
        )  # fmt: skip
        assert_same(found, whole)
        assert len(list((tmp_path / "cohorts").glob("*.json"))) == {None: 2, 5: 5}[cohorts]
        for name in ("runs.csv", "history.csv", "parameters.safetensors", "plots"):
            assert (tmp_path / name).exists()
        again = hf.sweep(
            task(), GRID, start=start(), run_dir=tmp_path, executor=executor, resume=True, **SIZES
        )
        assert_same(again, whole)
        more = {**SIZES, "updates": 8}
        longer = hf.sweep(
            task(), GRID, start=start(), run_dir=tmp_path, executor=executor, resume=True, **more
        )
        assert_same(longer, hf.sweep(task(), GRID, start=start(), **more))


def test_processes_of_the_standard_library(whole, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor:
        found = hf.sweep(task(), GRID, start=start(), run_dir=tmp_path, executor=executor, **SIZES)
    assert_same(found, whole)


def test_submitit(whole, tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit")
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="debug")
    executor.update_parameters(timeout_min=1)
    found = hf.sweep(
        task(), GRID, start=start(), run_dir=tmp_path / "run", executor=executor, **SIZES
    )
    assert_same(found, whole)


def test_a_preempted_job_of_submitit_is_the_same_part_again(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit")
    jobs: list[Job] = []

    class Kept(Refusing):
        batch = nullcontext

        def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Future[Any]:
            jobs.append(function)
            return super().submit(function)

    with pytest.raises(KeyError):
        hf.sweep(task(), GRID, start=start(), run_dir=tmp_path, executor=Kept(KeyError()), **SIZES)
    job = jobs[0]
    again = job.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function is job


def test_dask(whole, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = hf.sweep(task(), GRID, start=start(), run_dir=tmp_path, executor=client, **SIZES)
    assert_same(found, whole)


class Refusing(Executor):
    """Workers without the package, or that end."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(self._error)
        return future


def without_the_package() -> None:
    """For a worker: as if hfcore was not installed."""

    class Nowhere:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.partition(".")[0] == "hfcore":
                raise ModuleNotFoundError(f"No module named {name!r}", name="hfcore")

    for name in [name for name in sys.modules if name.partition(".")[0] == "hfcore"]:
        del sys.modules[name]
    sys.meta_path.insert(0, Nowhere())


def test_a_process_without_the_package(tmp_path: Path) -> None:
    with (
        ProcessPoolExecutor(
            1, mp_context=get_context("fork"), initializer=without_the_package
        ) as executor,
        pytest.raises(ExecutorError, match="a worker has no module 'hfcore'; install"),
    ):
        hf.sweep(task(), GRID, start=start(), run_dir=tmp_path, executor=executor, **SIZES)


def test_a_process_with_another_version(tmp_path: Path) -> None:
    with (
        ProcessPoolExecutor(
            1, mp_context=get_context("fork"), initializer=setattr,
            initargs=(hf, "__version__", "0.0.1"),
        ) as executor,
        pytest.raises(ExecutorError, match=r"a worker has hfcore 0\.0\.1, need \d"),
    ):  # fmt: skip
        hf.sweep(task(), GRID, start=start(), run_dir=tmp_path, executor=executor, **SIZES)


def test_workers_that_cannot(tmp_path: Path) -> None:
    from concurrent.futures.process import BrokenProcessPool

    for i, (error, message) in enumerate(
        (
            (ModuleNotFoundError("no", name="hfcore"), "a worker has no module 'hfcore'; install"),
            (BrokenProcessPool("gone"), "a worker ended before its part of the sweep did; resume"),
        )
    ):
        with pytest.raises(ExecutorError, match=message):
            hf.sweep(
                task(), GRID, start=start(), run_dir=tmp_path / str(i), executor=Refusing(error),
                **SIZES,
            )  # fmt: skip


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    options = {"start": start(), **SIZES}
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(ValueError, match="run_dir: got None with an executor"):
            hf.sweep(task(), GRID, executor=executor, **options)
        with pytest.raises(ValueError, match="cohorts: got 0, need at least 1"):
            hf.sweep(task(), GRID, executor=executor, cohorts=0, run_dir=tmp_path, **options)
        hf.sweep(task(), GRID, run_dir=tmp_path / "plain", **options)
        with pytest.raises(ConfigMismatchError, match="holds a sweep without an executor"):
            hf.sweep(
                task(), GRID, executor=executor, run_dir=tmp_path / "plain", resume=True, **options
            )
    with pytest.raises(ValueError, match="cohorts: got 3 without an executor"):
        hf.sweep(task(), GRID, cohorts=3, **options)
    with pytest.raises(TypeError, match="executor: got int, need something with submit"):
        hf.sweep(task(), GRID, executor=3, run_dir=tmp_path / "int", **options)
    with pytest.raises(ValueError, match="part: needs run_dir"):
        hf.sweep(task(), GRID, part=(1, 2), **options)
    with pytest.raises(ValueError, match="part: got more than 2, need 1 to 2"):
        hf.sweep(task(), GRID, part=(3, 2), run_dir=tmp_path, **options)


def test_a_signal_stops_what_has_not_begun(whole, tmp_path: Path) -> None:
    """One worker: the first part comes to its end, the others are taken back."""

    class Slow(ThreadPoolExecutor):
        def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Future[Any]:
            def slowly() -> Any:
                time.sleep(0.5)
                return function(*arguments)

            return super().submit(slowly)

    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
    with Slow(1) as executor:
        found = hf.sweep(
            task(), GRID, start=start(), run_dir=tmp_path, executor=executor, cohorts=3, **SIZES
        )
        assert found.reason == "interrupted"
        assert found.runs == whole.runs
        assert [len(tests) for tests in found.tests].count(0) >= 8
        found = hf.sweep(
            task(), GRID, start=start(), run_dir=tmp_path, executor=executor, resume=True, **SIZES
        )
    assert_same(found, whole)


COMMAND = ["sweep", "addition", "--length", "3", "--hidden", "4", "--learning-rate", "0.1,1e9,0.01"]
COMMAND += ["--momentum", "0,0.9", "--seeds", "2", "--updates", "6", "--batch-size", "3"]
COMMAND += ["--test-every", "2", "--test-size", "7", "--no-centre", "--quiet"]


def test_an_array_of_jobs_and_its_union(whole, tmp_path: Path) -> None:
    for number in (3, 1):
        result = invoke(*COMMAND, "--run-dir", tmp_path, "--cohort", f"{number}/3")
        assert result.exit_code == 0, result.output
    result = invoke("sweep", "--join", tmp_path)
    assert result.exit_code == 1
    assert "part 2 of 3 has not begun" in result.output
    assert invoke(*COMMAND, "--run-dir", tmp_path, "--cohort", "2/3").exit_code == 0
    result = invoke("sweep", "--join", tmp_path, "--csv", tmp_path / "table.csv")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "table.csv").read_text().count("\n") == 13
    assert_same(hf.sweeps.join_folder(tmp_path), whole)
    with pytest.raises(RunFolderError, match="holds no parts of a sweep"):
        hf.sweeps.join_folder(tmp_path / "cohorts")


def test_the_union_wants_ends(tmp_path: Path) -> None:
    assert invoke(*COMMAND, "--run-dir", tmp_path, "--cohort", "1/1").exit_code == 0
    path = tmp_path / "cohorts" / "001-of-001" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "reason": "interrupted"}))
    with pytest.raises(RunFolderError, match="part 1 of 1 was stopped before its end"):
        hf.sweeps.join_folder(tmp_path)
    path.write_text("{}")
    with pytest.raises(RunFolderError, match="is no result of a sweep"):
        hf.sweeps.join_folder(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_workers_of_the_command(whole, tmp_path: Path) -> None:
    result = invoke(*COMMAND, "--run-dir", tmp_path, "--workers", "2")
    assert result.exit_code == 0, result.output
    config = read_config(tmp_path / "config.json")
    assert config is not None
    assert config["cohorts"] == 2
    for part in ("001-of-002", "002-of-002"):
        assert (tmp_path / "cohorts" / part / "result.json").exists()
    table = (tmp_path / "runs.csv").read_text()
    whole.write(tmp_path / "whole.csv")
    assert table == (tmp_path / "whole.csv").read_text()


def test_jobs_of_the_command(whole, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    for more in ([], ["--resume"]):
        result = invoke(
            *COMMAND, "--run-dir", tmp_path / "run", "--slurm", "cluster=debug,timeout_min=1", *more
        )
        assert result.exit_code == 0, result.output
    assert_same(hf.sweeps.join_folder(tmp_path / "run"), whole)


def test_options_of_the_command_that_are_wrong(tmp_path: Path) -> None:
    for more, message in (
        (["--cohort", "4/3", "--run-dir", tmp_path], "need I/N such as 3/16"),
        (["--cohort", "1/3"], "--cohort needs --run-dir"),
        (["--workers", "2", "--slurm", "timeout_min=1"], "exclude one another"),
        (["--slurm", "timeout"], "need KEY=VALUE"),
        (["--join", tmp_path], "--join goes without PROBLEM"),
    ):
        result = invoke(*COMMAND, *more)
        assert result.exit_code == 2, result.output
        assert message in result.output
    assert "Missing argument 'PROBLEM'" in invoke("sweep", "--learning-rate", "0.1").output
    assert "Missing option '--learning-rate'" in invoke("sweep", "addition").output
