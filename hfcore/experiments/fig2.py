"""Error against seconds on CURVES, as in Martens (2010), figure 2: pre-training counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from hfcore.cli.tables import markdown, number
from hfcore.experiments.experiment import Experiment, Method
from hfcore.experiments.plots import plot_seconds
from hfcore.experiments.report import result_json, write_results
from hfcore.experiments.training import Trained

DATASET = "curves"
METHODS = ("pt-ncg", "rand-hf", "pt-hf")


def fig2_report(
    experiment: Experiment, results: Mapping[Method, Trained], folder: Path
) -> tuple[str, list[Path]]:
    """The table as markdown, and the paths of table, numbers and plot written to ``folder``."""
    facts = experiment.dataset.facts
    text = fig2_table(facts, results)
    data = {
        "data": facts,
        "seed": experiment.seed,
        "methods": {
            str(method): {"pretraining_seconds": result.before, **result_json(result)}
            for method, result in results.items()
        },
    }
    written = write_results(folder, "fig2", text, data)
    plot = folder / "fig2.png"
    plot_seconds({m.column: r for m, r in results.items()}, {}, plot, facts)
    return text, [*written, plot]


def fig2_table(facts: str, results: Mapping[Method, Trained]) -> str:
    """The seconds in which every method came down to an error, a row for each error."""
    heads = ["train error below", *(method.column for method in results)]
    rows = [
        [number(level), *(number(seconds_to(result, level)) for result in results.values())]
        for level in levels(list(results.values()))
    ]
    pretraining = max(result.before for result in results.values())
    ends = ", ".join(
        f"{method.column} {number(result.lines[-1]['train_error'])} after "
        f"{number(result.seconds)} s ({result.lines[-1]['iteration']} iterations)"
        for method, result in results.items()
    )
    return "\n\n".join(
        [
            f"{facts} Seconds until the training error (Σ over pixels of squared differences, "
            f"averaged over images) was first below a level. The {number(pretraining)} seconds of "
            "pre-training count for PT.",
            markdown(heads, rows),
            f"At the end: {ends}.",
        ]
    )


def seconds_to(result: Trained, level: float) -> float | None:
    """When the training error was first below ``level``; None if it never was."""
    for line in result.lines:
        if line["train_error"] < level:
            return result.before + float(line["training_seconds"])
    return None


def levels(results: Sequence[Trained]) -> list[float]:
    """1, 2, 5 times powers of ten from above the errors at the start down to the least."""
    errors = [
        line["train_error"] for result in results for line in result.lines
        if math.isfinite(line["train_error"]) and line["train_error"] > 0
    ]  # fmt: skip
    low, high = math.floor(math.log10(min(errors))), math.ceil(math.log10(max(errors)))
    steps = [m * 10.0**k for k in range(high, low - 1, -1) for m in (5, 2, 1)]
    return [step for step in steps if min(errors) < step <= max(errors)]
