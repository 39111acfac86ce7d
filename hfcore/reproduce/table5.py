"""Sutskever et al. (2013), table 5: momentum on problems with long-term dependencies.

1. The loss is the mean over sequences of ½(s − target)² at the last step, for memorisation of the
   softmax cross-entropy summed over the recalled steps. The paper does not state its scale, on
   which the learning rates depend: the grids here go beyond its decades 1e-3 to 1e-6, in half
   decades.
2. μ is 0.9 for the first 1000 updates, then μ₀; the column 0 is plain SGD from the first update.
3. Inputs and targets are centred and nets have the echo-state start of table 4 on all problems.
4. Errors are means over 10,000 test sequences a seed: shares of wrong sequences (off by more than
   0.04), for memorisation wrong steps of a sequence, the units in which the paper's "biases"
   column is 5·½ and 10·0.8.
5. Memorisation is scored on the recalled steps alone: a net of biases then errs in 8.0 of 10 steps,
   as the paper has it, while one that is scored on all steps learns to stay blank and errs in 10.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcore.problems import SequenceProblem, create
from hfcore.reproduce.published import TABLE5
from hfcore.reproduce.report import clock, markdown, number, write_results
from hfcore.reproduce.tuning import Column, ColumnResult, Tuned

PROBLEMS = ("add-80", "mul-80", "mem-5-200", "mem-20-80")
COLUMNS = ("0", "0.9N", "0.98N", "0.995N", "0.9M", "0.98M", "0.995M")
KINDS = {
    "add": "addition",
    "mul": "multiplication",
    "mem-5": "memorization-5bit",
    "mem-20": "memorization-20bit",
}
TEST_SIZE = 10_000
# From large to small: note 1. Sums over steps make the gradients of memorisation larger.
RATES = {
    "add": (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6),
    "mul": (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6),
    "mem-5": (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6),
    "mem-20": (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6),
}


@dataclass(frozen=True)
class Rung:
    """One row of the table: ``add-80`` is addition at T = 80."""

    kind: str
    length: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.length}"

    @classmethod
    def parse(cls, text: str) -> Rung:
        """``add-80``, ``mem-20-80``. Raises ValueError saying what is needed."""
        match = re.fullmatch(r"(.+)-(\d+)", text.strip())
        if match is None or match[1] not in KINDS:
            names = ", ".join(f"{kind}-T" for kind in KINDS)
            raise ValueError(f"problem: got {text!r}, need {names} with a length T, like add-80")
        rung = cls(match[1], int(match[2]))
        rung.problem()
        return rung

    def problem(self) -> SequenceProblem:
        """Centred (note 3); memorisation scored on what is recalled (note 5)."""
        scored = {"scored": "recall"} if self.kind.startswith("mem") else {}
        problem = create(KINDS[self.kind], length=self.length, centre=True, **scored)
        assert isinstance(problem, SequenceProblem)
        return problem


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


def columns_of(
    rung: Rung, names: Sequence[str], rates: Mapping[str, tuple[float, ...]]
) -> list[Column]:
    """The columns of one problem with their learning rates.

    ``rates`` replaces the default grid for a key that is ``problem/column``, a column, a problem
    or empty; the first of these that there is counts.
    """
    columns = []
    for name in names:
        keys = (f"{rung}/{name}", name, str(rung), "")
        chosen = next((rates[key] for key in keys if key in rates), RATES[rung.kind])
        columns.append(Column(name, column_settings(name), chosen))
    return columns


# ---- the report


def table5_report(
    results: Mapping[str, Tuned], settings: Mapping[str, Any], folder: Path
) -> tuple[str, list[Path]]:
    """The table as markdown, and the paths of table, numbers, maps and plots in ``folder``."""
    from hfcore.reproduce import tuning_files  # matplotlib is slow to import

    text = table5_table(results, settings)
    data = {
        "settings": settings,
        "published": TABLE5.numbers,
        "published_source": TABLE5.source,
        "problems": {name: tuning_files.tuned_json(tuned) for name, tuned in results.items()},
    }
    written = [*write_results(folder, "table5", text, data)]
    for name, tuned in results.items():
        written += tuning_files.write_maps(folder, name, tuned)
    plot = folder / "table5.png"
    tuning_files.plot_columns(results, TABLE5, plot, "error")
    return text, [*written, plot]


def table5_table(results: Mapping[str, Tuned], settings: Mapping[str, Any]) -> str:
    """Errors beside the published ones, then what each of them rests on."""
    names = list(dict.fromkeys(r.column.name for t in results.values() for r in t.columns))
    rows, details = [], []
    for problem, tuned in results.items():
        here = {r.column.name: r for r in tuned.columns}
        bias = Rung.parse(problem).problem().bias_error
        rows.append([f"{problem}, published", number(TABLE5.get(problem, "biases"))])
        rows[-1] += [number(TABLE5.get(problem, name)) for name in names]
        rows.append([f"{problem}, here", number(bias)])
        rows[-1] += [number(here[name].error) if name in here else "–" for name in names]
        details += [_detail(problem, result) for result in tuned.columns]
    seeds = ", ".join(str(seed) for seed in settings["seeds"])
    parts = [
        "Errors after the last update: share of wrong sequences, for mem wrong steps of a "
        "sequence, on 10,000 test sequences a seed, averaged over seeds. "
        f"Published figures: {TABLE5.source}.",
        markdown(["", "biases", *names], rows),
        f"Seeds {seeds}; {settings['updates']:,} updates on {settings['batch_size']} sequences; ε "
        f"chosen by the error of seed {settings['seeds'][0]} after "
        f"{settings['search_updates']:,} updates, that seed counts among the others. Loss: mean "
        "over sequences of ½(s − target)² at the last step, for mem of the cross-entropy summed "
        "over the recalled steps. μ: 0.9 for the first 1000 updates, then the column's; 0 is plain "
        "SGD. "
        f"Inputs and targets centred, echo-state start, {settings['hidden']} tanh units.",
        markdown(DETAILS, details),
        "Training took "
        + "; ".join(f"{name} {clock(tuned.seconds)}" for name, tuned in results.items())
        + ", all columns of a problem together, searches included.",
    ]
    unfinished = [name for name, tuned in results.items() if not tuned.finished]
    if unfinished:
        parts.append(f"Not finished: {', '.join(unfinished)}; these are the figures so far.")
    return "\n\n".join(parts)


DETAILS = (
    "problem",
    "column",
    "ε",
    "of",
    "error",
    "published",
    "error of each seed",
    "outcomes",
    "updates",
)


def _detail(problem: str, result: ColumnResult) -> list[str]:
    each = ", ".join("inf" if r["error"] is None else number(r["error"]) for r in result.rows)
    outcomes = ", ".join(f"{count} {name}" for name, count in result.outcomes.items())
    none = "all diverged" if result.searched else "–"
    return [
        problem,
        result.column.name,
        none if result.chosen is None else f"{result.chosen:g}",
        f"{len(result.searched)}",
        number(result.error),
        number(TABLE5.get(problem, result.column.name)),
        each or "–",
        outcomes or "–",
        f"{result.updates:,}",
    ]
