"""Tables and plots of the ablations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from hfcore.cli.tables import markdown, number
from hfcore.experiments.ablation import CURVES, MOMENTUM, Outcome, Settings
from hfcore.experiments.report import write_results

QUESTIONS = {
    "curvature": "The Gauss-Newton matrix (as published), the Hessian, the empirical Fisher matrix "
    "(Martens 2010, sections 4.2 and 6).",
    "cg-start": "CG from 0.95 of its last iterate (as published), from zero, from all of it "
    "(Martens 2010, section 4.5: an order of magnitude).",
    "stop": "CG ended by relative progress (as published), by ‖r‖ < min(½, ‖g‖^½)·‖g‖, after 50 "
    "iterations (Martens 2010, section 4.4).",
    "backtracking": "The CG iterate that the objective prefers (as published), the last one, one "
    "of those at ⌈1.3^j⌉ (Martens 2010, section 4.6).",
    "preconditioner": "CG with the published preconditioner or none, without, and with others "
    "(Martens 2010, section 4.7).",
    "rho": "ρ's objective on the curvature's batch (as published: the demo) and on all data "
    "(Martens 2010, section 4.3).",
    "momentum": "NAG whose μ is lowered to 0.9 at the end (Sutskever et al. 2013, section 3), by "
    "how much of the run that is.",
    "scale": "NAG from sparse starts of three scales (Sutskever et al. 2013, section 3).",
}
MARKS = 4  # errors shown on the way


def ablation_report(
    found: Mapping[tuple[str, str], Sequence[Outcome]],
    settings: Settings,
    facts: str,
    folder: Path,
) -> tuple[str, list[Path]]:
    """The tables as markdown, and the paths of tables, numbers and plot written to ``folder``.

    ``found`` has the outcomes by ablation and problem.
    """
    from hfcore.experiments.ablation_plot import plot_ablations  # matplotlib is slow to import

    text = "\n\n".join(
        section(ablation, problem, outcomes, settings, facts)
        for (ablation, problem), outcomes in found.items()
    )
    data = {
        "data": facts,
        "settings": asdict(settings),
        "ablations": {
            f"{ablation} on {problem}": [asdict(outcome) for outcome in outcomes]
            for (ablation, problem), outcomes in found.items()
        },
    }
    written = write_results(folder, "ablation", text, data)
    plot = folder / "ablation.png"
    titles = {f"{ablation}, {problem}": runs for (ablation, problem), runs in found.items()}
    plot_ablations(titles, plot)
    return text, [*written, plot]


def section(
    ablation: str, problem: str, outcomes: Sequence[Outcome], settings: Settings, facts: str
) -> str:
    """One table with what it rests on."""
    mark = max((o.best for o in outcomes if math.isfinite(o.best)), default=math.inf)
    at = marks(outcomes)
    counted = "updates" if ablation in MOMENTUM else "minibatches"
    header = [
        "",
        *(f"error at {i:,}" for i in at),
        "last error",
        counted,
        f"{counted} to {number(mark)}",
        "CG iterations",
        "steps rejected",
        "ended",
    ]
    rows = [
        [
            o.variant,
            *(number(_error_at(o, i)) for i in at),
            number(o.errors[-1]),
            number(o.work[-1]),
            number(o.work_to(mark)),
            number(o.cg),
            number(o.rejected),
            o.reason,
        ]
        for o in outcomes
    ]
    return "\n\n".join(
        [
            f"**{ablation}, {problem}.** {QUESTIONS[ablation]}",
            markdown(header, rows),
            _basis(ablation, problem, settings, facts),
        ]
    )


def marks(outcomes: Sequence[Outcome]) -> list[int]:
    """Some of the iterations that all runs have, evenly apart, without the last."""
    shared = set.intersection(*(set(o.at) for o in outcomes))
    shared = {i for i in shared if i > 0}
    last = max(shared, default=0)
    wanted = [last * (k + 1) // (MARKS + 1) for k in range(MARKS)]
    below = [[i for i in shared if i <= w] for w in wanted]
    return sorted({max(found) for found in below if found})


def _error_at(outcome: Outcome, iteration: int) -> float:
    return outcome.errors[list(outcome.at).index(iteration)]


def _basis(ablation: str, problem: str, settings: Settings, facts: str) -> str:
    curves = problem == CURVES
    images = "all" if settings.images is None else f"the first {settings.images:,}"
    which = f"{facts} Here {images} of the training images. " if curves else ""
    if ablation in MOMENTUM:
        how = (
            f"{settings.updates:,} updates, ε = {settings.learning_rate:g}, μ up to "
            f"{settings.momentum:g}, seed {settings.seed}. Errors are "
        )
        what = "Σ over pixels of squared differences." if curves else "shares of wrong cases."
    else:
        how = f"Seed {settings.seed}. Errors are "
        what = (
            "Σ over pixels of squared differences, averaged over the training images."
            if curves
            else f"the loss on ten fresh batches of {settings.batch_size:,} sequences before the "
            f"step, each sequence of a length of its own; {settings.hidden} hidden units."
        )
        what += " Minibatches are of 1000 cases, a gradient or a product over each."
    return (
        f"{which}{how}{what} The column before the last three is the work it took to come to the "
        "worst of the variants' best errors."
    )
