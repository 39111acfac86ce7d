"""A sweep that grows: further runs go to further folders, and no run is done twice.

``FOLDER`` holds the first round, ``FOLDER-2`` the runs that were asked for later, and so on. A
run's bits do not depend on its round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from hfcore.problems import Problem
from hfcore.sweeps.engine import sweep
from hfcore.sweeps.grid import RunSettings
from hfcore.sweeps.jobs import cut_by_jobs, join_folder, updates_of_parts
from hfcore.sweeps.result import SweepResult, join
from hfcore.sweeps.stored import run_of
from hfcore.training.errors import RunFolderError
from hfcore.training.run_folder import read_config


def sweep_in_rounds(
    problem: Problem,
    runs: Sequence[RunSettings],
    folder: Path,
    *,
    resume: bool = False,
    part: tuple[int, int] | None = None,
    **options: Any,
) -> SweepResult:
    """:func:`hfcore.sweep` over ``runs``, those left out that a round in ``folder`` holds already.

    With ``resume`` the rounds that hold any of them are brought to their end. The result is about
    ``runs`` alone; its seconds are those of all these rounds. Raises what ``sweep`` raises.

    With ``part``, (3, 16), it is one part of a sweep of one round, its ``reason`` ``"part"`` at its
    end; where all parts had ended before, their union. Later ``resume`` does in this process what
    is missing of a sweep that was begun so.
    """
    if part is not None:
        return _part(problem, runs, folder, part, options)
    cut = cut_by_jobs(folder) if resume else None
    if cut is not None:
        return _whole(problem, runs, folder, cut, options)
    results: list[SweepResult] = []
    missing = list(runs)
    for number in count(1):
        at = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        held = _runs_in(at) if resume else None
        if held is None:
            if missing:
                results.append(sweep(problem, missing, run_dir=at, **options))
            break
        if not any(run in held for run in runs):
            continue
        missing = [run for run in missing if run not in held]
        results.append(sweep(problem, held, run_dir=at, resume=True, **options))
        if results[-1].reason == "interrupted":
            break
    whole = join(results)
    return whole.of([i for i, run in enumerate(whole.runs) if run in runs])


def _part(
    problem: Problem,
    runs: Sequence[RunSettings],
    folder: Path,
    part: tuple[int, int],
    options: dict[str, Any],
) -> SweepResult:
    """One part alone; the union where there was nothing to do."""
    before = [] if cut_by_jobs(folder) is None else updates_of_parts(folder)
    found = sweep(problem, runs, run_dir=folder, part=part, **options)
    if found.reason == "interrupted":
        return found
    if before and updates_of_parts(folder) == before:
        return join_folder(folder)
    return replace(found, reason="part")


def _whole(
    problem: Problem, runs: Sequence[RunSettings], folder: Path, cut: int, options: dict[str, Any]
) -> SweepResult:
    """All parts of a sweep that jobs have begun, each begun or continued."""
    if options.get("executor") is not None:
        raise ValueError(
            f"executor: got one for {folder}, which was cut into {cut} parts by hand; need None"
        )
    results: list[SweepResult] = []
    for number in range(1, cut + 1):
        results.append(sweep(problem, runs, run_dir=folder, part=(number, cut), **options))
        if results[-1].reason == "interrupted":
            return join(results)
    return join_folder(folder)


def _runs_in(folder: Path) -> list[RunSettings] | None:
    """The runs of the sweep in ``folder``, None if there is none."""
    path = folder / "config.json"
    config = read_config(path)
    if config is None:
        return None
    try:
        rows = config["sweep"]
        return [run_of(rows[str(i)]) for i in range(len(rows))]
    except (KeyError, TypeError) as error:
        raise RunFolderError(f"{path}: is not the config of a sweep: {error}") from error
