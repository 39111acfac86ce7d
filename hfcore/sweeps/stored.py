"""What a sweep found, as files that give it back to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import safetensors.torch

from hfcore.extras import missing
from hfcore.sweeps.grid import OPTIMISER_KEYS, RunSettings
from hfcore.sweeps.outcome import Constant, Test
from hfcore.sweeps.result import SweepResult
from hfcore.training.atomic import write_atomic
from hfcore.training.errors import RunFolderError
from hfcore.training.state_tree import flatten, unflatten

RESULT, PARAMETERS = "result.json", "parameters.safetensors"


def written(result: SweepResult, folder: Path) -> SweepResult:
    """The same with its tables and final parameters written into ``folder``."""
    result.write(folder / "runs.csv")
    result.write(folder / "history.csv", history=True)
    tensors = {f"{index:05d}": theta.contiguous() for index, theta in result.parameters.items()}
    write_atomic(folder / PARAMETERS, safetensors.torch.save(tensors))
    body = {
        "runs": [run.row() for run in result.runs],
        "tests": [[list(astuple(test)) for test in tests] for tests in result.tests],
        "diverged_at": {str(index): at for index, at in result.diverged_at.items()},
        "constant": list(astuple(result.constant)),
        "reason": result.reason,
        "updates": result.updates,
        "seconds": result.seconds,
        "solved_below": result.solved_below,
    }
    write_atomic(folder / RESULT, json.dumps(flatten(body, "", {}), allow_nan=False).encode())
    return replace(result, run_dir=folder)


def drawn(result: SweepResult) -> SweepResult:
    """The same with plots drawn in its folder, if matplotlib is there."""
    if missing("matplotlib", "no plots"):
        return result
    from hfcore.sweeps.plots import draw_plots  # matplotlib is slow to import

    assert result.run_dir is not None
    return replace(result, plots=draw_plots(result, result.run_dir / "plots"))


def read_result(folder: Path) -> SweepResult:
    """What :func:`written` wrote, without the plots. Raises RunFolderError where it is not there,
    or something else."""
    path = folder / RESULT
    try:
        body = unflatten(json.loads(path.read_bytes()), {})
        tensors = safetensors.torch.load((folder / PARAMETERS).read_bytes())
        return SweepResult(
            [run_of(row) for row in body["runs"]],
            [[Test(*test) for test in tests] for tests in body["tests"]],
            {int(index): at for index, at in body["diverged_at"].items()},
            {int(index): theta for index, theta in tensors.items()},
            Constant(*body["constant"]),
            body["reason"],
            body["updates"],
            body["seconds"],
            body["solved_below"],
            run_dir=folder,
        )
    except OSError as error:
        raise RunFolderError(
            f"{error.filename or path}: cannot be read: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise RunFolderError(f"{path}: is no result of a sweep: {error!r}") from error


def run_of(row: Mapping[str, Any]) -> RunSettings:
    """The run of a row of settings."""
    known = {key: row[key] for key in (*OPTIMISER_KEYS, "seed")}
    return RunSettings(**known, options={k: v for k, v in row.items() if k not in known})
