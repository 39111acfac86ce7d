"""What became of a run, judged by its tests: untested, plateau, collapse, escape, solved, diverged.

The yardstick is the best constant output: the mean target (squared error), the class frequencies
(softmax), the mean of every output (logistic), measured on the test set itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.losses import Loss
from hfcore.problems import Problem

Outcome = Literal["diverged", "solved", "escaped", "collapsed", "plateau", "untested"]
"""How a run of a sweep ended. It is solved below the share of errors that was asked for, escaped
below half of the error of the best constant answer, collapsed where it was clearly better than that
answer and no longer is, on the plateau where it never was, and untested before its first test."""

# A run has escaped when it makes less than this share of the constant output's error ...
ESCAPED = 0.5
# ... and collapsed when its loss is back at the constant output's, after it was clearly below.
COLLAPSED, BELOW = 0.995, 0.98


@dataclass(frozen=True)
class Test:
    """One test of one run: losses, and the error that the paper's tables count."""

    update: int
    train_loss: float
    """Mean over the updates since the test before."""
    test_loss: float
    error: float
    """Mean of ``problem.errors``: zero-one errors, wrong steps or squared pixel errors."""
    wrong: float
    """Share of wrong cases; NaN where a problem does not call cases wrong."""

    __test__: ClassVar[bool] = False  # pytest would collect a class of this name


@dataclass(frozen=True)
class Constant:
    """Loss and error of the best constant output."""

    loss: float
    error: float


def outcome(
    tests: Sequence[Test], constant: Constant, *, diverged: bool, solved_below: float
) -> Outcome:
    """What became of a run with these tests.

    ``"solved"``: fewer than ``solved_below`` of the cases are wrong at the end. ``"escaped"``:
    the error is less than half of the constant output's. ``"collapsed"``: the loss has been below
    98 % of the constant output's and is back above 99.5 %. ``"untested"``: stopped before its
    first test. Anything else is a ``"plateau"``.
    """
    if diverged or not tests:
        return "diverged" if diverged else "untested"
    last = tests[-1]
    if last.wrong < solved_below:
        return "solved"
    if last.error < ESCAPED * constant.error:
        return "escaped"
    best = min(test.test_loss for test in tests)
    if last.test_loss > COLLAPSED * constant.loss and best < BELOW * constant.loss:
        return "collapsed"
    return "plateau"


def escape(tests: Sequence[Test], constant: Constant) -> int | None:
    """Updates until the first test with less than half of the constant output's error."""
    return next((t.update for t in tests if t.error < ESCAPED * constant.error), None)


def constant_output(problem: Problem, batches: Sequence[Batch]) -> Constant:
    """Loss and error of the best constant output on ``batches``."""
    s = _best_constant(problem.loss, batches, problem.output_size)
    loss = error = 0.0
    cases = sum(case_count(batch) for batch in batches)
    for batch in batches:
        outputs = s.to(batch.inputs.dtype).expand(*batch.inputs.shape[:-1], -1).contiguous()
        loss += problem.loss.value(outputs, batch.targets, batch.mask, scale=1.0 / cases)
        error += float(problem.errors(outputs, batch).sum(dtype=torch.float64)) / cases
    return Constant(loss, error)


def case_count(batch: Batch) -> int:
    """Sequences, or rows without a time axis."""
    return batch.inputs.shape[-2]


def _best_constant(loss: Loss, batches: Sequence[Batch], outputs: int) -> Tensor:
    """s ``[k]`` in float64."""
    device = batches[0].inputs.device
    total = torch.zeros(outputs, dtype=torch.float64, device=device)
    count = 0
    for batch in batches:
        targets, cases = loss.mean_target(batch.targets, batch.mask, outputs)
        total += targets
        count += cases
    return loss.best_constant(total / count)
