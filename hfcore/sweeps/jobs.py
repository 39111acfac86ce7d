"""A sweep in parts: by any executor, or one after the other by a scheduler's array of jobs.

A part is a sweep of its own in a folder of its own, ``DIR/cohorts/003-of-016``. A run's bits do not
depend on the runs beside it, so the parts together are the sweep. What has ended is not done again,
and what was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from hfcore import __version__
from hfcore.sweeps.result import SweepResult, join
from hfcore.sweeps.settings import SweepSettings
from hfcore.sweeps.stored import RESULT, drawn, read_result, written
from hfcore.training.atomic import write_atomic
from hfcore.training.errors import ExecutorError, RunFolderError
from hfcore.training.interrupts import stop_on_signal

FOLDER = "cohorts"
NAME = re.compile(r"(\d+)-of-(\d+)")
POLL_SECONDS, FIRST_POLL_SECONDS = 0.1, 0.005
# What a worker is asked first: without the package it cannot read what else it is sent, and some
# would not say so (dask's begin again, for ever).
ASKED = "__import__('hfcore').__version__"

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Runs ``indices`` of a sweep; the ``number``-th of ``count`` parts, from 1."""

    number: int
    count: int
    indices: list[int]

    def folder(self, run_dir: Path) -> Path:
        return run_dir / FOLDER / f"{self.number:03d}-of-{self.count:03d}"


def parts_of(seeds: Sequence[int], count: int) -> list[Part]:
    """Runs with these seeds in ``count`` parts of nearly equal size, those of a seed together.

    Raises ValueError for more parts than runs.
    """
    if not 1 <= count <= len(seeds):
        raise ValueError(f"cohorts: got {count}, need 1 to {len(seeds)}, the runs of the sweep")
    place = {seed: i for i, seed in enumerate(dict.fromkeys(seeds))}
    by_seed = sorted(range(len(seeds)), key=lambda i: (place[seeds[i]], i))
    edges = [len(seeds) * i // count for i in range(count + 1)]
    return [Part(i + 1, count, by_seed[edges[i] : edges[i + 1]]) for i in range(count)]


class Job:
    """One part of the sweep of ``settings`` as a call that any executor can make."""

    def __init__(self, part: Part, settings: SweepSettings, run_dir: Path) -> None:
        self.part = part
        self.settings = replace(settings, runs=[settings.runs[i] for i in part.indices])
        self.folder = part.folder(run_dir).absolute()

    def __call__(self) -> SweepResult:
        """Begin or continue it; what has ended is read."""
        from hfcore.sweeps.engine import sweep_alone  # which is made of jobs

        write_atomic(_indices(self.folder), json.dumps(self.part.indices).encode())
        resume = (self.folder / "config.json").exists()
        return sweep_alone(self.settings, self.folder, resume=resume)

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit submits in its place when a scheduler takes the machine away."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _indices(folder: Path) -> Path:
    """Where the numbers of a part's runs are."""
    return folder.with_name(f"{folder.name}.json")


def run_by(
    executor: Any, jobs: Sequence[Callable[[], T]], on_stop: Callable[[], None] = lambda: None
) -> list[T | None]:
    """What all ``jobs`` give on the workers of an executor, None for those that were not begun when
    a signal came.

    SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 takes back what has not begun and calls ``on_stop``, which
    may tell the workers; what runs is waited for. Where the workers are not of this process
    (submitit, dask) KeyboardInterrupt leaves them to it: the sweep can be resumed, which takes what
    they have done. Raises ExecutorError where a worker lacks the package or has ended, and what a
    job raised.
    """
    if not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor: got {type(executor).__name__}, need something with submit(f, *arguments), "
            "such as concurrent.futures.ProcessPoolExecutor"
        )
    batch = getattr(executor, "batch", None)  # of submitit: all of them as one array
    with stop_on_signal() as interrupted:
        # A job of submitit waits in a queue for its turn, and says itself what is missing.
        if batch is None and not _asked(executor, interrupted):
            return [None for _ in jobs]
        with batch() if callable(batch) else nullcontext():
            futures = [executor.submit(job) for job in jobs]
        told = False
        while not all(future.done() for future in futures):
            if interrupted() and not told:
                told = True
                if not all(isinstance(future, Future) for future in futures):
                    raise KeyboardInterrupt("the jobs go on; resume the sweep when they have ended")
                for future in futures:
                    future.cancel()
                on_stop()
            time.sleep(POLL_SECONDS)
        return [_result(future) for future in futures]


