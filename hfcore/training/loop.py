"""``train``: one loop for Hessian-free and first-order optimisers, resumable to the bit."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from hfcore.arguments import flag, path
from hfcore.batches import Batches
from hfcore.step_interrupt import StepInterrupted
from hfcore.training import setup
from hfcore.training.callbacks import Callback, CallbackStates, StopRequest, TrainState
from hfcore.training.config import Settings, default_every, limits_of, run_config
from hfcore.training.counters import Progress, in_minibatches
from hfcore.training.feeds import Feed
from hfcore.training.interrupts import stop_on_signal
from hfcore.training.limits import Limits
from hfcore.training.metrics import Metric
from hfcore.training.metrics_log import as_python
from hfcore.training.progress import ProgressDisplay
from hfcore.training.result import TrainResult
from hfcore.training.resumable import RandomStates, Resumable
from hfcore.training.run_folder import RunFolder
from hfcore.training.steps import Iteration, Stepper, combined, device_of, make_stepper

logger = logging.getLogger("hfcore")

# Hessian-free steps in a row that report no way down end a run: a single one may be of its batch.
CONVERGED_STEPS = 10


def train(
    model: torch.nn.Module,
    data: Any,
    optimizer: torch.optim.Optimizer,
    *,
    batches: Any = None,
    stop: Limits | None = None,
    callbacks: Sequence[Callback] = (),
    loss: Any = None,
    metric: Metric | None = None,
    validation: Any = None,
    test: Any = None,
    minibatches: float | None = None,
    batch_size: int | None = None,
    gradient_batches: int | None = None,
    batch_dim: int | None = None,
    test_size: int = setup.TEST_SIZE,
    solved_below: float = 0.01,
    test_every: int | None = None,
    test_untrained: bool = False,
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 2,
    progress: bool = True,
    notes: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train ``model`` on ``data`` until a limit is met, the problem solved, or a callback stops it.

    With :class:`hfcore.HessianFree` an iteration is one step, with any other torch optimiser one
    update, on the batches of a policy. Work is counted in minibatches of 1000 sequences, one for
    each gradient or curvature product over them (Martens & Sutskever 2011, figure 3); objective
    evaluations are counted apart.

    >>> hf.train(model, hf.problems.Addition(30), opt)
    >>> hf.train(model, (x, y), opt, validation=(x_v, y_v), stop=hf.training.Limits(iterations=50),
    ...          callbacks=[hf.training.EarlyStopping(5), hf.training.BestModel()])

    Args:
        model: maps inputs to outputs before their nonlinearity; an hf.RNN ``[T,B,n]`` to
            ``[T,B,k]``, an hf.MLP ``[B,n]`` to ``[B,k]``.
        data: a problem of hf.problems; ``(x, y)`` or ``(x, y, mask)`` of tensors in the model's
            dtype, or of NumPy arrays, whose floats become it; a list of sequences ``(x_i [T_i,n],
            y_i [T_i,k])`` of any lengths, with classes int64 ``[T_i]`` or one target for the
            sequence as y_i, and perhaps a mask_i ``[T_i]``: they are padded and masked; an
            hf.data.Dataset, images that are inputs and targets; a torch DataLoader of batches
            (inputs, targets[, mask]); or a torch Dataset with a length, which is read into memory.
        batches: a policy of :mod:`hfcore.minibatches`, :class:`hfcore.training.Phased`, or a
            function from the number of the iteration to hf.Batches. None: of a problem
            ``gradient_batches`` fresh batches of ``batch_size``, of a DataLoader that many of its
            own; of cases at hand FullGradient with curvature batches of ``batch_size`` for
            Hessian-free, else SmallBatches of ``batch_size``.
        stop: limits of iterations, minibatches and seconds; None: 50,000 minibatches.
        callbacks: see :class:`hfcore.Callback`; their states are in the checkpoints.
        loss: a loss of hf.losses or a function (outputs, targets) → mean loss; None: the problem's,
            or the one that HessianFree was made with.
        metric: the measure of error: a function (outputs, targets), or with a parameter ``mask``,
            → a value of each case ``[B]``, or the mean, a number. None: what the problem calls
            wrong or its errors; else the loss.
        validation, test: further parts in any of the forms of ``data`` but a problem; None: those
            of an hf.data.Dataset; a problem draws its test cases.
        minibatches: the same as ``Limits(minibatches=…)``.
        batch_size, gradient_batches: see ``batches``; by default 1000 (at most all cases) and 10;
            a first-order update takes one batch.
        batch_dim: axis of the cases in inputs and targets, or a pair of axes; None: what
            HessianFree was made with, or the model's own (1 for hf.RNN), else 0.
        test_size: cases of a problem's fixed test set, drawn in batches of 1000 where it has no
            test set of its own.
        solved_below: the problem is solved when the share of wrong test cases is below this;
            without meaning for data that call no case wrong.
        test_every, checkpoint_every: in iterations; by default 1 for Hessian-free, 100 otherwise.
        test_untrained: also test before the first iteration, and log it as iteration 0.
        seed: of the training and the test data (two independent streams).
        run_dir: folder for config, metrics, TensorBoard events, plots and checkpoints; None
            writes nothing.
        resume: continue the run in ``run_dir`` from its last checkpoint, bit for bit. The
            arguments must be those it was begun with, apart from ``stop``, ``minibatches``,
            ``solved_below``, ``test_every``, ``checkpoint_every``, ``keep_checkpoints``,
            ``progress``, and callbacks that do not determine the run.
        keep_checkpoints: the last so many stay in ``run_dir``.
        progress: show progress on stderr.
        notes: further settings to keep in config.json; a resume compares them too.

    SIGINT or SIGTERM ends training after the current step with a checkpoint. A second one ends a
    Hessian-free step between two iterations of CG, with a checkpoint of the last whole iteration,
    and acts at once elsewhere, as does a third. Raises TypeError or ValueError naming the argument
    that is wrong, :class:`RunFolderError` for a folder that cannot be used or written,
    :class:`CheckpointError` if no checkpoint is good, and :class:`ConfigMismatchError` if the
    folder belongs to another config.
    """
    setup.check_kinds(model, optimizer, run_dir, notes)
    if next(model.parameters(), None) is None:
        raise ValueError("model: has no parameters, nothing to train")
    every = default_every(optimizer)
    settings = Settings(
        limits=limits_of(stop, minibatches),
        test_size=test_size,
        solved_below=solved_below,
        test_every=every if test_every is None else test_every,
        checkpoint_every=every if checkpoint_every is None else checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        seed=seed,
    )
    flag("test_untrained", test_untrained)
    flag("progress", progress)
    if flag("resume", resume) and run_dir is None:
        raise ValueError("resume: got True without run_dir, need the run folder to resume")
    parts = setup.data_of(
        model, optimizer, data, validation=validation, test=test, batch_dim=batch_dim
    )
    minimised = setup.loss_of(loss, parts.problem, optimizer)
    policy = setup.policy_of(
        parts,
        optimizer,
        batches,
        batch_size=batch_size,
        gradient_batches=gradient_batches,
        seed=seed,
    )
    hooks = setup.hooks_of(policy, callbacks)
    stepper = make_stepper(
        model,
        minimised,
        optimizer,
        setup.counter(parts, policy),
        gradients=any(hook.reads_gradients for hook in hooks),
    )
    run = _Run(
        model,
        optimizer,
        parts,
        stepper,
        setup.feed_of(parts, policy, settings, stepper.device),
        setup.Measured(model, parts, metric, minimised, settings),
        settings,
        [*hooks, ProgressDisplay()] if progress else hooks,
    )
    if run_dir is None:
        run.begin(test_untrained)
        return run.result(run.loop())
    config = run_config(
        model,
        optimizer,
        settings,
        problem=parts.problem,
        data=setup.data_config(parts, policy, settings),
        loss=minimised,
        metric=run.measured.name,
        callbacks=CallbackStates(hooks).config(),
        notes=notes or {},
    )
    opened = RunFolder.resume if resume else RunFolder.create
    with opened(path("run_dir", run_dir), config, keep=keep_checkpoints) as run.folder:
        run.begin(test_untrained)
        return run.result(run.loop())


