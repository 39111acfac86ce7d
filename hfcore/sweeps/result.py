"""The tables of a sweep: one row a run, one row a test; as Python, CSV or Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import Tensor

from hfcore.sweeps.grid import RunSettings
from hfcore.sweeps.outcome import Constant, Test, escape, outcome
from hfcore.training.atomic import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Reason = Literal["updates", "interrupted", "part"]
"""``"part"``: of the parts of a sweep one has come to its end, and others have not."""
Row = dict[str, Any]
V = TypeVar("V")


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found; runs are numbered as the grid lists them.

    ``parameters`` holds θ ``[N]`` of every run at its end, ``seconds`` the time of the whole sweep.
    """

    runs: Sequence[RunSettings]
    tests: Sequence[Sequence[Test]]
    diverged_at: Mapping[int, int]
    """The update that met a loss which is not finite, of the runs that diverged."""
    parameters: Mapping[int, Tensor]
    """θ ``[N]`` at the end, in the order of the model's ``parameters()``."""
    constant: Constant
    """Loss and error of the best constant output on the test cases."""
    reason: Reason
    updates: int
    seconds: float
    solved_below: float
    run_dir: Path | None = None
    plots: tuple[Path, ...] = ()

    def rows(self) -> list[Row]:
        """One row a run: settings, outcome, its last test and its best one."""
        return [self._row(index) for index in range(len(self.runs))]

    def history(self) -> list[Row]:
        """One row a test of a run."""
        return [
            {"run": index, **run.row(), **vars(test)}
            for index, run in enumerate(self.runs)
            for test in self.tests[index]
        ]

    def best(self, **settings: Any) -> Row:
        """The row with the least final error among those with these settings.

        Raises ValueError if there is none that did not diverge.
        """
        rows = [
            row
            for row in self.rows()
            if all(row.get(key) == value for key, value in settings.items())
            and row["outcome"] != "diverged"
            and row["error"] is not None
        ]
        if not rows:
            raise ValueError(f"settings: no run with {settings} came to an end")
        return min(rows, key=lambda row: row["error"])

    def outcome_map(self) -> Figure:
        """Learning rate × momentum as a matplotlib figure, each cell with its outcomes."""
        from hfcore.sweeps.plots import outcome_map  # matplotlib is slow to import

        return outcome_map(self)

    def write(self, path: str | Path, *, history: bool = False) -> Path:
        """Write the table, by suffix as ``.csv`` or ``.parquet`` (which needs pyarrow)."""
        path = Path(path)
        rows = self.history() if history else self.rows()
        if path.suffix == ".csv":
            write_atomic(path, _csv(rows))
        elif path.suffix == ".parquet":
            write_atomic(path, _parquet(rows))
        else:
            raise ValueError(f"path: got {str(path)!r}, need a name that ends in .csv or .parquet")
        return path

    def of(self, indices: Sequence[int]) -> SweepResult:
        """The same about these runs alone, numbered anew."""
        return replace(
            self,
            runs=[self.runs[i] for i in indices],
            tests=[self.tests[i] for i in indices],
            diverged_at=_renumbered(self.diverged_at, indices),
            parameters=_renumbered(self.parameters, indices),
        )

    def _row(self, index: int) -> Row:
        tests = self.tests[index]
        diverged = index in self.diverged_at
        last = tests[-1] if tests and not diverged else None
        return {
            "run": index,
            **self.runs[index].row(),
            "outcome": outcome(
                tests, self.constant, diverged=diverged, solved_below=self.solved_below
            ),
            "updates": self.diverged_at.get(index, tests[-1].update if tests else 0),
            "error": None if last is None else last.error,
            "wrong": None if last is None else last.wrong,
            "test_loss": None if last is None else last.test_loss,
            "train_loss": None if last is None else last.train_loss,
            "best_error": min((test.error for test in tests), default=None),
            "escaped_at": escape(tests, self.constant),
        }


def _renumbered(values: Mapping[int, V], indices: Sequence[int]) -> dict[int, V]:
    return {new: values[old] for new, old in enumerate(indices) if old in values}


def join(results: Sequence[SweepResult]) -> SweepResult:
    """One result about the runs of several sweeps of one problem, numbered one after the other.

    Raises ValueError for none.
    """
    if not results:
        raise ValueError("results: got none, need at least one")
    runs: list[RunSettings] = []
    tests: list[Sequence[Test]] = []
    diverged: dict[int, int] = {}
    parameters: dict[int, Tensor] = {}
    for result in results:
        first = len(runs)
        runs += result.runs
        tests += result.tests
        diverged |= {first + i: at for i, at in result.diverged_at.items()}
        parameters |= {first + i: theta for i, theta in result.parameters.items()}
    return replace(
        results[0],
        runs=runs,
        tests=tests,
        diverged_at=diverged,
        parameters=parameters,
        reason="interrupted" if any(r.reason == "interrupted" for r in results) else "updates",
        updates=min(result.updates for result in results),
        seconds=sum(result.seconds for result in results),
        plots=tuple(path for result in results for path in result.plots),
    )


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: Sequence[Row]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "a .parquet table needs pyarrow: pip install hfcore[parquet], or write .csv"
        ) from error
    columns = {key: [row.get(key) for row in rows] for key in _columns(rows)}
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()
