"""The autoencoder experiments of Martens (2010): which data, net, start and optimisers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import hfcore as hf
from hfcore.experiments.pace import autoencoder_parameters, gradients, hessian_free
from hfcore.experiments.training import Training
from hfcore.experiments.weight_penalty import WeightPenalty

HF, NCG = "hf", "ncg"

# torch's optimisers with the settings they start from here; a learning rate may be given instead.
FIRST_ORDER: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 1e-2}),
    "momentum": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
    "nag": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 1e-3}),
}
METHODS = (HF, NCG, *FIRST_ORDER)
BATCH_SIZE = 200  # of the first-order methods
EPOCHS, GAUSSIAN_EPOCHS = 50, 200  # of hf.pretrain, the second for the first layer of FACES
NCG_GRADIENTS = 9  # of a batch, about: three line searches of three gradients
NCG_BATCH_SIZE = 1000  # three line searches on each (Hinton & Salakhutdinov 2006)

# Of a method's name: from a pre-trained net, or from the sparse random start.
PRETRAINED, RANDOM = "pt-", "rand-"

HELD_OUT = 10  # one part in so many validates where the data has no validation part


@dataclass(frozen=True)
class Method:
    """``hf``, ``ncg`` or one of FIRST_ORDER, the last with another learning rate perhaps.

    ``pretrained``: it starts from a stack of Boltzmann machines, else from the sparse random start.
    """

    name: str
    lr: float | None = None
    pretrained: bool = False

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            known = ", ".join(map(repr, METHODS))
            raise ValueError(f"method: got {self.name!r}, need one of {known}")
        if self.lr is not None and (self.name not in FIRST_ORDER or not self.lr > 0):
            raise ValueError(f"method: got {self}, need a positive rate, and none for {self.name}")

    def __str__(self) -> str:
        start = PRETRAINED if self.pretrained else ""
        return start + (self.name if self.lr is None else f"{self.name}={self.lr:g}")

    @property
    def column(self) -> str:
        """As the columns of table 2 are called: PT+NCG, RAND+HF, PT+HF; others by their name."""
        if self.name not in (HF, NCG):
            return str(self)
        return f"{'PT' if self.pretrained else 'RAND'}+{self.name.upper()}"

    @classmethod
    def parse(cls, text: str) -> Method:
        """``name`` or ``name=rate``, perhaps behind ``pt-`` or ``rand-``."""
        name, _, rate = text.strip().partition("=")
        pretrained = name.startswith(PRETRAINED)
        name = name.removeprefix(PRETRAINED if pretrained else RANDOM)
        try:
            chosen = float(rate) if rate else None
        except ValueError as error:
            raise ValueError(
                f"method: got {text.strip()}, need a number as the rate (name or name=rate)"
            ) from error
        try:
            return cls(name.strip(), chosen, pretrained)
        except ValueError as error:
            raise ValueError(f"{error} (name or name=rate, behind pt- or rand-)") from error


@dataclass(frozen=True)
class Experiment:
    """One data set with its published net, and the seed of the initial weights.

    ``l2``: weight decay in place of the preset's. ``weights_alone``: it is of the connection
    weights, biases apart, and nonlinear CG has it as well (the starred runs of Martens 2010).
    Every method of one kind of start begins with the same weights.
    """

    dataset: hf.data.Dataset
    preset: hf.presets.AutoencoderPreset
    seed: int = 0
    l2: float | None = None
    weights_alone: bool = False

    @property
    def weight_decay(self) -> float:
        """l2 of ½·l2·‖θ‖²."""
        return float(self.preset.optimiser["l2"] if self.l2 is None else self.l2)

    @property
    def visible(self) -> str:
        """The units of the data in pre-training."""
        bernoulli = isinstance(self.preset.loss, hf.losses.LogisticCrossEntropy)
        return "bernoulli" if bernoulli else "gaussian"

    def net(self) -> hf.Autoencoder:
        """The published one, on the images' device."""
        return hf.Autoencoder(self.preset.encoder_sizes, device=self.dataset.train.device)

    def operations(self, method: Method) -> float:
        """Floating-point operations of an iteration, by the sizes; of a pass over the images, where
        the method takes batches."""
        parameters = autoencoder_parameters(self.preset.encoder_sizes)
        images = len(self.dataset.train)
        if method.name == HF:
            return hessian_free(parameters, images, images / self.preset.curvature_batches)
        return gradients(parameters, images, NCG_GRADIENTS if method.name == NCG else 1)

    def pretraining_operations(self, epochs: int | None) -> float:
        """Those of the stack of machines: a layer's update costs about a gradient of it."""
        layers = [a * b for a, b in pairwise(self.preset.encoder_sizes)]
        counts = [epochs or EPOCHS] * len(layers)
        if epochs is None and self.visible == "gaussian":
            counts[0] = GAUSSIAN_EPOCHS
        images = len(self.dataset.train)
        return sum(gradients(size, images, n) for size, n in zip(layers, counts, strict=True))

    def training(self, method: Method, start: hf.PretrainResult | None = None) -> Training:
        """By one method, from the beginning; ``start`` is that of a method that is pre-trained."""
        model = self.net()
        settings: dict[str, Any] = {"method": str(method), "seed": self.seed}
        if method.pretrained:
            if start is None or start.reason != "finished":
                raise ValueError(f"start: {method} needs a pre-training that has finished")
            hf.pretraining.unroll_(model, start.rbms)
            settings["start"] = torch.cat([rbm.theta[0] for rbm in start.rbms])
        else:
            generator = torch.Generator().manual_seed(self.seed)  # on the CPU: one seed, one net
            hf.init.sparse_(model, generator, replacement=True)
        return Training(
            model, self.dataset, self.preset.loss, *self._optimised(method, model), settings
        )

    def _optimised(
        self, method: Method, model: hf.Autoencoder
    ) -> tuple[torch.optim.Optimizer, hf.minibatches.Policy]:
        """The optimiser, and which images serve an iteration: all of them, one batch after the
        other where the method takes batches."""
        if method.name == HF:
            return self._hessian_free(model), self.preset.policy(self.seed)
        if method.name == NCG:
            decay = self.weight_decay if self.weights_alone else 0.0
            groups = [
                {"params": model.matrices(), "weight_decay": decay},
                {"params": model.biases()},
            ]
            made = hf.NonlinearCG(groups if decay else model)
            return made, self._passes(NCG_BATCH_SIZE)
        make, options = FIRST_ORDER[method.name]
        options = {**options, "weight_decay": self.weight_decay}
        if method.lr is not None:
            options["lr"] = method.lr
        return make(model.parameters(), **options), self._passes(BATCH_SIZE)

    def _hessian_free(self, model: hf.Autoencoder) -> hf.HessianFree:
        options = {**self.preset.optimiser, "l2": self.weight_decay}
        if not self.weights_alone:
            return hf.HessianFree(model, self.preset.loss, **options)
        objective = WeightPenalty(model, self.preset.loss, self.weight_decay)
        return hf.HessianFree(model, objective=objective, **options)

    def _passes(self, size: int) -> hf.minibatches.Epochs:
        return hf.minibatches.Epochs(size=min(size, len(self.dataset.train)), seed=self.seed)


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
