"""Making the batches of a Hessian-free step beside the step that consumes them, for every problem.

Ten batches of 1000 sequences, T = 50, an RNN of 100 units.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import hfcore as hf
from bench.interleave import Contestant, Effort, compare

T, B, H, BATCHES = 50, 1000, 100, 10
# The step that is timed starts here, with λ and the CG start of a run under way.
STEPS_BEFORE = 2
STEP = "the step that consumes them"


class Step:
    """One Hessian-free step from the same state at every call."""

    def __init__(self, problem: hf.problems.Problem, batches: list[hf.Batch]) -> None:
        self.batches = batches
        self.model = hf.RNN(problem.input_size, H, problem.output_size)
        hf.init.sparse_(self.model, torch.Generator().manual_seed(0))
        self.optimizer = hf.HessianFree(self.model, problem.loss, **hf.presets.rnn2011)
        for _ in range(STEPS_BEFORE):
            self.optimizer.step(batches)
        self.state = deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def __call__(self) -> None:
        model, optimizer = deepcopy(self.state)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.optimizer.step(self.batches)


@pytest.mark.parametrize("name", hf.problems.SEQUENCES)
def test_making_batches(benchmark: BenchmarkFixture, effort: Effort, name: str) -> None:
    problem, generator = hf.problems.create(name, length=T), np.random.default_rng(0)
    problem.batch(1, generator)  # compiles the generator's kernel

    def make() -> list[hf.Batch]:
        return [problem.batch(B, generator) for _ in range(BATCHES)]

    step = Step(problem, make())
    compare(
        benchmark,
        effort,
        Contestant("hfcore", make),
        [Contestant(STEP, step)],
        group="Making batches",
        case=f"{name}-T{T}-B{B}",
    )
