"""Sutskever et al. (2013), figure 5: CG against NAG on a quadratic of a Hessian-free run.

1. The paper takes a quadratic from the middle of a run on CURVES, damped as it was there, starts
   both at 0 and stops CG at 120 iterations; CG is better, the gap modest. It prints no numbers.
2. No preconditioner for either. NAG is tried at many ε, as multiples of 1/L with L the largest
   eigenvalue, and at constant μ and Nesterov's sequence; the best is shown.
3. One iteration of either costs one product.
4. CG is shown in float32, in float64 and in exact arithmetic (the minimum over the Krylov space).
   A share of "CG's" φ is one of the first, which Hessian-free steps run; NAG, which forgets its
   rounding errors, is that of exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hfcore as hf
from hfcore.cli.tables import markdown, number
from hfcore.experiments.experiment import Experiment
from hfcore.experiments.quadratic import Krylov, Quadratic, QuadraticSettings
from hfcore.experiments.report import write_results
from hfcore.experiments.training import Training

ITERATIONS = 60  # of HF before the quadratic: on CURVES about the middle of the descent
CG_ITERATIONS = 120
EXACT = "exact"
ARITHMETIC = {"float32": torch.float32, "float64": torch.float64}
REAL = "float32"  # of what is called CG's φ
MULTIPLES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.3)  # ε·L
MOMENTA: dict[str, Callable[[int], float]] = {
    **{f"{mu:g}": hf.schedules.Constant(mu) for mu in (0.0, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)},
    "1 − 3/(t + 5)": hf.schedules.Nesterov(),
}
SHOWN = (1, 2, 5, 10, 20, 40, 60, 80, 100, 120)


def quadratic_of(experiment: Experiment, training: Training, iteration: int) -> Quadratic:
    """The quadratic that the next HF step of ``training`` would solve."""
    preset, images = experiment.preset, experiment.dataset.train
    policy = hf.minibatches.FullGradient(
        images, images, curvature_batches=preset.curvature_batches, seed=experiment.seed
    )
    batch = policy(iteration).curvature
    assert isinstance(batch, hf.Batch)
    options = training.optimizer.param_groups[0]
    l2 = experiment.weight_decay
    theta = torch.nn.utils.parameters_to_vector(training.model.parameters()).detach()
    objective = hf.objective_for(training.model, preset.loss, l2=l2)
    _, gradient = objective.gradient(objective.prepare(hf.Batch(images, images)), theta)
    settings = QuadraticSettings(
        experiment.dataset.name, iteration, float(options["damping"]), l2, experiment.seed
    )
    return Quadratic(settings, theta, gradient, batch.inputs.clone())


@dataclass(frozen=True)
class Trial:
    """One setting of NAG: ε as a multiple of 1/L, μ by name, ``phi [m+1]`` after 0 to m updates."""

    multiple: float
    momentum: str
    phi: np.ndarray

    def __str__(self) -> str:
        return f"ε = {self.multiple:g}/L, μ = {self.momentum}"


def trials(krylov: Krylov) -> list[Trial]:
    """NAG at every ε and μ of the grid."""
    L = krylov.largest
    return [
        Trial(multiple, name, krylov.nag(multiple / L, momentum))
        for name, momentum in MOMENTA.items()
        for multiple in MULTIPLES
    ]


def best_of(found: list[Trial], iteration: int) -> Trial:
    """The trial with the least φ after so many updates; those that overflowed come last."""
    return min(found, key=lambda t: t.phi[iteration] if np.isfinite(t.phi[iteration]) else np.inf)


def fig5_report(
    krylov: Krylov,
    cg: Mapping[str, np.ndarray],
    settings: QuadraticSettings,
    facts: str,
    folder: Path,
) -> tuple[str, list[Path]]:
    """The table as markdown, and the paths of table, numbers and plot written to ``folder``.

    ``cg``: φ ``[m+1]`` by the names of ARITHMETIC.
    """
    from hfcore.experiments.plots import plot_quadratic  # matplotlib is slow to import

    found = trials(krylov)
    last = len(cg[REAL]) - 1
    exact = krylov.minima()
    # Where the space was whole before, nothing moves any more.
    cg = {**cg, EXACT: np.pad(exact, (0, last + 1 - len(exact)), mode="edge")}
    text = fig5_table(krylov, settings, facts, cg, found)
    data: Mapping[str, Any] = {
        "data": facts,
        "quadratic": asdict(settings),
        "largest_eigenvalue": krylov.largest,
        "cg": {name: phi.tolist() for name, phi in cg.items()},
        "nag": [
            {"epsilon_L": t.multiple, "momentum": t.momentum, "phi": t.phi.tolist()} for t in found
        ],
    }
    written = write_results(folder, "fig5", text, dict(data))
    plot = folder / "fig5.png"
    by_momentum = ([t for t in found if t.momentum == name] for name in MOMENTA)
    shown = [best_of(some, len(some[0].phi) - 1) for some in by_momentum]
    plot_quadratic(cg, {f"NAG, {trial}": trial.phi for trial in shown}, plot, facts)
    return text, [*written, plot]


def fig5_table(
    krylov: Krylov,
    settings: QuadraticSettings,
    facts: str,
    cg: Mapping[str, np.ndarray],
    found: list[Trial],
) -> str:
    """φ of CG, ``[m+1]`` by arithmetic, and of the best NAG at some iterations, then every NAG at
    the last."""
    last = len(found[0].phi) - 1
    real, exact = cg[REAL], cg[EXACT]
    final = best_of(found, last)
    rows = []
    for i in sorted({i for i in SHOWN if i <= last} | {last}):
        best = best_of(found, i)
        phis = (*(cg[name][i] for name in (*ARITHMETIC, EXACT)), final.phi[i], best.phi[i])
        shares = [f"{100 * best.phi[i] / of[i]:.1f} %" for of in (real, exact)]
        rows.append([str(i), *(number(float(v)) for v in phis), *shares, str(best)])
    header = [
        "iterations",
        *(f"φ of CG, {name}" for name in (*ARITHMETIC, EXACT)),
        f"φ of NAG, {final}",
        "of the best NAG",
        f"of CG's, {REAL}",
        f"of CG's, {EXACT}",
        "there",
    ]
    grid = [
        [name, *(_share(t, real, last) for t in found if t.momentum == name)] for name in MOMENTA
    ]
    return "\n\n".join(
        [
            f"{facts} The quadratic of HF step {settings.iteration + 1}: λ = "
            f"{settings.damping:.4g}, l2 = {settings.l2:g}, L = {krylov.largest:.4g}. Both methods "
            "start at 0, without a preconditioner; an iteration of either costs one product. CG in "
            f"{REAL} is what Hessian-free steps run; {EXACT} is the minimum over the Krylov space, "
            "which CG would reach without rounding. The paper's figure prints no numbers; it finds "
            "CG better, the gap modest.",
            markdown(header, rows),
            f"φ of NAG after {last} updates, in percent of CG's in {REAL}, by μ and ε:",
            markdown(["μ", *(f"{multiple:g}/L" for multiple in MULTIPLES)], grid),
        ]
    )


def _share(trial: Trial, cg: np.ndarray, at: int) -> str:
    share = 100 * trial.phi[at] / cg[at]
    return f"{share:.1f}" if np.isfinite(share) and share > 0 else "diverged"
