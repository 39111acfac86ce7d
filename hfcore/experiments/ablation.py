"""What the texts claim of the parts of their methods: each part changed, the rest as published.

1. Martens (2010): the Gauss-Newton matrix against the Hessian and the empirical Fisher matrix
   (sections 4.2, 6), when CG stops (4.4), where it starts (4.5), which of its iterates is taken
   (4.6), the preconditioner (4.7), and what ρ's objective is on (4.3). Sutskever et al. (2013):
   when μ is lowered, and the scale of the start.
2. The preset is that of Martens (2010) on CURVES, of Martens & Sutskever (2011) on a recurrent
   problem. Of the relative residual the progress rule is off, of fixed CG both.
3. Errors on CURVES are those of the training images; on a recurrent problem the loss on an
   iteration's fresh gradient batches, before its step. There Hessian-free has a length for each
   sequence, as in :mod:`hfcore.experiments.fig3`.
4. Work is counted in minibatches of 1000 cases, a gradient or a product over each; that of momentum
   in updates. "Work to the mark" is what it took to come to the worst of the variants' best errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

import hfcore as hf
from hfcore.experiments.experiment import HF, Experiment, Method
from hfcore.experiments.table5 import Rung
from hfcore.experiments.training import Line

CURVES = "curves"
PUBLISHED = "as published"
GRADIENT_BATCHES = 10  # of a recurrent problem
SEQUENCES_AN_UPDATE, IMAGES_AN_UPDATE = 100, 200  # of momentum


@dataclass(frozen=True)
class Variant:
    """What is changed: options of hf.HessianFree, or of hf.sweep with settings of its grid."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rho: Literal["curvature", "gradient"] | None = None

    @property
    def folder(self) -> str:
        """Of its run."""
        return self.name.replace(" ", "-").replace("^", "")


def _stops(**options: Any) -> dict[str, Any]:
    return {"cg_tolerance": 0.0, "cg_residual": 0.0, **options}


AS_PUBLISHED = Variant(PUBLISHED)
HESSIAN_FREE: dict[str, tuple[Variant, ...]] = {
    "curvature": (
        AS_PUBLISHED,
        Variant("Hessian", {"curvature": "hessian"}),
        Variant("Fisher", {"curvature": "fisher"}),
    ),
    "cg-start": (
        AS_PUBLISHED,
        Variant("from zero", {"cg_decay": 0.0}),
        Variant("undecayed", {"cg_decay": 1.0}),
    ),
    "stop": (
        AS_PUBLISHED,
        Variant("relative residual", _stops(cg_residual="relative")),
        Variant("fixed 50", _stops(cg_max_iter=50)),
    ),
    "backtracking": (
        AS_PUBLISHED,
        Variant("none", {"cg_backtracking": "last"}),
        Variant("walk over 1.3^j", {"cg_evaluate_every": "powers", "cg_backtracking": "walk"}),
    ),
    "preconditioner": (
        AS_PUBLISHED,
        Variant("no preconditioner", {"preconditioner": None}),
        Variant("Fisher diagonal", {"preconditioner": "fisher"}),
        Variant("GGN diagonal", {"preconditioner": "ggn_diagonal"}),
    ),
    "rho": (AS_PUBLISHED, Variant("rho on all data", rho="gradient")),
}
# Shares of the updates at the end with μ = 0.9 at most.
LOWERED = {"never lowered": 0.0, "last twentieth": 0.05, "last half": 0.5, "from the start": 1.0}
SCALES = (1.0, 3.0, 5.0)
MOMENTUM: dict[str, tuple[Variant, ...]] = {
    "momentum": tuple(Variant(name, {"lowered": share}) for name, share in LOWERED.items()),
    "scale": tuple(Variant(f"scale {scale:g}", {"scale": scale}) for scale in SCALES),
}
ABLATIONS = {**HESSIAN_FREE, **MOMENTUM}
ON_CURVES_ALONE = ("rho", "scale")


@dataclass(frozen=True)
class Settings:
    """What all runs of a call have in common; ``images`` are the first of CURVES, None for all."""

    iterations: int = 60
    images: int | None = None
    batch_size: int = 1000
    hidden: int = 100
    updates: int = 5000
    learning_rate: float = 0.01
    momentum: float = 0.99
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """One run: errors ``[m]`` at so many iterations or updates, and the work ``[m]`` until then."""

    variant: str
    at: Sequence[int]
    errors: Sequence[float]
    work: Sequence[float]
    reason: str
    cg: int | None = None
    rejected: int | None = None

    @property
    def best(self) -> float:
        """The least error; infinite where there was none that is finite."""
        return min((e for e in self.errors if math.isfinite(e)), default=math.inf)

    def work_to(self, mark: float) -> float | None:
        """Work until the error was first as low as the mark; None where it never was."""
        pairs = zip(self.errors, self.work, strict=True)
        return next((work for error, work in pairs if error <= mark), None)


