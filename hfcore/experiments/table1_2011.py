"""Martens & Sutskever (2011), table 1: RNN + HF beside LSTM + GD on sequences of natural origin.

Nets, batches and what counts: :mod:`hfcore.experiments.next_step`. None of the paper's three data
sets is public; each table says what stands in, and no more than the order of the columns can be
compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import hfcore as hf
from hfcore.cli.tables import clock, markdown, number
from hfcore.experiments.next_step import (
    COLUMNS,
    LSTM,
    RNN_HF,
    TASKS,
    Sizes,
    Task,
    best_line,
    constant_error,
    lstm_training,
    rnn_training,
)
from hfcore.experiments.published import TABLE1_2011
from hfcore.experiments.report import result_json, write_results
from hfcore.experiments.training import Line, Trained

PUBLISHED_COLUMNS = {RNN_HF: "RNN+HF", LSTM: "LSTM+GD"}
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Outcome:
    """What came out for one column."""

    trained: Trained | None
    """None while no run has ended its search, and where all diverged."""
    rate: float | None = None
    searched: Mapping[float, Trained] = field(default_factory=dict)
    interrupted: bool = False


@dataclass(frozen=True)
class Procedure:
    """How the columns of a task are trained; ``report`` is told what begins and of every test."""

    problem: hf.problems.NextStep
    sizes: Sizes
    seed: int
    device: torch.device
    rnn_stop: hf.training.Limits
    lstm_stop: hf.training.Limits
    search_updates: int
    """Of each rate, before the best goes on."""
    test_every: int
    """Updates of an LSTM; an iteration of HF is tested each time."""
    rates: Sequence[float]
    resume: bool
    begin: Callable[[str], None]
    report: Callable[[Line], None]

    def __call__(self, column: str, folder: Path) -> Outcome:
        """One column, begun or continued in ``folder``. Raises what :func:`hfcore.train` raises."""
        if column != RNN_HF:
            return self._lstm(column, folder)
        training = rnn_training(self.problem, self.sizes, self.seed, self.device)
        self.begin(f"{COLUMNS[column]}: {folder}")
        trained = training(
            folder, self.rnn_stop, resume=self.resume and folder.is_dir(), report=self.report
        )
        return Outcome(trained, interrupted=trained.reason == INTERRUPTED)

    def _lstm(self, column: str, folder: Path) -> Outcome:
        """All rates for as long as the search takes, then the best one to its end.

        One rate needs no search.
        """
        search = hf.training.Limits(self.search_updates, seconds=self.lstm_stop.seconds)
        searched: dict[float, Trained] = {}
        for rate in self.rates if len(self.rates) > 1 else ():
            at = folder / f"{rate:g}"
            run = self._at(column, rate, at, search, resume=self.resume and at.is_dir())
            searched[rate] = within(run, self.search_updates)
            if searched[rate].reason == INTERRUPTED:
                return Outcome(None, None, searched, interrupted=True)
        best = chosen(searched, self.search_updates) if searched else self.rates[0]
        if best is None:
            return Outcome(None, None, searched)
        at = folder / f"{best:g}"
        resume = bool(searched) or (self.resume and at.is_dir())
        trained = self._at(column, best, at, self.lstm_stop, resume=resume)
        return Outcome(trained, best, searched, trained.reason == INTERRUPTED)

    def _at(
        self, column: str, rate: float, folder: Path, stop: hf.training.Limits, *, resume: bool
    ) -> Trained:
        self.begin(f"{COLUMNS[column]}, rate {rate:g}: {folder}")
        training = lstm_training(self.problem, column, rate, self.sizes, self.seed, self.device)
        return training(folder, stop, test_every=self.test_every, resume=resume, report=self.report)


def within(run: Trained, updates: int) -> Trained:
    """A run as it was after so many updates: the one that was chosen before has gone on since."""
    lines = [line for line in run.lines if line["iteration"] <= updates]
    return replace(run, lines=lines, best=best_line(lines)["iteration"])


def chosen(searched: Mapping[float, Trained], updates: int) -> float | None:
    """The rate with the least validation error within ``updates``, None if all diverged."""
    ended = {rate: run for rate, run in searched.items() if run.reason != "diverged"}
    if not ended:
        return None
    return min(ended, key=lambda rate: best_line(ended[rate].lines, updates)["validation_error"])


# ---- the report


def table1_2011_report(
    name: str,
    problem: hf.problems.NextStep,
    results: Mapping[str, Outcome],
    settings: Mapping[str, Any],
    folder: Path,
) -> tuple[str, list[Path]]:
    """The table as markdown, and the paths of table, numbers and plot in ``folder``."""
    from hfcore.experiments.plots import plot_seconds  # matplotlib is slow to import

    constant = constant_error(problem, settings["sizes"])
    text = table1_2011_table(name, problem, results, settings, constant)
    data = {
        "task": name,
        "data": facts(TASKS[name], problem),
        "unit": TASKS[name].unit,
        "problem": problem.config(),
        "settings": {**settings, "sizes": asdict(settings["sizes"])},
        "published": TABLE1_2011.numbers[name],
        "published_source": TABLE1_2011.source,
        "constant_error": constant,
        "columns": {column: _json(outcome) for column, outcome in results.items()},
    }
    file = f"table1_2011_{name}"
    written = write_results(folder, file, text, data)
    shown = {_label(c, o): o.trained for c, o in results.items() if o.trained is not None}
    if not shown:
        return text, [*written]
    plot = folder / f"{file}.png"
    plot_seconds(
        shown,
        {"mean frame": constant},
        plot,
        facts(TASKS[name], problem),
        error="test_error",
        label=f"test error ({'negative ' if TASKS[name].sign < 0 else ''}{TASKS[name].unit})",
    )
    return text, [*written, plot]


def facts(task: Task, problem: hf.problems.NextStep) -> str:
    """What the data are and what they stand in for."""
    pieces = getattr(problem, "pieces", None)
    return task.stands_in if pieces is None else f"{pieces.facts} {task.stands_in}"


def _label(column: str, outcome: Outcome) -> str:
    rate = "" if outcome.rate is None else f", ε = {outcome.rate:g}"
    return f"{COLUMNS[column]}{rate}"


def _json(outcome: Outcome) -> dict[str, Any]:
    run = {} if outcome.trained is None else result_json(outcome.trained)
    return {
        **run,
        "rate": outcome.rate,
        "searched": {f"{r:g}": result_json(t) for r, t in outcome.searched.items()},
    }


HEADER = (
    "",
    "test error",
    "published",
    "at",
    "of iterations",
    "sequences seen",
    "seconds",
    "ε",
    "ended by",
)


def table1_2011_table(
    name: str,
    problem: hf.problems.NextStep,
    results: Mapping[str, Outcome],
    settings: Mapping[str, Any],
    constant: float,
) -> str:
    """Test errors beside the published ones, and what they rest on."""
    task = TASKS[name]
    rows = [["mean frame", number(task.shown(constant)), *["–"] * (len(HEADER) - 2)]]
    rows += [_row(task, name, column, outcome) for column, outcome in results.items()]
    parts = [
        f"{facts(task, problem)} {_data_text(problem)}",
        f"Test error: {task.unit}, at the iteration with the best validation error. Published "
        f"figures: {TABLE1_2011.source}. Sequences seen: by gradients and curvature products; "
        "seconds: of the data and the steps, without tests.",
        markdown(HEADER, rows),
        _settings_text(problem, settings),
        *(_search_text(task, c, o, settings) for c, o in results.items() if o.searched),
    ]
    return "\n\n".join(parts)


def _row(task: Task, name: str, column: str, outcome: Outcome) -> list[str]:
    published = TABLE1_2011.get(name, PUBLISHED_COLUMNS.get(column, ""))
    if outcome.trained is None:
        ended = "not finished" if outcome.interrupted else "all rates diverged"
        return [COLUMNS[column], "–", number(published), *["–"] * 5, ended]
    run = outcome.trained
    last = run.lines[-1]
    return [
        COLUMNS[column],
        number(task.shown(run.final["test_error"])),
        number(published),
        str(run.best),
        str(last["iteration"]),
        f"{round(1000 * last['minibatches']):,}",
        number(run.seconds),
        "–" if outcome.rate is None else f"{outcome.rate:g}",
        run.reason,
    ]


def _data_text(problem: hf.problems.NextStep) -> str:
    """How many sequences there are."""
    if not isinstance(problem, hf.problems.FiniteProblem):
        return f"Sequences of {problem.length} steps, new ones in every batch."
    train = problem.all_cases().inputs.shape[1]
    counts = [problem.part(part, 10**9).inputs.shape[1] for part in ("validation", "test")]
    return (
        f"Sequences of {problem.length} steps: {train:,} to train, {counts[0]:,} to validate, "
        f"{counts[1]:,} to test."
    )


def _settings_text(problem: hf.problems.NextStep, settings: Mapping[str, Any]) -> str:
    sizes: Sizes = settings["sizes"]
    gradient = f"{sizes.gradient:,} new ones"
    if isinstance(problem, hf.problems.FiniteProblem):
        gradient = "all sequences"
    return (
        f"RNN + HF: {sizes.hidden} tanh units; gradient on {gradient}, curvature on "
        f"{sizes.curvature:,} (at most all). LSTM + GD: {sizes.blocks} blocks of {sizes.cells} "
        f"cells (torch.nn.LSTM as many), momentum 0.9, batches of {sizes.batch}. Validation and "
        f"test on at most {sizes.test:,} sequences. Seed {settings['seed']}. Machine: "
        f"{settings['machine']}, {settings['threads']} threads."
    )


def _search_text(task: Task, column: str, outcome: Outcome, settings: Mapping[str, Any]) -> str:
    """What the search of the rate found."""
    updates = settings["search_updates"]
    cells = []
    for rate, run in outcome.searched.items():
        best = task.shown(best_line(run.lines, updates)["validation_error"])
        lost = " (diverged)" if run.reason == "diverged" else ""
        cells.append([f"{rate:g}", f"{number(best)}{lost}"])
    seconds = math.fsum(
        max(line["training_seconds"] for line in run.lines if line["iteration"] <= updates)
        for run in outcome.searched.values()
    )
    return "\n\n".join(
        [
            f"{COLUMNS[column]}: best validation error within {updates:,} updates by ε; the search "
            f"took {clock(seconds)}.",
            markdown(("ε", "validation error"), cells),
        ]
    )
