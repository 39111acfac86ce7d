"""A sweep that grows: further runs go to further folders, and no run is done twice.

``FOLDER`` holds the first round, ``FOLDER-2`` the runs that were asked for later, and so on. A
run's bits do not depend on its round.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from hfcore.problems import Problem
from hfcore.sweeps.engine import sweep
from hfcore.sweeps.grid import RunSettings
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
    **options: Any,
) -> SweepResult:
    """:func:`hfcore.sweep` over ``runs``, those left out that a round in ``folder`` holds already.

    With ``resume`` the rounds that hold any of them are brought to their end. The result is about
    ``runs`` alone; its seconds are those of all these rounds. Raises what ``sweep`` raises.
    """
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
