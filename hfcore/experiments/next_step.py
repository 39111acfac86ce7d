"""Next-step prediction as in Martens & Sutskever (2011), table 1: tasks, nets, one training.

1. RNN + HF: 300 tanh units, sparse start, λ₀ = 0.1 T, structural damping, as for their pathological
   problems. Where a task has a fixed set of sequences the gradient is over all of them and the
   curvature on a part, in turns; balls are drawn anew, 5 parts an iteration, curvature on the
   first. The paper states neither its batches nor its λ₀ for these tasks.
2. LSTM + GD: gradient descent with momentum 0.9 on batches of 100 sequences, the rate from a grid
   of decades 1e-1 to 1e-5: each has a run, and the one with the best validation error goes on. How
   the paper trained its LSTM is not stated.
3. The objective is the mean over sequences of the loss summed over steps and outputs. What counts
   is the test error at the iteration with the best validation error; the paper does not say whether
   it stopped early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.experiments.training import Line, Trained, with_training_seconds

MOMENTUM = 0.9
RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
HIDDEN, BLOCKS, CELLS = 300, 30, 10
CONSTANT_CASES = 1000  # films from which the mean one is taken

RNN_HF, LSTM, LIBRARY_LSTM = "rnn-hf", "lstm", "nn-lstm"
COLUMNS = {RNN_HF: "RNN + HF", LSTM: "LSTM + GD", LIBRARY_LSTM: "torch.nn.LSTM + GD"}


@dataclass(frozen=True)
class Task:
    """A row of the paper's table: its problem by options, and what is printed of it."""

    problem: type[hf.problems.NextStep]
    unit: str
    stands_in: str
    sign: int = 1
    """−1 where the paper lists the log-likelihood, of which ``errors`` are the negative."""

    def shown(self, error: float | None) -> float | None:
        """An error as the paper lists it."""
        return None if error is None else self.sign * error


TASKS = {
    "balls": Task(
        hf.problems.BouncingBalls,
        "cross-entropy less the entropy of the targets, nats a film",
        "Films are made anew by a simulator with the published constants of the generator.",
    ),
    "midi": Task(
        hf.problems.PianoRolls,
        "log-likelihood, nats a window",
        "The paper's MIDI data are not public: public piano-rolls stand in, with longer frames and "
        "88 keys instead of 128, so that the figures are of another size.",
        sign=-1,
    ),
    "speech": Task(
        hf.problems.SpokenDigits,
        "squared error of a frame of 39 features",
        "The paper has TIMIT, another front end, and a unit that it does not state.",
    ),
}


class LibraryLSTM(nn.Module):
    """``torch.nn.LSTM`` with linear outputs ``[T,B,k]``, forget gates that start at bias 1."""

    batch_dim = 1

    def __init__(self, size: int, hidden: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTM(size, hidden)
            self.outputs = nn.Linear(hidden, size)
        with torch.no_grad():
            self.lstm.get_parameter("bias_ih_l0")[hidden : 2 * hidden] = 1.0
            self.lstm.get_parameter("bias_hh_l0").zero_()

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        s: Tensor = self.outputs(states)
        return s


@dataclass(frozen=True)
class Sizes:
    """Of the nets and batches; the defaults are those of the module's notes."""

    hidden: int = HIDDEN
    blocks: int = BLOCKS
    cells: int = CELLS
    curvature: int = 1000
    """Sequences of a curvature batch, or all where there are fewer."""
    gradient: int = 5000
    """Films of a gradient; of a fixed set it is all sequences."""
    batch: int = 100
    """Sequences of an update of gradient descent, or all where there are fewer."""
    test: int = 1000
    """Sequences of the validation and of the test part, or all where there are fewer."""


@dataclass(frozen=True)
class Training:
    """A net on a task's problem with its optimiser; ``batches`` are keywords of ``hf.train``."""

    problem: hf.problems.NextStep
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Mapping[str, Any]
    sizes: Sizes
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        folder: Path,
        stop: hf.training.Limits,
        *,
        test_every: int = 1,
        resume: bool = False,
        report: Callable[[Line], None] = lambda line: None,
    ) -> Trained:
        """Train in the run folder ``folder`` until a limit is met; ``report`` sees every test.

        Of the lines those with a test are kept. Raises what :func:`hfcore.train` raises.
        """
        inputs, targets, _ = self.problem.part("validation", self.sizes.test)
        result = hf.train(
            self.model,
            self.problem,
            self.optimizer,
            **self.batches,
            stop=stop,
            validation=(inputs, targets),
            callbacks=[hf.training.BestModel(), Reported(report)],
            test_size=self.sizes.test,
            test_every=test_every,
            test_untrained=True,
            checkpoint_every=test_every,
            seed=self.seed,
            run_dir=folder,
            resume=resume,
            progress=False,
            notes=self.settings,
        )
        lines = hf.training.read_metrics(folder / "metrics.jsonl")
        tested = with_training_seconds(line for line in lines if measured(line))
        return Trained(result.reason, tested, best_line(tested)["iteration"])


