"""The runs of the ablations, each in a run folder of its own, in this process or another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import hfcore as hf
from hfcore.experiments.ablation import (
    CURVES,
    GRADIENT_BATCHES,
    IMAGES_AN_UPDATE,
    MOMENTUM,
    SEQUENCES_AN_UPDATE,
    Outcome,
    Settings,
    Variant,
    run,
    run_momentum,
)
from hfcore.experiments.experiment import load, on_device, without_validation
from hfcore.experiments.pace import (
    CURVES_IMAGES,
    autoencoder_parameters,
    gradients,
    hessian_free,
    recurrent_parameters,
)
from hfcore.experiments.table5 import Rung
from hfcore.experiments.training import Line


class Images:
    """CURVES as all runs of a process take them; read when the first one does."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self._dataset: hf.data.Dataset | None = None
        self.facts = ""

    @property
    def dataset(self) -> hf.data.Dataset:
        """For Hessian-free."""
        if self._dataset is None:
            whole = on_device(without_validation(load(CURVES)), self._device)
            self._dataset = replace(whole, train=whole.train[: self._settings.images])
            self.facts = whole.facts
        return self._dataset

    @property
    def problem(self) -> hf.problems.Reconstruction:
        """For momentum."""
        problem = hf.problems.Reconstruction(CURVES, images=self._settings.images)
        self.facts = self.facts or load(CURVES).facts
        return problem


@dataclass(frozen=True)
class Job:
    """One run with what it takes to do it."""

    ablation: str
    problem: str
    variant: Variant
    settings: Settings
    folder: Path
    test_every: int
    device: str = "cpu"
    threads: int | None = None

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def operations(self) -> float:
        """Floating-point operations, by its sizes."""
        settings = self.settings
        if self.problem == CURVES:
            preset = hf.presets.autoencoders[CURVES]
            parameters = autoencoder_parameters(preset.encoder_sizes)
            rows, batches = settings.images or CURVES_IMAGES, preset.curvature_batches
            curvature, update = rows / batches, min(IMAGES_AN_UPDATE, rows)
        else:
            rung = Rung.parse(self.problem)
            parameters = recurrent_parameters(rung.problem(), settings.hidden)
            curvature = rung.length * settings.batch_size
            rows, update = GRADIENT_BATCHES * curvature, rung.length * SEQUENCES_AN_UPDATE
        if self.ablation in MOMENTUM:
            return gradients(parameters, update, settings.updates)
        return settings.iterations * hessian_free(parameters, rows, curvature)

    def run(self) -> bool:
        """Begun or continued; False if interrupted. Raises what :func:`hfcore.train` raises."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        images = Images(self.settings, torch.device(self.device))
        return self.outcome(images, resume=True).reason != "interrupted"

    def outcome(
        self, images: Images, *, resume: bool, report: Callable[[Line], None] | None = None
    ) -> Outcome:
        """The run, begun or with ``resume`` continued; ``report`` is told of steps, None for none.

        Raises what :func:`hfcore.train` and :func:`hfcore.sweep` raise.
        """
        on_curves = self.problem == CURVES
        if self.ablation in MOMENTUM:
            task = images.problem if on_curves else Rung.parse(self.problem).problem()
            return run_momentum(
                self.variant,
                task,
                self.settings,
                self.folder,
                resume=resume,
                test_every=self.test_every,
                device=torch.device(self.device),
                progress=report is not None,
            )
        return run(
            self.variant,
            self.problem,
            self.settings,
            images.dataset if on_curves else None,
            self.folder,
            device=torch.device(self.device),
            resume=resume,
            report=report or (lambda line: None),
        )
