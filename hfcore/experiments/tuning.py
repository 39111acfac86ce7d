"""The procedure of Sutskever et al. (2013): a learning rate for every column, then more seeds.

1. The paper shows for each column the rate with the best average over four seeds: ``"average"``.
   ``"first-seed"`` is what costs less: the first seed decides alone, and the others follow at its
   rate. Either way by the least final error, by the loss where errors are equal.
2. The runs of the search count among the others. If the search has as many updates as the final
   runs they are not done again: the same run would give the same bits.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import hfcore as hf
from hfcore.experiments.pace import Pace, gradients

Row = dict[str, Any]  # of SweepResult.rows()
ChooseBy = Literal["average", "first-seed"]
CHOOSE_BY = ("average", "first-seed")

SEARCH, SEEDS = "search", "seeds"  # the run folders of a problem


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its row in the sweep's table, and its tests."""

    row: Row
    tests: Sequence[hf.sweeps.Test]


@dataclass(frozen=True)
class Column:
    """What is tuned by itself: its settings of a grid, and the learning rates to choose from."""

    name: str
    settings: Mapping[str, Any]
    rates: tuple[float, ...]

    def grid(self, rates: Sequence[float]) -> dict[str, list[Any]]:
        """The grid of its runs at these rates."""
        settings = {key: [value] for key, value in self.settings.items()}
        return {**settings, "learning_rate": list(rates)}

    def runs(self, result: hf.SweepResult | None) -> list[SweepRun]:
        """Its runs in a sweep over several columns."""
        if result is None:
            return []
        return [
            SweepRun(row, tests)
            for row, tests in zip(result.rows(), result.tests, strict=True)
            if all(row[key] == value for key, value in self.settings.items())
        ]


@dataclass(frozen=True)
class ColumnResult:
    """What came out for one column of one problem."""

    column: Column
    chosen: float | None
    """The learning rate; None if all diverged, or while the search goes on."""
    searched: Sequence[SweepRun]
    runs: Sequence[SweepRun]
    """Those at the chosen rate, one a seed."""

    @property
    def rows(self) -> list[Row]:
        return [run.row for run in self.runs]

    @property
    def error(self) -> float | None:
        """Mean final error over the seeds; infinite if one diverged, None if there is none."""
        if not self.rows:
            return None
        return _mean(self.rows, "error")

    @property
    def outcomes(self) -> dict[str, int]:
        """How many runs came to which outcome, the best one first."""
        counts = Counter(row["outcome"] for row in self.rows)
        order = ("solved", "escaped", "plateau", "collapsed", "diverged", "untested")
        assert set(order) == set(get_args(hf.sweeps.Outcome))
        return {name: counts[name] for name in order if counts[name]}

    @property
    def updates(self) -> int:
        """Of the longest run."""
        return max((row["updates"] for row in self.rows), default=0)


@dataclass(frozen=True)
class Tuned:
    """Search and final runs of one problem."""

    columns: Sequence[ColumnResult]
    search: hf.SweepResult | None
    """None where every column has one rate and nothing was searched."""
    final: hf.SweepResult | None
    """None while the search goes on, and where it was all there is to do."""
    finished: bool
    waits: bool = False
    """Whether one part of it was done, and others are not."""

    @property
    def seconds(self) -> float:
        """Of training, search included."""
        return sum(result.seconds for result in (self.search, self.final) if result is not None)

    def column(self, name: str) -> ColumnResult:
        return next(result for result in self.columns if result.column.name == name)


