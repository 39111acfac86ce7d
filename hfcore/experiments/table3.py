"""Sutskever et al. (2013), table 3: Nesterov's momentum on CURVES, by the scale of the start.

Notes: :mod:`hfcore.experiments.momentum_autoencoders`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcore.experiments.momentum_autoencoders import RATES, setting_text
from hfcore.experiments.published import TABLE3
from hfcore.experiments.tuning import Column, Tuned, rates_for
from hfcore.experiments.tuning_tables import beside_published, details, procedure_text, times

DATASET = "curves"
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
MOMENTUM = 0.999


def scale_columns(
    scales: Sequence[float], momentum: float, rates: Mapping[str, tuple[float, ...]]
) -> list[Column]:
    """A column for each factor on the initial weights, named by it."""
    return [
        Column(
            f"{scale:g}",
            {"method": "nag", "momentum": momentum, "scale": scale},
            rates_for(DATASET, f"{scale:g}", rates, RATES),
        )
        for scale in scales
    ]


def table3_report(
    results: Mapping[str, Tuned], settings: Mapping[str, Any], folder: Path
) -> tuple[str, list[Path]]:
    """The table as markdown, and the paths of table, numbers, map and plot in ``folder``."""
    from hfcore.experiments.tuning_files import write_tuned  # matplotlib is slow to import

    text = "\n\n".join(
        [
            "CURVES with Nesterov's momentum, columns: the factor on the initial weights. "
            f"{setting_text(settings)} Published figures: {TABLE3.source}.",
            beside_published(results, TABLE3),
            procedure_text(settings),
            details(results, TABLE3),
            times(results),
        ]
    )
    return text, write_tuned(folder, "table3", text, results, TABLE3, settings)