class Reported(hf.Callback):
    """Hands every line with a test to a function."""

    reads_gradients = False

    def __init__(self, report: Callable[[Line], None]) -> None:
        self.report = report

    def on_step(self, state: hf.TrainState) -> None:
        if measured(state.metrics):
            self.report(state.metrics)


def measured(line: Line) -> bool:
    """Whether an iteration was tested, to a number."""
    error = line.get("validation_error")
    return isinstance(error, float | int) and math.isfinite(error)


def best_line(lines: Sequence[Line], up_to: float = math.inf) -> Line:
    """The one with the least validation error, among the iterations ``up_to`` that."""
    return min(
        (line for line in lines if line["iteration"] <= up_to),
        key=lambda line: line["validation_error"],
    )


# ---- the columns


def rnn_training(
    problem: hf.problems.NextStep, sizes: Sizes, seed: int, device: torch.device
) -> Training:
    """RNN + HF, from the beginning."""
    model = hf.RNN(problem.input_size, sizes.hidden, problem.output_size, dtype=torch.float32)
    hf.init.sparse_(model, torch.Generator().manual_seed(seed))
    model.to(device)
    optimizer = hf.HessianFree(model, problem.loss, **hf.presets.rnn2011)
    batches: dict[str, Any]
    if isinstance(problem, hf.problems.FiniteProblem):
        parts = max(1, problem.all_cases().inputs.shape[1] // sizes.curvature)
        batches = {"batches": hf.minibatches.FullGradient(curvature_batches=parts, seed=seed)}
    else:
        count = max(1, sizes.gradient // sizes.curvature)
        batches = {"gradient_batches": count, "batch_size": sizes.curvature}
    return Training(problem, model, optimizer, batches, sizes, seed, {"column": RNN_HF})


def lstm_training(
    problem: hf.problems.NextStep,
    column: str,
    rate: float,
    sizes: Sizes,
    seed: int,
    device: torch.device,
) -> Training:
    """An LSTM by gradient descent at one rate, from the beginning."""
    n = problem.input_size
    model: nn.Module
    if column == LSTM:
        start = torch.Generator().manual_seed(seed)
        model = hf.BlockLSTM(
            n, n, blocks=sizes.blocks, cells=sizes.cells, generator=start, dtype=torch.float32
        )
    else:
        model = LibraryLSTM(n, sizes.blocks * sizes.cells, seed)
    model.to(device)
    optimizer = hf.ClassicalMomentum(model.parameters(), lr=rate, momentum=MOMENTUM)
    size = sizes.batch
    if isinstance(problem, hf.problems.FiniteProblem):
        size = min(size, problem.all_cases().inputs.shape[1])
    settings = {"column": column, "rate": rate}
    return Training(problem, model, optimizer, {"batch_size": size}, sizes, seed, settings)


def constant_error(problem: hf.problems.NextStep, sizes: Sizes) -> float:
    """Test error of the best constant output: that of the mean training frame."""
    if isinstance(problem, hf.problems.FiniteProblem):
        targets = problem.all_cases().targets
    else:
        targets = problem.batch(CONSTANT_CASES, np.random.default_rng(0)).targets
    s = problem.loss.best_constant(targets.double().mean((0, 1)))
    batches = problem.test_set(sizes.test)
    errors = [problem.errors(s.expand_as(b.targets).contiguous(), b) for b in batches]
    return float(torch.cat(errors).mean())
