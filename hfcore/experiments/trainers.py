"""One iteration of training an autoencoder: a Hessian-free step, or a pass of a torch optimiser."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from hfcore.batches import Batch, Batches
from hfcore.losses import Loss
from hfcore.minibatches import PhaseBatches, SmallBatches
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.schedules import Phases


class Policy(Protocol):
    """Which cases play which part in step number ``step``."""

    def __call__(self, step: int) -> Batches: ...


class Trainer(Protocol):
    """An optimiser with its data. ``iterate(i)`` does iteration i, from 0, and reports it.

    The report holds at least ``seconds``. What changes besides model and optimiser is in the state.
    """

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def iterate(self, iteration: int) -> dict[str, Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Stateless:
    """A trainer whose model and optimiser hold everything that changes."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class HessianFreeTrainer(Stateless):
    """One HF step an iteration, on the batches of a policy."""

    def __init__(self, optimizer: HessianFree, policy: Policy) -> None:
        self.optimizer = optimizer
        self._policy = policy

    def iterate(self, iteration: int) -> dict[str, Any]:
        stats = asdict(self.optimizer.step(self._policy(iteration)))
        phases = stats.pop("seconds")
        return {**stats, "seconds": phases["total"], "phases": phases}


class HybridTrainer:
    """One HF step an iteration, in the phases of Sutskever et al. (2013), appendix A.6."""

    def __init__(self, optimizer: HessianFree, phases: Phases, batches: PhaseBatches) -> None:
        self.optimizer = optimizer
        self.phases = phases
        self._batches = batches

    def iterate(self, iteration: int) -> dict[str, Any]:
        phase = self.phases.present
        stats = self.optimizer.step(self._batches(phase, self.phases.t))
        self.phases.step(stats)
        line = asdict(stats)
        seconds = line.pop("seconds")
        return {**line, "phase": phase.name, "seconds": seconds["total"], "phases": seconds}

    def state_dict(self) -> dict[str, Any]:
        return self.phases.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.phases.load_state_dict(state)


class FirstOrderTrainer(Stateless):
    """One pass over the data an iteration, in small batches that are new in every pass.

    The loss has no L2: use the optimiser's weight decay.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self.optimizer = optimizer
        self._model = model
        self._loss = loss
        self._policy = SmallBatches(images, images, size=batch_size, seed=seed)

    def iterate(self, iteration: int) -> dict[str, Any]:
        started = time.perf_counter()
        updates = self._policy.per_pass
        total = 0.0
        for i in range(iteration * updates, (iteration + 1) * updates):
            batch = self._policy(i).gradient
            assert isinstance(batch, Batch)
            total += self._update(batch.inputs)
        return {
            "loss": total / updates,
            "updates": updates,
            "seconds": time.perf_counter() - started,
        }

    def _update(self, images: Tensor) -> float:
        self.optimizer.zero_grad()
        s = self._model(images)
        outputs, scale = s.detach(), 1.0 / len(images)
        s.backward(gradient=self._loss.gradient(outputs, images, scale=scale))
        self.optimizer.step()
        return self._loss.value(outputs, images, scale=scale)
