"""Random streams of a run on a problem: fresh training batches and a fixed test set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hfcore.batches import Batch
from hfcore.problems.base import TEST_BATCH, FixedTest, drawn

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
            fixed = self._problem.test_set(size, self._dtype)
            return [placed(batch, self._device) for batch in fixed]
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
        return placed(drawn(self._problem.batch(size, generator, self._dtype)), self._device)


def placed(batch: Batch, device: torch.device) -> Batch:
    """On the device; a tensor that is both inputs and targets stays one."""
    if device.type == "cpu" and all(
        isinstance(t, Tensor) and t.device == device for t in batch[:2]
    ):
        return batch

    def moved(value: Any) -> Any:
        return tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, value)

    inputs = moved(batch.inputs)
    targets = inputs if batch.targets is batch.inputs else moved(batch.targets)
    return Batch(inputs, targets, moved(batch.mask))
