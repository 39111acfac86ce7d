"""Lines on the screen, markdown tables, and the files of results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hfcore.experiments.run import Line, RunResult
from hfcore.training.atomic import write_atomic
from hfcore.training.environment import describe_environment
from hfcore.training.errors import cannot_write

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


def number(value: float | None, digits: int = 4) -> str:
    """As short as ``digits`` allow, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, from the first that is not zero."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    while parts[0][0] == 0 and len(parts) > 1:
        parts.pop(0)
    return " ".join(f"{amount} {unit}" for amount, unit in parts)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def write_results(folder: Path, name: str, text: str, data: dict[str, Any]) -> tuple[Path, Path]:
    """``name.md`` and ``name.json`` in ``folder``, whole or not at all; gives their paths."""
    table, numbers = folder / f"{name}.md", folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    write_atomic(table, f"{text}\n".encode())
    data = {**data, "environment": describe_environment()}
    write_atomic(numbers, (json.dumps(_plain(data), indent=1, ensure_ascii=False) + "\n").encode())
    return table, numbers


def result_json(result: RunResult) -> dict[str, Any]:
    """A run as it goes into the file of results."""
    return {"stopped": result.reason, "counts": result.best, "iterations": result.lines}


def _plain(value: Any) -> Any:
    """JSON without NaN and Infinity, as in metrics.jsonl."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
