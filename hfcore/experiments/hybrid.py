"""The hybrid of Sutskever et al. (2013), appendix A.6, on a budget of HF updates: column HF†."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

import hfcore as hf
from hfcore.experiments.training import Training

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


def hybrid_training(dataset: hf.data.Dataset, updates: int, seed: int) -> Training:
    """The hybrid on one data set, from the beginning."""
    preset = hf.presets.autoencoders[dataset.name]
    model = hf.Autoencoder(preset.encoder_sizes, device=dataset.train.device)
    hf.init.sparse_(model, torch.Generator().manual_seed(seed), replacement=True)
    optimizer = hf.HessianFree(model, preset.loss, **hf.presets.hybrid2013)
    phases = hf.schedules.Phases(optimizer, shortened(PHASES[dataset.name], updates))
    # Rounded, the phases may end before the updates do: the last one goes on.
    batches = hf.training.Phased(phases, seed=seed, stop=False)
    settings = {"method": "hybrid2013", "seed": seed, "hf_updates": updates}
    return Training(model, dataset, preset.loss, optimizer, batches, settings)
