"""Next-step prediction: an iteration of 300 units, making its data, and the LSTM's gradient.

Balls are 225 pixels at T = 30, rolls 88 keys at T = 200, as in Martens & Sutskever (2011), section
4; the rolls here are random ones of the density of piano music, so that no file is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import hfcore as hf
from bench.interleave import Contestant, Effort, compare
from bench.test_hf_iteration import SLOW_ROUNDS, Iteration
from hfcore.training.gradients import backpropagation

H, B, BATCHES = 300, 200, 3
STEPS_BEFORE = 2
PIECES, FRAMES, DENSITY = 30, 2001, 0.04  # ten windows of 200 a piece
BLOCKS, CELLS, LSTM_CASES = 30, 10, 100
# Of a draw, which is short: as often as this, and the shortest counts.
DRAWS = 5


def balls() -> hf.problems.NextStep:
    return hf.problems.BouncingBalls()


def rolls() -> hf.problems.NextStep:
    task = hf.problems.PianoRolls()
    generator = torch.Generator().manual_seed(0)
    drawn = [(torch.rand(FRAMES, 88, generator=generator) < DENSITY).float() for _ in range(PIECES)]
    task.__dict__["pieces"] = hf.data.SequenceSet("random", drawn, drawn, drawn, "Random rolls.")
    return task


TASKS: dict[str, Callable[[], hf.problems.NextStep]] = {"balls": balls, "rolls": rolls}


@pytest.mark.parametrize("name", TASKS)
def test_iteration(benchmark: BenchmarkFixture, effort: Effort, name: str) -> None:
    problem, generator = TASKS[name](), np.random.default_rng(0)
    batches = [problem.batch(B, generator) for _ in range(BATCHES)]  # the first compiles
    making = BATCHES * min(_seconds(lambda: problem.batch(B, generator)) for _ in range(DRAWS))

    model = hf.RNN(problem.input_size, H, problem.output_size)
    ours = Iteration(batches, 0.03, None, model=model, loss=problem.loss)
    for _ in range(STEPS_BEFORE):
        ours()
        ours.start_here()
    ours.stats.clear()
    case = f"{name}-T{problem.length}-B{B}-H{H}-structural"
    contestant = Contestant("hfcore", ours, rounds=SLOW_ROUNDS)
    seconds = compare(benchmark, effort, contestant, [], group="Hessian-free iteration", case=case)
    if seconds:
        (row,) = benchmark.extra_info["rows"]
        summary = ours.summary()
        del summary["flops"]  # counted for the addition net
        row.update(summary)
        benchmark.extra_info["batch_making_share"] = making / seconds["hfcore"]


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


class LibraryLSTM(nn.Module):
    """``torch.nn.LSTM`` with as many cells and linear outputs, ``[T,B,k]``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, BLOCKS * CELLS)
        self.outputs = nn.Linear(BLOCKS * CELLS, size)

    def forward(self, x: Tensor) -> Tensor:
        s: Tensor = self.outputs(self.lstm(x)[0])
        return s


@pytest.mark.parametrize("name", TASKS)
def test_lstm_gradient(benchmark: BenchmarkFixture, effort: Effort, name: str) -> None:
    """As ``hf.train`` takes it, of the block-gated LSTM and of torch's own."""
    problem = TASKS[name]()
    batch = problem.batch(LSTM_CASES, np.random.default_rng(0))
    n = problem.input_size
    nets = {
        "hfcore": hf.BlockLSTM(n, n, blocks=BLOCKS, cells=CELLS),
        "torch.nn.LSTM": LibraryLSTM(n),
    }
    ours, theirs = (
        Contestant(name, lambda net=net: backpropagation(net, problem.loss, LSTM_CASES)(batch))
        for name, net in nets.items()
    )
    compare(
        benchmark,
        effort,
        ours,
        [theirs],
        group="LSTM gradient",
        case=f"{name}-B{LSTM_CASES}-T{problem.length}-{BLOCKS * CELLS}-cells",
    )
