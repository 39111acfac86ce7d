"""The autoencoder experiments of Martens (2010): which data, net, start and optimisers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import hfcore as hf
from hfcore.experiments.training import Training

HF = "hf"

# torch's optimisers with the settings they start from here; a learning rate may be given instead.
FIRST_ORDER: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 1e-2}),
    "momentum": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
    "nag": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 1e-3}),
}
METHODS = (HF, *FIRST_ORDER)
BATCH_SIZE = 200  # of the first-order methods

HELD_OUT = 10  # one part in so many validates where the data has no validation part


@dataclass(frozen=True)
class Method:
    """``hf`` or one of FIRST_ORDER, the latter with another learning rate perhaps."""

    name: str
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            known = ", ".join(map(repr, METHODS))
            raise ValueError(f"method: got {self.name!r}, need one of {known}")
        if self.lr is not None and (self.name == HF or not self.lr > 0):
            raise ValueError(f"method: got {self}, need a positive rate, and none for {HF}")

    def __str__(self) -> str:
        return self.name if self.lr is None else f"{self.name}={self.lr:g}"

    @classmethod
    def parse(cls, text: str) -> Method:
        """``name`` or ``name=rate``."""
        name, _, rate = text.partition("=")
        try:
            return cls(name.strip(), float(rate) if rate else None)
        except ValueError as error:
            raise ValueError(f"{error} (name or name=learning rate)") from error


@dataclass(frozen=True)
class Experiment:
    """One data set with its published net, and the seed of the initial weights.

    ``l2``: weight decay in place of the preset's. Every method starts from the same weights.
    """

    dataset: hf.data.Dataset
    preset: hf.presets.AutoencoderPreset
    seed: int = 0
    l2: float | None = None

    @property
    def weight_decay(self) -> float:
        """l2 of ½·l2·‖θ‖², biases included."""
        return float(self.preset.optimiser["l2"] if self.l2 is None else self.l2)

    def training(self, method: Method) -> Training:
        """By one method, from the beginning."""
        images, loss = self.dataset.train, self.preset.loss
        model = hf.Autoencoder(self.preset.encoder_sizes, device=images.device)
        start = torch.Generator().manual_seed(self.seed)  # on the CPU: one seed, one net
        hf.init.sparse_(model, start, replacement=True)
        settings = {"method": str(method), "seed": self.seed}
        return Training(model, self.dataset, loss, *self._optimised(method, model), settings)

    def _optimised(
        self, method: Method, model: hf.Autoencoder
    ) -> tuple[torch.optim.Optimizer, hf.minibatches.Policy]:
        """The optimiser, and which images serve an iteration: of a first-order method all of them
        in one pass."""
        if method.name == HF:
            options = {**self.preset.optimiser, "l2": self.weight_decay}
            count = self.preset.curvature_batches
            return (
                hf.HessianFree(model, self.preset.loss, **options),
                hf.minibatches.FullGradient(curvature_batches=count, seed=self.seed),
            )
        make, options = FIRST_ORDER[method.name]
        options = {**options, "weight_decay": self.weight_decay}
        if method.lr is not None:
            options["lr"] = method.lr
        size = min(BATCH_SIZE, len(self.dataset.train))
        return (
            make(model.parameters(), **options),
            hf.minibatches.Epochs(size=size, seed=self.seed),
        )


def load(name: str, folder: Path | None = None) -> hf.data.Dataset:
    """The data set of that name as published in size.

    Raises :class:`hfcore.data.DataFileError` saying what to put where.
    """
    if name == "curves":
        return hf.data.curves()
    return hf.data.mnist(folder) if name == "mnist" else hf.data.faces(folder)


def with_validation(dataset: hf.data.Dataset) -> hf.data.Dataset:
    """The same with the last tenth of the training part held out, if there is no validation."""
    if dataset.validation is not None:
        return dataset
    kept = len(dataset.train) - max(1, len(dataset.train) // HELD_OUT)
    return replace(dataset, train=dataset.train[:kept], validation=dataset.train[kept:])


def without_validation(dataset: hf.data.Dataset) -> hf.data.Dataset:
    """The same without a validation part, which nothing would look at."""
    return replace(dataset, validation=None)


def on_device(dataset: hf.data.Dataset, device: torch.device) -> hf.data.Dataset:
    """The same with every part on ``device``."""
    validation = None if dataset.validation is None else dataset.validation.to(device)
    return replace(
        dataset,
        train=dataset.train.to(device),
        test=dataset.test.to(device),
        validation=validation,
    )
