"""Figure 3 of Martens & Sutskever (2011) as a table, a plot and a file of results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfcore.cli.tables import clock, markdown, number
from hfcore.experiments.fig3 import Case, Settings
from hfcore.experiments.fig3_rows import UNFINISHED, Group, Row, groups_of, is_done, is_solved
from hfcore.experiments.report import write_results

NAME = "fig3"
FIGURE = (
    "problem", "T", "damping", "runs", "solved", "minibatches, mean", "least", "most", "failed",
    "unfinished",
)  # fmt: skip
RUNS = (
    "problem", "T", "damping", "seed", "outcome", "minibatches", "1997", "objective evaluations",
    "HF steps", "wrong", "least wrong", "time", "λ first → last (range)", "median ρ", "ρ = −∞",
    "median CG", "why CG stopped", "rejected", "machine",
)  # fmt: skip


def fig3_report(rows: Sequence[Row], settings: Settings, folder: Path) -> tuple[str, list[Path]]:
    """The tables as markdown, and the paths of tables, numbers and plot written to ``folder``."""
    from hfcore.experiments.fig3_plot import plot_groups  # matplotlib is slow to import

    groups = groups_of(rows, settings.limit)
    text = fig3_text(groups, settings)
    data: dict[str, Any] = {"settings": vars(settings), "runs": [r for g in groups for r in g.rows]}
    written = write_results(folder, NAME, text, data)
    plot = folder / f"{NAME}.png"
    plot_groups(groups, settings.limit, plot)
    return text, [*written, plot]


def fig3_text(groups: Sequence[Group], settings: Settings) -> str:
    """The figure as a table, then one row a run."""
    return "\n\n".join(
        [
            "Minibatches of Hessian-free until success, over seeds (Martens & Sutskever 2011, "
            f"figure 3): gradients and curvature products over {settings.batch_size} sequences, "
            "of mem-5 over its 32; objective evaluations apart. Solved: less than 1 % of "
            f"{settings.test_size:,} test sequences wrong, of mem-5 none of 32. Failed: not solved "
            f"after {settings.limit:,.0f} minibatches. {settings.hidden} tanh units, sequences "
            "with lengths of their own where lengths are random. Dampings: structural with "
            "μ = 0.03 beside Tikhonov's, or Tikhonov's alone.",
            markdown(FIGURE, map(_figure_cells, groups)),
            "Every run. 1997: the minibatches at which the criterion of Hochreiter & Schmidhuber "
            "(1997) was first met, where there is one.",
            markdown(
                RUNS, (_run_cells(row, settings.limit) for group in groups for row in group.rows)
            ),
        ]
    )


def _figure_cells(group: Group) -> list[str]:
    solved = group.solved
    span = [statistics.fmean(solved), min(solved), max(solved)] if solved else [None] * 3
    return [
        group.problem,
        str(group.length),
        group.variant,
        str(len(group.rows)),
        str(len(solved)),
        *("–" if value is None else f"{value:,.0f}" for value in span),
        str(group.failed),
        str(group.unfinished),
    ]


def _run_cells(row: Row, limit: float) -> list[str]:
    case = Case.of(row)
    shown = [case.problem, str(case.length), case.variant, str(case.seed), _outcome(row, limit)]
    if not row["iterations"]:
        return [*shown, "0", *["–"] * (len(RUNS) - len(shown) - 2), row["machine"]]
    low, high = row["damping_range"]
    first, last = row["damping_first"], row["damping_last"]
    return [
        *shown,
        f"{row['minibatches']:,}",
        number(row["minibatches_1997"]),
        number(row["objective_evaluations"]),
        str(row["iterations"]),
        *(_percent(row[key]) for key in ("test_error", "least_test_error")),
        clock(row["seconds"]),
        f"{first:.3g} → {last:.3g} ({low:.2g} … {high:.2g})",
        number(row["rho_median"], 3),
        str(row["rho_not_finite"]),
        f"{row['cg_iterations_median']:.0f}",
        ", ".join(f"{reason} {count}" for reason, count in row["cg_stops"].items()),
        str(row["rejected"]),
        row["machine"],
    ]


def _outcome(row: Row, limit: float) -> str:
    """How the run ended, at this limit."""
    if row["solved"]:
        return "solved" if is_solved(row, limit) else "solved too late"
    reason: str = row["reason"]
    return reason if is_done(row, limit) else UNFINISHED


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"