@dataclass(frozen=True)
class Procedure:
    """How every problem of a table is treated.

    ``options`` go to :func:`hfcore.sweep`. ``report`` is told what begins: a line of text.
    """

    seeds: Sequence[int]
    updates: int
    search_updates: int
    resume: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    final_updates: int = 0
    """Updates at the end with μ = 0.9 at most; a shorter run has no more than it has."""
    falling_updates: int = 0
    """Updates at the end over which ε falls linearly to nothing; likewise."""
    report: Callable[[str], None] = lambda line: None
    choose_by: ChooseBy = "average"
    """What decides on a rate: note 1."""
    pace: Pace | None = None
    """Is told which sweep, by its folder, begins and ends."""

    @property
    def searching_seeds(self) -> Sequence[int]:
        """Those on which rates are searched."""
        return self.seeds if self.choose_by == "average" else self.seeds[:1]

    def __call__(
        self, problem: hf.problems.Problem, columns: Sequence[Column], folder: Path
    ) -> Tuned:
        """Search and final runs of one problem, begun or continued in ``folder``.

        Continued with further learning rates or columns, only their runs are added.

        Raises what :func:`hfcore.sweep` raises, and ValueError where runs have had more updates.
        """
        whole, open_choice = self._whole, self._open_choice(columns)
        search = final = None
        if open_choice:
            grids = [column.grid(column.rates) for column in open_choice]
            at = folder / SEARCH
            search = self._sweep(problem, grids, self.searching_seeds, self.search_updates, at)
            if search.reason != "updates":
                results = [ColumnResult(c, None, c.runs(search), []) for c in columns]
                return Tuned(results, search, None, False, search.reason == "part")
        chosen = {c.name: best_rate(c, c.runs(search)) for c in columns}
        grids = [c.grid([rate]) for c in columns if (rate := chosen[c.name]) is not None]
        if grids and self._final_seeds:
            final = self._sweep(problem, grids, self._final_seeds, self.updates, folder / SEEDS)
        results = []
        for column in columns:
            searched, rate = column.runs(search), chosen[column.name]
            runs = column.runs(final)
            if whole:
                runs = [run for run in searched if run.row["learning_rate"] == rate] + runs
            results.append(ColumnResult(column, rate, searched, runs))
        reason = "updates" if final is None else final.reason
        return Tuned(results, search, final, reason == "updates", reason == "part")

    def operations(
        self, problem: hf.problems.Problem, columns: Sequence[Column], folder: Path
    ) -> dict[Hashable, float]:
        """Floating-point operations of the sweeps of one problem, by their folders."""
        start = self.options.get("start") or hf.sweeps.default_start(problem)
        net = start.build(problem, 0)
        rows = self.options["batch_size"] * getattr(problem, "length", 1)
        update = gradients(sum(p.numel() for p in net.parameters()), rows)
        runs = sum(len(column.rates) for column in self._open_choice(columns))
        sweeps = {
            folder / SEARCH: runs * len(self.searching_seeds) * self.search_updates,
            folder / SEEDS: len(columns) * len(self._final_seeds) * self.updates,
        }
        return {at: update * updates for at, updates in sweeps.items() if updates}

    @property
    def _whole(self) -> bool:
        """Whether the search has the runs at their full length."""
        return self.search_updates == self.updates

    def _open_choice(self, columns: Sequence[Column]) -> list[Column]:
        """Those that have a search."""
        return [column for column in columns if self._whole or len(column.rates) > 1]

    @property
    def _final_seeds(self) -> list[int]:
        """Those that are run at the chosen rates."""
        searched = self.searching_seeds if self._whole else ()
        return [seed for seed in self.seeds if seed not in searched]

    def having(self, **options: Any) -> Procedure:
        """The same with further options of the sweeps."""
        return replace(self, options={**self.options, **options})

    def _sweep(
        self,
        problem: hf.problems.Problem,
        grids: Sequence[dict[str, list[Any]]],
        seeds: Sequence[int],
        updates: int,
        folder: Path,
    ) -> hf.SweepResult:
        start = self.options.get("start") or hf.sweeps.default_start(problem)
        runs = hf.sweeps.expand(grids, seeds, start.options)
        self.report(f"{folder}: {len(runs)} runs of {updates:,} updates")
        if self.pace is not None:
            self.pace.begin(folder)
        result = hf.sweeps.sweep_in_rounds(
            problem,
            runs,
            folder,
            resume=self.resume,
            updates=updates,
            final_updates=min(self.final_updates, updates),
            falling_updates=min(self.falling_updates, updates),
            **self.options,
        )
        if self.pace is not None and result.reason in ("updates", "part"):
            self.pace.end(folder)
        had = max((row["updates"] for row in result.rows()), default=0)
        if had > updates:
            raise ValueError(
                f"updates: got {updates:,}, but runs in {folder} have had {had:,}; need as many, "
                "or another run folder"
            )
        return result


def column_settings(name: str) -> dict[str, Any]:
    """Grid settings of a column: ``0`` (SGD), ``0.995N`` (Nesterov), ``0.995M`` (classical).

    Raises ValueError saying what is needed.
    """
    if name == "0":
        return {"method": "sgd", "momentum": 0.0}
    match = re.fullmatch(r"(0\.\d+)([NM])", name)
    if match is None or not float(match[1]) > 0:
        raise ValueError(
            f"column: got {name!r}, need 0 or a momentum below 1 with N (Nesterov) or M "
            "(classical), like 0.995N"
        )
    return {"method": "nag" if match[2] == "N" else "cm", "momentum": float(match[1])}


def rates_for(
    problem: str, column: str, given: Mapping[str, tuple[float, ...]], default: tuple[float, ...]
) -> tuple[float, ...]:
    """The learning rates of a column of a problem.

    ``given`` has keys ``problem/column``, a column, a problem or "": the first of these that
    there is replaces the default.
    """
    keys = (f"{problem}/{column}", column, problem, "")
    return next((given[key] for key in keys if key in given), default)


def best_rate(column: Column, searched: Sequence[SweepRun]) -> float | None:
    """The rate with the least mean final error over the seeds; one rate needs no search.

    None where at every rate some run diverged.
    """
    if not searched:
        return column.rates[0]
    found: dict[float, tuple[float, float]] = {}
    for rate in dict.fromkeys(run.row["learning_rate"] for run in searched):
        rows = [run.row for run in searched if run.row["learning_rate"] == rate]
        found[rate] = (_mean(rows, "error"), _mean(rows, "test_loss"))
    best = min(found, key=found.__getitem__)
    return float(best) if math.isfinite(found[best][0]) else None


def _mean(rows: Sequence[Row], key: str) -> float:
    """Over the runs; infinite if one diverged."""
    values = [math.inf if row[key] is None else float(row[key]) for row in rows]
    finite = all(map(math.isfinite, values))
    return math.fsum(values) / len(values) if finite else math.inf
