"""``train``: one loop for Hessian-free and first-order optimisers, resumable to the bit."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from hfcore.problems.base import ZeroOne
from hfcore.training.callbacks import Callback, TrainState
from hfcore.training.config import Settings, default_every, run_config
from hfcore.training.data import TrainingData, measured_error
from hfcore.training.errors import CheckpointError
from hfcore.training.interrupts import stop_on_signal
from hfcore.training.progress import ProgressDisplay
from hfcore.training.run_folder import RunFolder
from hfcore.training.steps import COST_UNIT, Iteration, make_stepper

if TYPE_CHECKING:
    from hfcore.problems import Problem

Reason = Literal["solved", "budget", "callback", "interrupted", "diverged"]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. A resumed run counts from its very beginning."""

    solved: bool
    reason: Reason
    """Why it stopped: ``"solved"``, ``"budget"`` spent, a ``"callback"`` asked, ``"interrupted"``
    by SIGINT or SIGTERM, ``"diverged"`` to a loss that is not finite."""
    iterations: int
    minibatches: float
    """Gradients and curvature products per 1000 sequences (the paper's cost)."""
    objective_evaluations: float
    """Objective evaluations per 1000 sequences, not contained in ``minibatches``."""
    seconds: float
    """Wall-clock time of the training loop: data, steps, tests and checkpoints."""
    test_error: float
    """Share of wrong test cases; for a problem without right and wrong, its mean error."""
    run_dir: Path | None
    plots: tuple[Path, ...]


@dataclass
class Progress:
    """Counters of a run; part of every checkpoint."""

    iteration: int = 0
    sequences: int = 0
    evaluated: int = 0
    seconds: float = 0.0
    test_error: float | None = None
    tested_at: int = 0
    diverged: bool = False


