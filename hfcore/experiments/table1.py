"""Sutskever et al. (2013), table 1: autoencoders with SGD, both momenta and the HF hybrid.

1. HF† is the hybrid of appendix A.6 with all its phases shortened by one factor, so that they fit
   the number of HF updates it is given; its schedules of the step size shrink with them.
2. SGDc (Chapelle & Erhan 2011) and HF* (Martens 2010) are figures the paper quotes.
Further notes: :mod:`hfcore.experiments.momentum_autoencoders`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcore.cli.tables import clock
from hfcore.experiments.momentum_autoencoders import RATES, same_runs, setting_text
from hfcore.experiments.published import TABLE1
from hfcore.experiments.report import result_json
from hfcore.experiments.training import Trained
from hfcore.experiments.tuning import Column, Tuned, column_settings, rates_for
from hfcore.experiments.tuning_tables import beside_published, details, procedure_text, times

COLUMNS = ("0", "0.9N", "0.99N", "0.995N", "0.999N", "0.9M", "0.99M", "0.995M", "0.999M")
QUOTED, HYBRID = ("SGDc", "HF*"), "HF†"


def momentum_columns(
    dataset: str, names: Sequence[str], rates: Mapping[str, tuple[float, ...]]
) -> list[Column]:
    """The columns of one data set with their learning rates."""
    return [
        Column(name, column_settings(name), rates_for(dataset, name, rates, RATES))
        for name in names
    ]


def table1_report(
    results: Mapping[str, Tuned],
    hybrids: Mapping[str, Trained],
    settings: Mapping[str, Any],
    folder: Path,
) -> tuple[str, list[Path]]:
    """The table as markdown, and the paths of table, numbers, maps and plot in ``folder``.

    ``hybrids`` are the HF† runs by data set, those that there are.
    """
    from hfcore.experiments.tuning_files import write_tuned  # matplotlib is slow to import

    text = table1_table(results, hybrids, settings)
    found = {name: result_json(result) for name, result in hybrids.items()}
    return text, write_tuned(folder, "table1", text, results, TABLE1, settings, hybrid=found)


def table1_table(
    results: Mapping[str, Tuned], hybrids: Mapping[str, Trained], settings: Mapping[str, Any]
) -> str:
    """Errors beside the published ones, then what each of them rests on."""
    hybrid = {name: result.final["train_error"] for name, result in hybrids.items()}
    quoted: dict[str, dict[str, float | None]] = {name: {} for name in QUOTED}
    parts = [
        f"{setting_text(settings)} Published figures: {TABLE1.source}. SGDc and HF* are other "
        "authors' results, quoted by the paper.",
        beside_published(results, TABLE1, after={HYBRID: hybrid, **quoted}),
        same_runs(results, settings),
        procedure_text(settings),
        details(results, TABLE1),
        times(results),
    ]
    for name, result in hybrids.items():
        parts.append(
            f"HF† of {name}: {result.final['iteration']:,} HF updates, "
            f"{result.final['cg_total']:,} CG iterations, {clock(result.seconds)}; the phases of "
            "appendix A.6, shortened by one factor."
        )
    return "\n\n".join(part for part in parts if part)
