"""Sutskever et al. (2013), table 2: autoencoder errors before and after μ is lowered to 0.9.

1. The paper shows the best run of each data set: Nesterov's momentum with the μ_max below.
Further notes: :mod:`hfcore.experiments.momentum_autoencoders`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfcore.cli.tables import markdown, number
from hfcore.experiments.momentum_autoencoders import RATES, setting_text
from hfcore.experiments.published import TABLE2
from hfcore.experiments.tuning import Column, ColumnResult, Tuned, column_settings, rates_for
from hfcore.experiments.tuning_tables import details, procedure_text, times

BEST = {"curves": "0.999N", "mnist": "0.99N", "faces": "0.999N"}  # note 1


def best_column(dataset: str, rates: Mapping[str, tuple[float, ...]]) -> Column:
    """The column of a data set."""
    name = BEST[dataset]
    return Column(name, column_settings(name), rates_for(dataset, name, rates, RATES))


def check_tests(updates: int, final_updates: int, test_every: int) -> None:
    """Raise ValueError unless there is a test right before the last phase."""
    if (updates - final_updates) % test_every or not 0 < final_updates < updates:
        raise ValueError(
            f"test_every: got {test_every} with {updates:,} updates, the last {final_updates:,} "
            "of them at 0.9; need a test where these begin"
        )


def errors_at(result: ColumnResult, update: int) -> float | None:
    """Mean error over the seeds after so many updates; infinite if a run had diverged by then."""
    if not result.runs:
        return None
    errors = [
        next((test.error for test in run.tests if test.update == update), math.inf)
        for run in result.runs
    ]
    return math.fsum(errors) / len(errors)


def table2_report(
    results: Mapping[str, Tuned], settings: Mapping[str, Any], folder: Path
) -> tuple[str, list[Path]]:
    """The table as markdown, and the paths of table, numbers, maps and plot in ``folder``."""
    from hfcore.experiments.tuning_files import write_tuned  # matplotlib is slow to import

    start = settings["updates"] - settings["final_updates"]
    here = {
        dataset: {"before": errors_at(tuned.columns[0], start), "after": tuned.columns[0].error}
        for dataset, tuned in results.items()
    }
    rows = [
        [
            dataset,
            tuned.columns[0].column.name,
            *(number(TABLE2.get(dataset, column)) for column in ("before", "after")),
            *(number(here[dataset][column]) for column in ("before", "after")),
        ]
        for dataset, tuned in results.items()
    ]
    header = ["", "momentum", "published, before", "after", "here, before", "after"]
    text = "\n\n".join(
        [
            f"Before and after the last {settings['final_updates']:,} updates, with μ lowered to "
            f"0.9. {setting_text(settings)} Published figures: {TABLE2.source}.",
            markdown(header, rows),
            procedure_text(settings),
            details(results, TABLE2),
            times(results),
        ]
    )
    written = write_tuned(folder, "table2", text, results, TABLE2, settings, before_and_after=here)
    return text, written
