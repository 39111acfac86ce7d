"""One run of ``train``: iterations, tests, the log and the callbacks, resumable to the bit."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hfcore.batches import Batches
from hfcore.distributed.ranks import Ranks
from hfcore.distributed.torchrun import kills_soon
from hfcore.minibatches import DrawnBatches
from hfcore.step_interrupt import StepInterrupted
from hfcore.training import setup, several
from hfcore.training.callbacks import Callback, TrainState
from hfcore.training.config import Settings
from hfcore.training.counters import Progress, in_minibatches
from hfcore.training.feeds import Feed
from hfcore.training.hooks import Hooks
from hfcore.training.interrupts import stop_on_signal
from hfcore.training.result import TrainResult
from hfcore.training.resumable import RandomStates, Resumable
from hfcore.training.run_folder import RunFolder
from hfcore.training.steps import Iteration, Stepper, combined, device_of

logger = logging.getLogger("hfcore")

# Hessian-free steps in a row that report no way down end a run: a single one may be of its batch.
CONVERGED_STEPS = 10


class Run:
    """The state of one training run and the moves on it."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        data: setup.Data,
        stepper: Stepper,
        feed: Feed,
        measured: setup.Measured,
        settings: Settings,
        hooks: Sequence[Callback],
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.model = model
        self.optimizer = optimizer
        self.data = data
        self.stepper = stepper
        self.feed = feed
        self.measured = measured
        self.settings = settings
        self.hooks = Hooks(hooks)
        self.path: Path | None = None
        self.folder: RunFolder | None = None  # of the first rank
        self.at = Progress()
        self.metrics: dict[str, Any] = {}
        self._iteration_began = 0.0
        self._iteration_took: float | None = None

    def begin(self, test_untrained: bool) -> None:
        """Begin, or take up the last checkpoint."""
        several.send_model(self.ranks, self.model)
        self.stored = Resumable(
            self.folder,
            {
                "progress": self.at,
                "model": self.model,
                "optimizer": self.optimizer,
                "training_data": self.feed,
                "random": RandomStates(device_of(self.model)),
                "callbacks": self.hooks.states,
            },
            lambda: self.at.iteration,
            "this model and optimiser",
            ranks=self.ranks,
            stores=self.path is not None,
        )
        self.stored.begin_or_resume()
        if test_untrained and self.at.iteration == 0:
            self._test_untrained()
        elif self.folder is not None and self.folder.lines < self.at.iteration:
            logger.warning(
                "%s: the log has %d lines for %d iterations, the others are lost",
                self.folder.path,
                self.folder.lines,
                self.at.iteration,
            )

    # ---- the loop

    def loop(self) -> str:
        """Iterate until there is a reason to stop."""
        session = time.perf_counter() - self.at.seconds
        closed = contextlib.closing(self.feed)
        stopping = stop_on_signal(self._seconds_left, soon=kills_soon())
        with stopping as interrupted, closed, self.hooks.running(self._state) as asked:
            while (reason := self._reason_to_stop(interrupted, asked)) is None:
                asked = self._iterate(session)
                due = self.at.iteration % self.settings.checkpoint_every == 0
                # Of several ranks the first one's reasons count, and all store together.
                if due or (asked is not None and self.ranks.size == 1):
                    self.stored.save()
            if reason not in ("interrupted", "diverged") and not self.at.is_tested:
                self._test()
            self.at.seconds = time.perf_counter() - session
            self.stored.save()
        return reason

    def result(self, reason: str) -> TrainResult:
        """Draw the plots and sum up."""
        if self.at.tested_at < 0:
            self._test()
        folder = self.folder
        result = TrainResult(
            solved=self._solved(),
            reason=reason,
            iterations=self.at.iteration,
            minibatches=in_minibatches(self.at.sequences),
            objective_evaluations=in_minibatches(self.at.evaluated),
            seconds=self.at.seconds,
            test_error=_or_nan(self.at.test_error),
            validation_error=self.at.validation_error,
            run_dir=self.path,
            plots=() if folder is None else folder.draw(solved_below=self._solved_below()),
        )
        if folder is not None:
            folder.finish(result.to_json())
        return result

    def _solved_below(self) -> float | None:
        return self.settings.solved_below if self.measured.shares else None

    def _solved(self) -> bool:
        below, error = self._solved_below(), self.at.test_error
        return below is not None and error is not None and error < below

    def _reason_to_stop(self, interrupted: Callable[[], bool], asked: str | None) -> str | None:
        reason = self._own_reason(interrupted, asked)
        return several.agreed_reason(self.ranks, reason, interrupted)

    def _own_reason(self, interrupted: Callable[[], bool], asked: str | None) -> str | None:
        if self.at.diverged:
            return "diverged"
        if self._solved():
            return "solved"
        if self.at.converged >= CONVERGED_STEPS:
            return "converged"
        spent = in_minibatches(self.at.sequences)
        limits = self.settings.limits
        if (limit := limits.reached(self.at.iteration, spent, self.at.step_seconds)) is not None:
            return limit
        return asked or ("interrupted" if interrupted() else None)

    def _iterate(self, session: float) -> str | None:
        """One iteration with its test, log line and callbacks; the reason of a callback to stop."""
        started = self._iteration_began = time.perf_counter()
        before = self._before() if self.stepper.interruptible else {}
        work = self.feed(self.at.iteration)
        drawn = time.perf_counter()
        rows = [work] if isinstance(work, Batches) else work
        if before and len(rows) > 1:  # a later step of the row may be left
            before |= copy.deepcopy(self.stored.states("model", "optimizer"))
        steps = []
        try:
            whole = self.stepper.at_once(rows) if isinstance(rows, DrawnBatches) else None
            if whole is not None:
                steps, rows = [whole], []
            for row in rows:  # no comprehension: that is a frame more above every product
                steps.append(self.stepper.step(row))
        except StepInterrupted:
            self.at.seconds = time.perf_counter() - session
            self._back(before)
            return "interrupted"
        done = combined(steps)
        stepped = time.perf_counter()
        self.at.add(done, stepped - started)
        if self.at.iteration % self.settings.test_every == 0:
            self._test()
        self.at.seconds = time.perf_counter() - session
        seconds = {"data": drawn - started, "test": time.perf_counter() - stepped}
        self._log(self._line(done, seconds))
        self._iteration_took = time.perf_counter() - started
        return self.hooks.after_step(self._state())

    def _seconds_left(self) -> float | None:
        """How long the running iteration takes yet if it takes as long as the last one."""
        if self._iteration_took is None:
            return None
        return max(0.0, self._iteration_began + self._iteration_took - time.perf_counter())

    def _before(self) -> dict[str, Any]:
        """What an iteration changes even if its step does not come to its end."""
        return self.stored.states("training_data", "random")

    def _back(self, before: dict[str, Any]) -> None:
        """The checkpoint, and the model, as before an iteration that was left."""
        for name in before.keys() & {"model", "optimizer"}:
            self.stored.parts[name].load_state_dict(before[name])
        self.stored.save(before)

    def _line(self, done: Iteration, seconds: dict[str, float]) -> dict[str, Any]:
        stats = {key: value for key, value in done.stats.items() if key != "seconds"}
        if "cg_iterations" in stats:
            stats["cg_total"] = self.at.cg_iterations
        return {**self._totals(), **stats, "seconds": {**done.stats["seconds"], **seconds}}

    def _totals(self) -> dict[str, Any]:
        validated = self.data.validation is not None
        return self.at.line(validated=validated, measured=self.measured.columns)

    def _log(self, line: dict[str, Any]) -> None:
        """Complete the line with what callbacks measure, and write it."""
        self.metrics = line
        line = self.hooks.measure(self._state())
        if self.folder is None:
            return
        if self.at.iteration or not self.folder.lines:  # the untrained model's line may be there
            self.folder.log(line)

    def _test_untrained(self) -> None:
        self._test()
        self._log(self._totals())

    def _test(self) -> None:
        self.at.measure(self.measured())

    def _state(self) -> TrainState:
        return TrainState(
            model=self.model,
            problem=self.data.problem,
            optimizer=self.optimizer,
            iteration=self.at.iteration,
            minibatches=in_minibatches(self.at.sequences),
            objective_evaluations=in_minibatches(self.at.evaluated),
            limits=self.settings.limits,
            test_error=self.at.test_error,
            training_seconds=self.at.seconds,
            run_dir=self.path,
            metrics=self.metrics,
            name=self.data.train.name,
            validation_error=self.at.validation_error,
            step_seconds=self.at.step_seconds,
            shares=self.measured.shares,
        )


def _or_nan(error: float | None) -> float:
    return math.nan if error is None else error
