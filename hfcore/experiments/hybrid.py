"""The hybrid of Sutskever et al. (2013), appendix A.6, on a budget of HF updates: column HF†."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

import hfcore as hf
from hfcore.experiments.run import Run
from hfcore.experiments.trainers import HybridTrainer

# FACES: the recipe is not given, MNIST's serves.
PHASES: dict[str, tuple[hf.schedules.Phase, ...]] = {
    "curves": hf.presets.hybrid2013_curves,
    "mnist": hf.presets.hybrid2013_mnist,
    "faces": hf.presets.hybrid2013_mnist,
}


def shortened(phases: Sequence[hf.schedules.Phase], updates: int) -> list[hf.schedules.Phase]:
    """The phases with their CG iterations cut by one factor to ``updates`` HF updates in all.

    Step sizes that fall with t fall faster by that factor, so that a phase goes through the same
    values. More updates than the recipe has leave it as it is.
    """
    if updates < 1:
        raise ValueError(f"updates: got {updates}, need at least 1")
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
    if not isinstance(value, hf.schedules.Reciprocal):
        return value
    return hf.schedules.Reciprocal(value.numerator * factor, round(value.shift * factor))


def hybrid_run(dataset: hf.data.Dataset, updates: int, seed: int) -> Run:
    """A fresh run of the hybrid on one data set."""
    preset = hf.presets.autoencoders[dataset.name]
    images = dataset.train
    model = hf.Autoencoder(preset.encoder_sizes, device=images.device)
    hf.init.sparse_(model, torch.Generator().manual_seed(seed), replacement=True)
    optimizer = hf.HessianFree(model, preset.loss, **hf.presets.hybrid2013)
    phases = hf.schedules.Phases(optimizer, shortened(PHASES[dataset.name], updates))
    trainer = HybridTrainer(
        optimizer, phases, hf.minibatches.PhaseBatches(images, images, seed=seed)
    )
    settings = {"method": "hybrid2013", "seed": seed, "hf_updates": updates}
    return Run(model, dataset, preset.loss, trainer, settings=settings)
