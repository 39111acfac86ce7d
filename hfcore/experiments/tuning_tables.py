"""Markdown of a tuned table: errors beside the published ones, and what they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfcore.cli.tables import clock, markdown, number
from hfcore.experiments.published import PublishedTable
from hfcore.experiments.tuning import ColumnResult, Tuned

Extra = Mapping[str, Mapping[str, float | None]]  # column to problem to the number found here

DETAILS = (
    "problem",
    "column",
    "ε",
    "searched",
    "error",
    "published",
    "error of each seed",
    "outcomes",
    "updates",
)


def beside_published(
    results: Mapping[str, Tuned],
    published: PublishedTable,
    *,
    before: Extra | None = None,
    after: Extra | None = None,
) -> str:
    """Two rows a problem, published and here; ``before`` and ``after`` are further columns."""
    before, after = before or {}, after or {}
    tuned_names = list(dict.fromkeys(r.column.name for t in results.values() for r in t.columns))
    names = [*before, *tuned_names, *after]
    rows = []
    for problem, tuned in results.items():
        here: dict[str, float | None] = {r.column.name: r.error for r in tuned.columns}
        here |= {name: values.get(problem) for name, values in {**before, **after}.items()}
        there = [number(published.get(problem, name)) for name in names]
        rows.append([f"{problem}, published", *there])
        rows.append([f"{problem}, here", *(number(here.get(name)) for name in names)])
    return markdown(["", *names], rows)


def details(results: Mapping[str, Tuned], published: PublishedTable) -> str:
    """One row a column of a problem: the rate, the seeds and what became of them."""
    return markdown(
        DETAILS,
        [
            _detail(problem, result, published)
            for problem, tuned in results.items()
            for result in tuned.columns
        ],
    )


def _detail(problem: str, result: ColumnResult, published: PublishedTable) -> list[str]:
    each = ", ".join("inf" if r["error"] is None else number(r["error"]) for r in result.rows)
    outcomes = ", ".join(f"{count} {name}" for name, count in result.outcomes.items())
    ended = any(run.row["error"] is not None for run in result.searched)
    none = "–" if ended or not result.searched else "all diverged"
    return [
        problem,
        result.column.name,
        none if result.chosen is None else f"{result.chosen:g}",
        str(len({run.row["learning_rate"] for run in result.searched})),
        number(result.error),
        number(published.get(problem, result.column.name)),
        each or "–",
        outcomes or "–",
        f"{result.updates:,}",
    ]


def procedure_text(settings: Mapping[str, Any]) -> str:
    """How rates were chosen and what was averaged."""
    seeds = ", ".join(str(seed) for seed in settings["seeds"])
    by = (
        "mean error over the seeds, as in the paper,"
        if settings["choose_by"] == "average"
        else f"error of seed {settings['seeds'][0]} alone, not as in the paper the mean of four,"
    )
    return (
        f"Seeds {seeds}; {settings['updates']:,} updates on batches of {settings['batch_size']}; ε "
        f"chosen by the {by} after {settings['search_updates']:,} updates."
    )


def times(results: Mapping[str, Tuned]) -> str:
    """Seconds of training, and which problems are not finished."""
    each = "; ".join(f"{name} {clock(tuned.seconds)}" for name, tuned in results.items())
    text = f"Training took {each}, all columns of a problem together, searches included."
    unfinished = [name for name, tuned in results.items() if not tuned.finished]
    if unfinished:
        text += f"\n\nNot finished: {', '.join(unfinished)}; these are the figures so far."
    return text