def variants_of(ablation: str, problem: str) -> tuple[Variant, ...]:
    """What is compared on a problem: the published preset and what differs from it.

    Raises ValueError for what the problem does not serve.
    """
    if problem != CURVES and ablation in ON_CURVES_ALONE:
        raise ValueError(f"of: got {ablation!r} with {problem}, need {CURVES}")
    published = (
        hf.presets.autoencoders[CURVES].optimiser if problem == CURVES else hf.presets.rnn2011
    )
    return tuple(
        v
        for v in ABLATIONS[ablation]
        # Not what the preset has anyway.
        if not v.options
        or ablation in MOMENTUM
        or any(published.get(key) != value for key, value in v.options.items())
    )


def run(
    variant: Variant,
    problem: str,
    settings: Settings,
    dataset: hf.data.Dataset | None,
    folder: Path,
    *,
    device: torch.device,
    resume: bool,
    report: Callable[[Line], None],
) -> Outcome:
    """One Hessian-free run, begun or with ``resume`` continued in ``folder``.

    ``dataset`` are the images of CURVES. Raises what :func:`hfcore.train` raises.
    """
    resume = resume and folder.is_dir()
    stop = hf.training.Limits(iterations=settings.iterations)
    if problem == CURVES:
        assert dataset is not None
        preset = hf.presets.autoencoders[CURVES]
        preset = replace(preset, optimiser={**preset.optimiser, **variant.options})
        if variant.rho is not None:
            preset = replace(preset, rho=variant.rho)
        training = Experiment(dataset, preset, settings.seed).training(Method(HF))
        trained = training(folder, stop, resume=resume, report=report)
        return _outcome(variant, trained.lines, "train_error", trained.reason)
    task = Rung.parse(problem).problem(mixed_lengths=True)
    model = hf.RNN(task.input_size, settings.hidden, task.output_size)
    hf.init.sparse_(model, torch.Generator().manual_seed(settings.seed))
    model.to(device)
    result = hf.train(
        model,
        task,
        hf.HessianFree(model, task.loss, **{**hf.presets.rnn2011, **variant.options}),
        batches=hf.minibatches.Fresh(GRADIENT_BATCHES, settings.batch_size),
        stop=stop,
        callbacks=[_Told(report)],
        solved_below=0.0,  # to the end, so that variants are compared over as many steps
        seed=settings.seed,
        run_dir=folder,
        resume=resume,
        checkpoint_every=1,
        progress=False,
    )
    lines = hf.training.read_metrics(folder / "metrics.jsonl")
    return _outcome(variant, list(lines), "loss", result.reason)


class _Told(hf.Callback):
    """Passes on every line."""

    reads_gradients = False

    def __init__(self, report: Callable[[Line], None]) -> None:
        self._report = report

    def on_step(self, state: hf.TrainState) -> str | None:
        self._report(state.metrics)
        return None


def _outcome(variant: Variant, lines: Sequence[Line], error: str, reason: str) -> Outcome:
    measured = [line for line in lines if error in line]
    return Outcome(
        variant.name,
        [line["iteration"] for line in measured],
        [float(line[error]) for line in measured],
        [float(line["minibatches"]) for line in measured],
        reason,
        cg=lines[-1].get("cg_total", 0),
        rejected=sum(line.get("accepted") is False for line in lines),
    )


def run_momentum(
    variant: Variant,
    problem: hf.problems.Problem,
    settings: Settings,
    folder: Path,
    *,
    resume: bool,
    **options: Any,
) -> Outcome:
    """One run of Nesterov's momentum; ``options`` are further ones of :func:`hfcore.sweep`.

    Raises what that raises.
    """
    images = problem.images if isinstance(problem, hf.problems.Reconstruction) else None
    lowered, scale = variant.options.get("lowered"), variant.options.get("scale")
    share = LOWERED["last twentieth"] if lowered is None else lowered
    grid: dict[str, list[Any]] = {
        "method": ["nag"],
        "momentum": [settings.momentum],
        "learning_rate": [settings.learning_rate],
        **({} if scale is None else {"scale": [scale]}),
    }
    result = hf.sweep(
        problem,
        grid,
        seeds=[settings.seed],
        updates=settings.updates,
        batch_size=SEQUENCES_AN_UPDATE if images is None else min(IMAGES_AN_UPDATE, len(images)),
        schedule="delayed" if images is None else "increasing",
        start=hf.RnnStart(hidden_size=settings.hidden) if images is None else None,
        final_updates=round(share * settings.updates),
        run_dir=folder,
        resume=resume and folder.is_dir(),
        **options,
    )
    tests = result.tests[0]
    return Outcome(
        variant.name,
        [test.update for test in tests],
        [test.error for test in tests],
        [float(test.update) for test in tests],
        result.reason if 0 not in result.diverged_at else "diverged",
    )
