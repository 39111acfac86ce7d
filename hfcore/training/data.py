"""Random streams of a run: fresh training batches and a fixed test set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hfcore.batches import Batch

if TYPE_CHECKING:
    from hfcore.problems import Problem

TEST_BATCH = 1000


class TrainingData:
    """Fresh batches for a model, from two independent streams spawned from one seed."""

    def __init__(
        self, problem: Problem, seed: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._problem = problem
        self._dtype = dtype
        self._device = device
        training, test = np.random.SeedSequence(seed).spawn(2)
        self._generator = np.random.Generator(np.random.PCG64(training))
        self._test_seed = test

    def batches(self, count: int, size: int) -> list[Batch]:
        """``count`` fresh batches of ``size`` sequences each."""
        return [self._draw(size, self._generator) for _ in range(count)]

    def test_set(self, size: int) -> list[Batch]:
        """The same ``size`` sequences whenever it is called, in batches of at most 1000."""
        generator = np.random.Generator(np.random.PCG64(self._test_seed))
        sizes = [TEST_BATCH] * (size // TEST_BATCH)
        if size % TEST_BATCH:
            sizes.append(size % TEST_BATCH)
        return [self._draw(b, generator) for b in sizes]

    def state(self) -> dict[str, Any]:
        """State of the training stream, JSON-able."""
        return dict(self._generator.bit_generator.state)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue the training stream where :meth:`state` was taken."""
        self._generator.bit_generator.state = state

    def _draw(self, size: int, generator: np.random.Generator) -> Batch:
        batch = self._problem.batch(size, generator, self._dtype)
        if self._device.type == "cpu":
            return batch
        mask = None if batch.mask is None else batch.mask.to(self._device)
        return Batch(batch.inputs.to(self._device), batch.targets.to(self._device), mask)


@torch.no_grad()
def error_rate(model: torch.nn.Module, problem: Problem, batches: list[Batch]) -> float:
    """Share of sequences that ``problem.wrong`` calls wrong."""
    was_training = model.training
    model.eval()
    wrong = total = 0
    for batch in batches:
        verdict = problem.wrong(model(batch.inputs), batch)
        wrong += int(verdict.sum())
        total += verdict.numel()
    model.train(was_training)
    return wrong / total
