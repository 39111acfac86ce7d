"""A stack of machines at work: what it does in an epoch, and what a resume needs of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hfcore.arguments import called
from hfcore.bindings.checks import check_tensor
from hfcore.models.mlp import Autoencoder
from hfcore.pretraining.contrastive_divergence import ContrastiveDivergence
from hfcore.pretraining.rbm import RBM
from hfcore.pretraining.settings import PretrainingSettings
from hfcore.seeding import generator_of
from hfcore.training.interrupts import stop_on_signal
from hfcore.training.metrics_log import read_metrics
from hfcore.training.resumable import Counters, Resumable, Stateful
from hfcore.training.run_folder import RunFolder

Line = dict[str, Any]

# Cases on which free energies are measured after every epoch.
SAMPLE = 1000
# A weight beyond it has diverged: the data are of size 1, and a logistic unit saturates at 40.
LARGEST_WEIGHT = 1e3


def unroll_(autoencoder: Autoencoder, rbms: Sequence[RBM]) -> None:
    """Write a stack's weights into an autoencoder: W and b_h into the encoder, Wᵀ and b_v into the
    decoder, each layer ``[m,n]`` with parameters of its own.

    Raises ValueError for machines of other sizes.
    """
    depth = len(autoencoder.sizes) // 2
    wanted = list(pairwise(autoencoder.sizes[: depth + 1]))
    found = [rbm.shape for rbm in rbms]
    if found != wanted:
        raise ValueError(f"rbms: got sizes {found}, need {wanted} like the encoder")
    matrices, biases = autoencoder.matrices(), autoencoder.biases()
    with torch.no_grad():
        for l, rbm in enumerate(rbms):
            matrices[l].copy_(rbm.W)
            biases[l].copy_(rbm.b_h)
            matrices[-1 - l].copy_(rbm.W.T)
            biases[-1 - l].copy_(rbm.b_v)


@dataclass
class Progress(Counters):
    """Epochs of all layers, and seconds of their updates."""

    epoch: int = 0
    seconds: float = 0.0


class Stack:
    """The machines trained so far; the last one is at work. It is a part of a checkpoint.

    Args: the settings; the data ``images [N,n]`` and ``validation [N_v,n]``; ``report`` is called
    with each new line.
    """

    def __init__(
        self,
        settings: PretrainingSettings,
        images: Tensor,
        validation: Tensor | None,
        report: Callable[[Line], None] | None,
    ) -> None:
        self.settings = settings
        self.folder: RunFolder | None = None
        self.at = Progress()
        self.rbms: list[RBM] = []
        self.lines: list[Line] = []
        self._images, self._validation = images, validation  # those of the machine at work
        self._training: ContrastiveDivergence | None = None
        self._report = report

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        training = self._training
        return {
            "machines": [rbm.theta for rbm in self.rbms],
            "velocity": None if training is None else training.velocity,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        machines = state["machines"]
        for number, theta in enumerate(machines):
            training = self._begin(number)
            _restore("theta", training.rbm.theta, theta)
            if number + 1 == len(machines):
                _restore("velocity", training.velocity, state["velocity"])

    # ---- the loop

    def loop(self, checkpoint_every: int) -> str:
        """All epochs that are left; the reason why it ends."""
        parts: dict[str, Stateful] = {"progress": self.at, "stack": self}
        stored = Resumable(self.folder, parts, lambda: self.at.epoch, "this autoencoder")
        stored.begin_or_resume()
        if self.folder is not None and self.at.epoch:
            self.lines = read_metrics(self.folder.path / "metrics.jsonl")
        with stop_on_signal() as interrupted:
            while self.at.epoch < self.settings.epochs and not interrupted():
                self._epoch()
                if self.at.epoch % checkpoint_every == 0:
                    stored.save()
        stored.save()
        if self.at.epoch < self.settings.epochs:
            return "interrupted"
        for number in range(len(self.rbms), len(self.settings.layers)):  # of no epochs
            self._begin(number)
        return "finished"

    def _epoch(self) -> None:
        """One epoch of the machine at work, and its line."""
        number, epoch = self.settings.at(self.at.epoch)
        layer, momentum = self.settings.layers[number], self.settings.momentum_at(epoch)
        started = time.perf_counter()
        training = self._training
        while training is None or len(self.rbms) <= number:
            training = self._begin(len(self.rbms))
        error = training.epoch(
            self._images,
            learning_rate=layer.learning_rate,
            momentum=momentum,
            weight_cost=self.settings.weight_cost,
            generator=self._generator(number, epoch + 1, self._images.device),
        )
        took = time.perf_counter() - started
        largest = float(training.rbm.theta.abs().max())
        if not largest <= LARGEST_WEIGHT:  # NaN is not either
            raise ValueError(
                f"learning_rate: got {layer.learning_rate:g} for layer {number + 1} "
                f"({layer.visible}-{layer.hidden}), whose weights diverged in epoch {epoch + 1} "
                f"(the largest is {largest:.3g}); need a smaller one"
            )
        self.at.epoch += 1
        self.at.seconds += took
        self._log(
            {
                "iteration": self.at.epoch,
                "layer": number + 1,
                "layer_epoch": epoch + 1,
                "learning_rate": layer.learning_rate,
                "momentum": momentum,
                "reconstruction_error": error,
                **self._free_energies(training.rbm),
                "largest_weight": largest,
                "seconds": took,
                "training_seconds": self.at.seconds,
            }
        )

    def _begin(self, number: int) -> ContrastiveDivergence:
        """The machine of layer ``number``, on what the one below makes of its data."""
        if number > 0:
            below = self.rbms[number - 1]
            self._images = below.hidden_mean(self._images)
            if self._validation is not None:
                self._validation = below.hidden_mean(self._validation)
        layer, like = self.settings.layers[number], self._images
        rbm = RBM(
            layer.visible,
            layer.hidden,
            visible_units=layer.visible_units,
            hidden_units=layer.hidden_units,
            scale=self.settings.scale,
            dtype=like.dtype,
            device=like.device,
            generator=self._generator(number, 0, torch.device("cpu")),
        )
        self.rbms.append(rbm)
        self._training = ContrastiveDivergence(rbm, min(self.settings.batch_size, len(like)))
        return self._training

    def _generator(self, layer: int, epoch: int, device: torch.device) -> torch.Generator:
        """Of one epoch of a layer, so that a resume needs no state; epoch 0: of the weights."""
        return generator_of(self.settings.seed, layer, epoch, device=device)

    def _free_energies(self, rbm: RBM) -> dict[str, float]:
        found = {"free_energy": float(rbm.free_energy(self._images[:SAMPLE]).mean())}
        if self._validation is not None:
            energies = rbm.free_energy(self._validation[:SAMPLE])
            found["validation_free_energy"] = float(energies.mean())
        return found

    def _log(self, line: Line) -> None:
        self.lines.append(line)
        if self.folder is not None:
            self.folder.log(line)
        if self._report is not None:
            called("report", self._report, line)


def _restore(name: str, own: Tensor, value: Tensor) -> None:
    check_tensor(name, value, list(own.shape), dtype=own.dtype)
    own.copy_(value)
