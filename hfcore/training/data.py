"""Random streams of a run: fresh training batches and a fixed test set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hfcore.batches import Batch
from hfcore.problems.base import TEST_BATCH, FixedTest, ZeroOne

if TYPE_CHECKING:
    from hfcore.problems import Problem


class TrainingData:
    """Batches for a model, from two independent streams spawned from one seed.

    A problem with a test set of its own is tested on that one, whatever the seed.
    """

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
        """``count`` fresh batches of ``size`` cases each."""
        return [self._draw(size, self._generator) for _ in range(count)]

    def test_set(self, size: int) -> list[Batch]:
        """The same ``size`` cases whenever it is called, in batches of at most 1000."""
        if isinstance(self._problem, FixedTest):
            return [self._placed(batch) for batch in self._problem.test_set(size, self._dtype)]
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
        return self._placed(self._problem.batch(size, generator, self._dtype))

    def _placed(self, batch: Batch) -> Batch:
        """On the device; a tensor that is both inputs and targets stays one."""
        if self._device.type == "cpu":
            return batch
        inputs = batch.inputs.to(self._device)
        targets = inputs if batch.targets is batch.inputs else batch.targets.to(self._device)
        return Batch(inputs, targets, None if batch.mask is None else batch.mask.to(self._device))


@torch.no_grad()
def measured_error(model: torch.nn.Module, problem: Problem, batches: list[Batch]) -> float:
    """Share of cases that ``problem.wrong`` calls wrong, else the mean of ``problem.errors``."""
    judge = problem.wrong if isinstance(problem, ZeroOne) else problem.errors
    was_training = model.training
    model.eval()
    total, cases = 0.0, 0
    for batch in batches:
        judged = judge(model(batch.inputs), batch)
        total += float(judged.sum(dtype=torch.float64))
        cases += judged.numel()
    model.train(was_training)
    return total / cases
