"""Lines on the screen, and the files of results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import hfcore as hf
from hfcore.cli.tables import number
from hfcore.experiments.training import Line, Trained

# Heading and field of what is shown of each iteration; a method without a field shows a dash.
SHOWN = {
    "iteration": "iteration",
    "train error": "train_error",
    "train loss": "train_loss",
    "test error": "test_error",
    "valid error": "validation_error",
    "λ": "damping",
    "ρ": "rho",
    "CG": "cg_iterations",
    "kept": "cg_kept",
    "α": "alpha",
    "seconds": "seconds",
}
WIDTH = 11


def heading() -> str:
    """The line above those of the iterations."""
    return " ".join(f"{name:>{WIDTH}}" for name in SHOWN)


def describe(line: Line) -> str:
    """One iteration in the columns of :func:`heading`."""
    return " ".join(f"{number(line.get(field)):>{WIDTH}}" for field in SHOWN.values())


def write_results(folder: Path, name: str, text: str, data: dict[str, Any]) -> tuple[Path, Path]:
    """``name.md`` and ``name.json`` in ``folder``, whole or not at all; gives their paths."""
    table, numbers = folder / f"{name}.md", folder / f"{name}.json"
    hf.training.write_atomic(table, f"{text}\n".encode())
    data = {**data, "environment": hf.training.describe_environment()}
    hf.training.write_atomic(
        numbers, (json.dumps(_plain(data), indent=1, ensure_ascii=False) + "\n").encode()
    )
    return table, numbers


def result_json(result: Trained) -> dict[str, Any]:
    """A run as it goes into the file of results."""
    return {"stopped": result.reason, "counts": result.best, "iterations": result.lines}


def _plain(value: Any) -> Any:
    """JSON without NaN and Infinity, as in metrics.jsonl."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
