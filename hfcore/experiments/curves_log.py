"""The CURVES run of Martens' demo beside the log he published with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import hfcore as hf
from hfcore.cli.tables import clock, markdown, number
from hfcore.experiments.plots import plot_log
from hfcore.experiments.published import (
    CURVES_LOG,
    CURVES_LOG_CG,
    CURVES_LOG_CROSS_ENTROPY,
    CURVES_LOG_DAMPING,
    CURVES_LOG_END,
    PUBLISHED,
)
from hfcore.experiments.report import result_json, write_results
from hfcore.experiments.training import Line, Trained

HEADER = (
    "iteration",
    "train error",
    "published",
    "cross-entropy",
    "test error",
    "λ",
    "published λ",
    "CG steps in all",
    "published CG",
)


def curves_log_report(
    result: Trained, dataset: hf.data.Dataset, folder: Path
) -> tuple[str, list[Path]]:
    """The table as markdown, and the paths of table, numbers and plot written to ``folder``."""
    text = curves_log_table(result.lines, dataset)
    data = {
        "data": dataset.facts,
        "published": {
            "train_error": {str(i): error for i, error in CURVES_LOG.items()},
            "damping": {str(i): value for i, value in CURVES_LOG_DAMPING.items()},
            "cg_total": CURVES_LOG_CG,
        },
        **result_json(result),
    }
    written = write_results(folder, "curves_log", text, data)
    plot = folder / "curves_log.png"
    plot_log(result.lines, plot, dataset.facts)
    return text, [*written, plot]


def curves_log_table(lines: Sequence[Line], dataset: hf.data.Dataset) -> str:
    """Here beside published at the iterations of the log that the run has reached."""
    at = {line["iteration"]: line for line in lines}
    last = max(at)
    start = PUBLISHED["curves"]
    rows = [
        _row(i, at[i]) for i in sorted({*CURVES_LOG, *CURVES_LOG_DAMPING, last}) if i in at and i
    ]
    parts = [
        f"{dataset.facts} Errors: Σ over pixels of squared differences, averaged over images, "
        "after the iteration. Cross-entropy: training part, without L2. λ: used in the "
        "iteration. Published: the log of the author's demo.",
        markdown(HEADER, rows),
        f"At its end, iteration {CURVES_LOG_END}, the published run has cross-entropy "
        f"{number(CURVES_LOG_CROSS_ENTROPY)} and test error {number(start.test_error)}. "
        f"Here: {clock(lines[-1]['training_seconds'])} of training up to iteration {last}.",
    ]
    if 0 in at:
        before = (
            f"Before training: cross-entropy {number(at[0]['train_loss'])} "
            f"(published, another draw: {number(start.initial_loss)}), "
            f"error {number(at[0]['train_error'])} ({number(start.initial_error)})."
        )
        parts.insert(1, before)
    return "\n\n".join(parts)


def _row(i: int, line: Mapping[str, float]) -> list[str]:
    return [
        str(i),
        number(line["train_error"]),
        number(CURVES_LOG.get(i)),
        number(line["train_loss"]),
        number(line["test_error"]),
        number(line.get("damping")),
        number(CURVES_LOG_DAMPING.get(i)),
        number(line["cg_total"]),
        number(CURVES_LOG_CG if i == CURVES_LOG_END else None),
    ]