def train(
    model: torch.nn.Module,
    problem: Problem,
    optimizer: torch.optim.Optimizer,
    *,
    minibatches: float = 50_000,
    batch_size: int = 1000,
    gradient_batches: int = 10,
    test_size: int = 10_000,
    solved_below: float = 0.01,
    test_every: int | None = None,
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    notes: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train ``model`` on ``problem`` until it is solved or the budget is spent.

    With :class:`hfcore.HessianFree` an iteration is one step on ``gradient_batches`` fresh
    batches; with any other torch optimiser it is one update on one fresh batch. Work is counted
    in minibatches of 1000 sequences, one for each gradient or curvature product over them
    (Martens & Sutskever 2011, figure 3); objective evaluations are counted apart.

    Args:
        model: maps inputs ``[T,B,n]`` to pre-nonlinearity outputs ``[T,B,k]``; an hf.MLP, for a
            problem whose batches are ``[B,n]``, to ``[B,k]``.
        minibatches: budget; the step that crosses it is the last one.
        batch_size: sequences of a batch.
        gradient_batches: batches of a Hessian-free step.
        test_size: cases of the fixed test set, drawn in batches of 1000 where the problem has no
            test set of its own.
        solved_below: the problem is solved when the share of wrong test cases is below this;
            without meaning for a problem that calls no case wrong.
        test_every, checkpoint_every: in iterations; by default 1 for Hessian-free, 100 otherwise.
        seed: of the training and the test data (two independent streams).
        run_dir: folder for config, metrics, TensorBoard events, plots and checkpoints; None
            writes nothing.
        resume: continue the run in ``run_dir`` from its last checkpoint, bit for bit. The
            arguments must be those it was begun with, apart from ``minibatches``,
            ``solved_below``, ``test_every``, ``checkpoint_every``, ``callbacks``, ``progress``.
        progress: show progress on stderr.
        notes: further settings to keep in config.json; a resume compares them too.

    SIGINT or SIGTERM ends training after the current step with a checkpoint; a second one acts
    at once. Raises ValueError for bad arguments, :class:`RunFolderError` for a folder that
    cannot be used or written, :class:`CheckpointError` if no checkpoint is good, and
    :class:`ConfigMismatchError` if the folder belongs to another config.
    """
    every = default_every(optimizer)
    settings = Settings(
        minibatches=minibatches,
        batch_size=batch_size,
        gradient_batches=gradient_batches,
        test_size=test_size,
        solved_below=solved_below,
        test_every=every if test_every is None else test_every,
        checkpoint_every=every if checkpoint_every is None else checkpoint_every,
        seed=seed,
    )
    if resume and run_dir is None:
        raise ValueError("resume: got True without run_dir, need the run folder to resume")
    hooks = [*callbacks, ProgressDisplay()] if progress else [*callbacks]
    run = _Run(model, problem, optimizer, settings, hooks)
    if run_dir is None:
        return run.result(run.loop())
    config = run_config(model, problem, optimizer, settings, notes or {})
    opened = RunFolder.resume if resume else RunFolder.create
    with opened(Path(run_dir), config) as run.folder:
        run.begin_or_resume()
        return run.result(run.loop())


class _Run:
    """The state of one training run and the moves on it."""

    def __init__(
        self,
        model: torch.nn.Module,
        problem: Problem,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        hooks: Sequence[Callback],
    ) -> None:
        first = next(model.parameters(), None)
        if first is None:
            raise ValueError("model: has no parameters, nothing to train")
        self.model = model
        self.device = first.device
        self.problem = problem
        self.optimizer = optimizer
        self.settings = settings
        self.hooks = hooks
        self.solvable = isinstance(problem, ZeroOne)
        self.folder: RunFolder | None = None
        self.at = Progress()
        self.metrics: dict[str, Any] = {}
        self.stepper = make_stepper(
            model,
            problem,
            optimizer,
            gradient_batches=settings.gradient_batches,
            batch_size=settings.batch_size,
            gradients=any(hook.reads_gradients for hook in hooks),
        )
        self.data = TrainingData(problem, settings.seed, first.dtype, self.stepper.device)
        tests = TrainingData(problem, settings.seed, first.dtype, first.device)
        self.test_set = tests.test_set(settings.test_size)
        self._stored_at = 0

    # ---- the loop

    def loop(self) -> Reason:
        """Iterate until there is a reason to stop."""
        session = time.perf_counter() - self.at.seconds
        with stop_on_signal() as interrupted, self._hooked():
            while (reason := self._reason_to_stop(interrupted)) is None:
                stop = self._iterate(session)
                if stop or self.at.iteration % self.settings.checkpoint_every == 0:
                    self._checkpoint()
                if stop and self._reason_to_stop(lambda: False) is None:
                    reason = "callback"
                    break
            if reason not in ("interrupted", "diverged") and self._untested():
                self._test()
            self.at.seconds = time.perf_counter() - session
            if self._stored_at != self.at.iteration:
                self._checkpoint()
        return reason

    def result(self, reason: Reason) -> TrainResult:
        """Draw the plots and sum up."""
        if self.at.test_error is None:
            self._test()
        error = self.at.test_error
        assert error is not None
        return TrainResult(
            solved=self._below(error),
            reason=reason,
            iterations=self.at.iteration,
            minibatches=_in_minibatches(self.at.sequences),
            objective_evaluations=_in_minibatches(self.at.evaluated),
            seconds=self.at.seconds,
            test_error=error,
            run_dir=None if self.folder is None else self.folder.path,
            plots=self._plots(),
        )

    def _plots(self) -> tuple[Path, ...]:
        if self.folder is None:
            return ()
        return self.folder.draw(solved_below=self.settings.solved_below if self.solvable else None)

    def _below(self, error: float) -> bool:
        """The problem is solved with this test error."""
        return self.solvable and error < self.settings.solved_below

    def _reason_to_stop(self, interrupted: Callable[[], bool]) -> Reason | None:
        if self.at.diverged:
            return "diverged"
        if self.at.test_error is not None and self._below(self.at.test_error):
            return "solved"
        if _in_minibatches(self.at.sequences) >= self.settings.minibatches:
            return "budget"
        return "interrupted" if interrupted() else None

    def _iterate(self, session: float) -> bool:
        """One iteration with its test, log line and callbacks; True if a callback wants to stop."""
        started = time.perf_counter()
        batches = self.data.batches(self.stepper.batches, self.settings.batch_size)
        drawn = time.perf_counter()
        done = self.stepper.step(batches)
        self.at.iteration += 1
        self.at.sequences += done.sequences
        self.at.evaluated += done.evaluated
        self.at.diverged = not math.isfinite(done.stats["loss"])
        stepped = time.perf_counter()
        if self.at.iteration % self.settings.test_every == 0:
            self._test()
        self.at.seconds = time.perf_counter() - session
        seconds = {"data": drawn - started, "test": time.perf_counter() - stepped}
        self.metrics = self._line(done, seconds)
        if self.folder is not None:
            self.folder.log(self.metrics)
        state = self._state()
        return any([hook.on_step(state) for hook in self.hooks])  # a list: every hook runs

    def _line(self, done: Iteration, seconds: dict[str, float]) -> dict[str, Any]:
        tested = self.at.tested_at == self.at.iteration
        return {
            "iteration": self.at.iteration,
            "minibatches": _in_minibatches(self.at.sequences),
            "objective_evaluations_total": _in_minibatches(self.at.evaluated),
            "test_error": self.at.test_error if tested else None,
            "training_seconds": self.at.seconds,
            **{key: value for key, value in done.stats.items() if key != "seconds"},
            "seconds": {**done.stats["seconds"], **seconds},
        }

    def _test(self) -> None:
        self.at.test_error = measured_error(self.model, self.problem, self.test_set)
        self.at.tested_at = self.at.iteration

    def _untested(self) -> bool:
        return self.at.test_error is None or self.at.tested_at != self.at.iteration

    # ---- callbacks

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[None]:
        begun: list[Callback] = []
        try:
            for hook in self.hooks:
                hook.on_train_begin(self._state())
                begun.append(hook)
            yield
        finally:
            for hook in begun:
                hook.on_train_end(self._state())

    def _state(self) -> TrainState:
        return TrainState(
            model=self.model,
            problem=self.problem,
            optimizer=self.optimizer,
            iteration=self.at.iteration,
            minibatches=_in_minibatches(self.at.sequences),
            objective_evaluations=_in_minibatches(self.at.evaluated),
            budget=self.settings.minibatches,
            test_error=self.at.test_error,
            training_seconds=self.at.seconds,
            run_dir=None if self.folder is None else self.folder.path,
            metrics=self.metrics,
        )

    # ---- checkpoints

    def begin_or_resume(self) -> None:
        """Take up the last checkpoint; a run without one starts with checkpoint 0."""
        assert self.folder is not None
        checkpoint = self.folder.checkpoints.load()
        if checkpoint is None:
            self.folder.require_unstarted()
            self._checkpoint()
        else:
            self._restore(checkpoint.state)
            self._stored_at = checkpoint.iteration
        self.folder.start_logs(self.at.iteration)

    def _checkpoint(self) -> None:
        if self.folder is None:
            return
        self.folder.checkpoint(
            self.at.iteration,
            {
                "progress": vars(self.at),
                "model": dict(self.model.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "training_data": self.data.state(),
                "torch_random": torch.get_rng_state(),
                "cuda_random": self._cuda_random(),
            },
        )
        self._stored_at = self.at.iteration

    def _cuda_random(self) -> torch.Tensor | None:
        """State of the generator that a model on a GPU may draw from."""
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.at = Progress(**state["progress"])
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.data.load_state(state["training_data"])
            torch.set_rng_state(state["torch_random"])
            if self.device.type == "cuda" and state.get("cuda_random") is not None:
                torch.cuda.set_rng_state(state["cuda_random"], self.device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            assert self.folder is not None
            raise CheckpointError(
                f"{self.folder.checkpoints.folder}: iteration {self.at.iteration} does not fit "
                f"this model and optimiser: {error}"
            ) from error


def _in_minibatches(sequences: int) -> float:
    """Sequences in units of 1000, an int where it is whole."""
    whole, rest = divmod(sequences, COST_UNIT)
    return sequences / COST_UNIT if rest else whole