class _Run:
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
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.data = data
        self.stepper = stepper
        self.feed = feed
        self.measured = measured
        self.settings = settings
        self.hooks = hooks
        self.folder: RunFolder | None = None
        self.at = Progress()
        self.metrics: dict[str, Any] = {}

    def begin(self, test_untrained: bool) -> None:
        """Begin, or take up the last checkpoint."""
        self.stored = Resumable(
            self.folder,
            {
                "progress": self.at,
                "model": self.model,
                "optimizer": self.optimizer,
                "training_data": self.feed,
                "random": RandomStates(device_of(self.model)),
                "callbacks": CallbackStates(self.hooks),
            },
            lambda: self.at.iteration,
            "this model and optimiser",
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
        with stop_on_signal() as interrupted, closed, self._hooked() as asked:
            while (reason := self._reason_to_stop(interrupted, asked)) is None:
                asked = self._iterate(session)
                if asked is not None or self.at.iteration % self.settings.checkpoint_every == 0:
                    self.stored.save()
            if reason not in ("interrupted", "diverged") and self._untested():
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
            run_dir=None if folder is None else folder.path,
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
        started = time.perf_counter()
        before = self._before() if self.stepper.interruptible else {}
        work = self.feed(self.at.iteration)
        drawn = time.perf_counter()
        rows = [work] if isinstance(work, Batches) else work
        if before and len(rows) > 1:  # a later step of the row may be left
            before |= copy.deepcopy(self.stored.states("model", "optimizer"))
        steps = []
        try:
            for row in rows:  # no comprehension: that is a frame more above every product
                steps.append(self.stepper.step(row))
        except StepInterrupted:
            self.at.seconds = time.perf_counter() - session
            self._back(before)
            return "interrupted"
        done = combined(steps)
        stepped = time.perf_counter()
        self.at.iteration += 1
        self.at.sequences += done.sequences
        self.at.evaluated += done.evaluated
        self.at.cg_iterations += done.stats.get("cg_iterations", 0)
        self.at.step_seconds += stepped - started
        self.at.diverged = not math.isfinite(done.stats["loss"])
        self.at.converged = self.at.converged + 1 if done.stats.get("converged") else 0
        if self.at.iteration % self.settings.test_every == 0:
            self._test()
        self.at.seconds = time.perf_counter() - session
        seconds = {"data": drawn - started, "test": time.perf_counter() - stepped}
        self._log(self._line(done, seconds))
        state = self._state()
        # a list: every hook runs
        return next(filter(None, [_reason(hook.on_step(state)) for hook in self.hooks]), None)

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
        """The columns of every line: counters and what was just measured."""
        tested = self.at.tested_at == self.at.iteration
        errors = {"test_error": self.at.test_error if tested else None}
        if self.data.validation is not None:
            errors["validation_error"] = self.at.validation_error if tested else None
        return {
            "iteration": self.at.iteration,
            "minibatches": in_minibatches(self.at.sequences),
            "objective_evaluations_total": in_minibatches(self.at.evaluated),
            **errors,
            **(self.measured.columns if tested else {}),
            "training_seconds": self.at.seconds,
            "step_seconds": self.at.step_seconds,
        }

    def _log(self, line: dict[str, Any]) -> None:
        """Complete the line with what callbacks measure, and write it."""
        self.metrics = line
        state = self._state()
        for hook in self.hooks:
            line |= {key: as_python(value) for key, value in hook.measure(state).items()}
        if self.folder is None:
            return
        if self.at.iteration or not self.folder.lines:  # the untrained model's line may be there
            self.folder.log(line)

    def _test_untrained(self) -> None:
        self._test()
        self._log(self._totals())

    def _test(self) -> None:
        errors = self.measured()
        self.at.test_error = errors.get("test")
        self.at.validation_error = errors.get("validation")
        self.at.tested_at = self.at.iteration

    def _untested(self) -> bool:
        return self.at.tested_at != self.at.iteration

    # ---- callbacks

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[str | None]:
        """Callbacks begin and end; gives the reason of one that wants no training at all."""
        begun: list[Callback] = []
        try:
            reasons = []
            for hook in self.hooks:
                reasons.append(_reason(hook.on_train_begin(self._state())))
                begun.append(hook)
            yield next(filter(None, reasons), None)
        finally:
            for hook in begun:
                hook.on_train_end(self._state())

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
            run_dir=None if self.folder is None else self.folder.path,
            metrics=self.metrics,
            name=self.data.train.name,
            validation_error=self.at.validation_error,
            step_seconds=self.at.step_seconds,
            shares=self.measured.shares,
        )


def _reason(asked: StopRequest) -> str | None:
    """Why a callback wants to stop, None if it does not."""
    return asked if isinstance(asked, str) else "callback" if asked else None


def _or_nan(error: float | None) -> float:
    return math.nan if error is None else error
