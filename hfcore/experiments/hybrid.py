"""The hybrid of Sutskever et al. (2013), appendix A.6, on a budget of HF updates: column HF†."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from hfcore import init, presets
from hfcore.bindings.checks import check_positive
from hfcore.data import Dataset
from hfcore.experiments.run import Run
from hfcore.experiments.trainers import HybridTrainer
from hfcore.minibatches import PhaseBatches
from hfcore.models.mlp import Autoencoder
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.schedules import Phase, Phases, Reciprocal

# FACES: the recipe is not given, MNIST's serves.
PHASES: dict[str, tuple[Phase, ...]] = {
    "curves": presets.hybrid2013_curves,
    "mnist": presets.hybrid2013_mnist,
    "faces": presets.hybrid2013_mnist,
}


def shortened(phases: Sequence[Phase], updates: int) -> list[Phase]:
    """The phases with their CG iterations cut by one factor to ``updates`` HF updates in all.

    Step sizes that fall with t fall faster by that factor, so that a phase goes through the same
    values. More updates than the recipe has leave it as it is.
    """
    check_positive(updates=updates)
    per_update = [int(phase.options["cg_max_iter"]) for phase in phases]  # type: ignore[arg-type]
    counts = [(p.cg_total or 0) / most for p, most in zip(phases, per_update, strict=True)]
    factor = min(1.0, updates / sum(counts))
    return [
        replace(
            phase,
            options={key: _faster(value, factor) for key, value in phase.options.items()},
            cg_total=max(1, round(factor * count)) * most,
        )
        for phase, count, most in zip(phases, counts, per_update, strict=True)
    ]


def _faster(value: Any, factor: float) -> Any:
    if not isinstance(value, Reciprocal):
        return value
    return Reciprocal(value.numerator * factor, round(value.shift * factor))


def hybrid_run(dataset: Dataset, updates: int, seed: int) -> Run:
    """A fresh run of the hybrid on one data set."""
    preset = presets.autoencoders[dataset.name]
    images = dataset.train
    model = Autoencoder(preset.encoder_sizes, device=images.device)
    init.sparse_(model, torch.Generator().manual_seed(seed), replacement=True)
    optimizer = HessianFree(model, preset.loss, **presets.hybrid2013)
    phases = Phases(optimizer, shortened(PHASES[dataset.name], updates))
    trainer = HybridTrainer(optimizer, phases, PhaseBatches(images, images, seed=seed))
    settings = {"method": "hybrid2013", "seed": seed, "hf_updates": updates}
    return Run(model, dataset, preset.loss, trainer, settings=settings)
