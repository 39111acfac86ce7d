"""One HTML page of a run or a sweep: how it ended, its plots, its settings, its last steps.

The page holds its pictures, so it can be sent or archived alone.
"""

from __future__ import annotations

import base64
import csv
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcore.training.atomic import write_atomic
from hfcore.training.errors import RunFolderError
from hfcore.training.run_folder import read_config, read_metrics

LAST_STEPS = 20
# Columns of metrics.jsonl that the table of steps shows, where a run has them.
STEP_COLUMNS = (
    "iteration",
    "minibatches",
    "loss",
    "loss_after",
    "test_error",
    "validation_error",
    "damping",
    "rho",
    "cg_iterations",
    "cg_stop",
    "alpha",
    "messages",
)
LONG = 40  # characters from which a cell is broken into lines
NOT_FINITE = {"-inf": "−∞", "inf": "∞", "nan": "NaN"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px }
td, th { border-bottom: 1px solid #ddd; padding: .2rem .6rem; text-align: left }
td { vertical-align: top }
td, th { white-space: nowrap } td.long { white-space: normal; min-width: 16rem }
img { max-width: 100% }
@media (prefers-color-scheme: dark) {
  body { background: #16181d; color: #dde } td, th { border-color: #444 } img { background: #fff }
}
"""


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the page of the run folder ``run_dir`` to ``out``, or to its ``report.html``.

    Raises :class:`RunFolderError` for a folder that holds no run, or a page that cannot be written.
    """
    config = read_config(run_dir / "config.json") if run_dir.is_dir() else None
    if config is None:
        raise RunFolderError(f"{run_dir}: is no run folder, it has no config.json")
    out = run_dir / "report.html" if out is None else out
    write_atomic(out, _page(run_dir, config).encode())
    return out


def _page(run_dir: Path, config: Mapping[str, Any]) -> str:
    title = f"{run_dir.resolve().name}: {_name(config)}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _section("How it ended", _ending(run_dir)),
        _section("Plots", _pictures(run_dir)),
        _section("Runs", _runs(run_dir)),
        _section(f"The last {LAST_STEPS} steps", _steps(run_dir)),
        _section("Settings", _table(("setting", "value"), _flat(config))),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{''.join(parts)}</body></html>\n"
    )


def _name(config: Mapping[str, Any]) -> str:
    problem = config.get("problem")
    name = problem.get("name") if isinstance(problem, Mapping) else None
    return f"{'sweep of ' if 'sweep' in config else ''}{name or 'training run'}"


def _ending(run_dir: Path) -> str:
    path = run_dir / "result.json"
    if not path.exists():
        return "<p>It has not ended yet, or was stopped; <code>--resume</code> goes on.</p>"
    try:
        rows = _flat(json.loads(path.read_bytes()))
        # What a sweep stores to be read again has lists of lists; its runs have a table below.
        return _table(("what", "value"), [row for row in rows if not isinstance(row[1], list)])
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error


def _pictures(run_dir: Path) -> str:
    pictures = [
        f'<p><img alt="{html.escape(path.stem)}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"></p>'
        for path in sorted((run_dir / "plots").glob("*.png"), reverse=True)
    ]
    return "".join(pictures) or "<p>There are none: they are drawn when training ends.</p>"


def _runs(run_dir: Path) -> str:
    """The table of a sweep, nothing for a single run."""
    path = run_dir / "runs.csv"
    if not path.exists():
        return ""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return _table(header, [[_numeric(cell) for cell in row] for row in rows])


def _steps(run_dir: Path) -> str:
    """The last lines of a single run; those of a sweep are tests of all of its runs."""
    path = run_dir / "metrics.jsonl"
    lines = read_metrics(path)[-LAST_STEPS:] if path.exists() else []
    lines = [line for line in lines if "tests" not in line]
    columns = [key for key in STEP_COLUMNS if any(line.get(key) is not None for line in lines)]
    return _table(columns, [[line.get(key) for key in columns] for line in lines]) if lines else ""


def _numeric(cell: str) -> float | str | None:
    """A cell of a CSV file as what it was: a number with a fraction, text, or nothing."""
    if cell.isdigit():
        return cell
    try:
        return float(cell)
    except ValueError:
        return cell or None


def _section(title: str, content: str) -> str:
    return f'<h2>{html.escape(title)}</h2>\n<div class="wide">{content}</div>\n' if content else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def cell(value: Any, tag: str) -> str:
        text = _text(value)
        long = ' class="long"' if len(text) > LONG else ""
        return f"<{tag}{long}>{html.escape(text)}</{tag}>"

    def row(cells: Iterable[Any], tag: str) -> str:
        return f"<tr>{''.join(cell(value, tag) for value in cells)}</tr>\n"

    return f"<table>\n{row(header, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else NOT_FINITE[str(value)]
    if isinstance(value, list | tuple):
        return "; ".join(map(_text, value))
    return str(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as rows; of a sweep's runs, which have a table, only how many there are."""
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if name == "sweep" and isinstance(value, Mapping):
            rows.append(("runs", len(value)))
        elif isinstance(value, Mapping):
            rows += _flat(value, name)
        else:
            rows.append((name, value))
    return rows