def _asked(executor: Any, interrupted: Callable[[], bool]) -> bool:
    """Whether a worker has this version of the package; False where a signal came before.

    Raises ExecutorError where it has not.
    """
    future = executor.submit(eval, ASKED)
    while not future.done():
        if interrupted():
            future.cancel()
            return False
        time.sleep(FIRST_POLL_SECONDS)
    there = _result(future)
    if there != __version__:
        raise ExecutorError(f"executor: a worker has hfcore {there}, need {__version__} as here")
    return True


def _result(future: Any) -> Any:
    try:
        return future.result()
    except CancelledError:
        return None
    except ModuleNotFoundError as error:
        raise ExecutorError(
            f"executor: a worker has no module {error.name!r}; install hfcore, and what your "
            "problem is defined in, where the workers run"
        ) from error
    except BrokenExecutor as error:
        raise ExecutorError(
            "executor: a worker ended before its part of the sweep did; resume the sweep"
        ) from error


def united(parts: Sequence[Part], results: Sequence[SweepResult], run_dir: Path) -> SweepResult:
    """The whole sweep in the order of its runs, with its tables in ``run_dir``."""
    whole = join(results)
    order = [index for part in parts for index in part.indices]
    at = sorted(range(len(order)), key=order.__getitem__)
    return drawn(written(whole.of(at), run_dir))


def join_folder(run_dir: Path) -> SweepResult:
    """Unite the parts in ``run_dir/cohorts``, whoever did them.

    Raises RunFolderError naming the parts that are missing or have not come to their end.
    """
    count, found = _begun(run_dir)
    folder = run_dir / FOLDER
    missing = [str(i) for i in range(1, count + 1) if i not in found]
    if missing:
        raise RunFolderError(f"{folder}: part {', '.join(missing)} of {count} has not begun")
    parts = [Part(i, count, json.loads(found[i].read_bytes())) for i in sorted(found)]
    results = [read_result(part.folder(run_dir)) for part in parts]
    open_ = [str(p.number) for p, r in zip(parts, results, strict=True) if r.reason != "updates"]
    if open_:
        raise RunFolderError(
            f"{folder}: part {', '.join(open_)} of {count} was stopped before its end; resume it"
        )
    return united(parts, results, run_dir)


def cut_by_jobs(run_dir: Path) -> int | None:
    """Into how many parts the jobs of an array have cut the sweep in ``run_dir``, None for no
    such. Raises RunFolderError for several numbers of parts."""
    if (run_dir / "config.json").exists() or not any((run_dir / FOLDER).glob("*-of-*.json")):
        return None
    return _begun(run_dir)[0]


def updates_of_parts(run_dir: Path) -> list[int]:
    """Those of all parts of a sweep in ``run_dir``; none where one has not come to its end."""
    count, found = _begun(run_dir)
    results = [Part(i, count, []).folder(run_dir) / RESULT for i in range(1, count + 1)]
    if len(found) < count or not all(path.exists() for path in results):
        return []
    read = [read_result(path.parent) for path in results]
    return [r.updates for r in read] if all(r.reason == "updates" for r in read) else []


def _begun(run_dir: Path) -> tuple[int, dict[int, Path]]:
    """The number of parts, and the files of those that were begun by their number."""
    folder = run_dir / FOLDER
    found: dict[int, Path] = {}
    counts = set()
    for path in sorted(folder.glob("*-of-*.json")) if folder.is_dir() else []:
        match = NAME.fullmatch(path.stem)
        if match is not None:
            found[int(match[1])] = path
            counts.add(int(match[2]))
    if len(counts) != 1:
        what = f"parts of sweeps cut into {sorted(counts)}" if counts else "no parts of a sweep"
        raise RunFolderError(f"{folder}: holds {what}, need all parts of one, 1/N to N/N")
    (count,) = counts
    return count, found
