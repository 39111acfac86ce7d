"""``sweep``: many first-order runs trained at once, resumable to the bit.

What a run computes depends on its own settings alone: the ops give a net the same bits in any
group, runs of one seed share the data of that seed, and how runs are cut into cohorts decides
nothing but the memory they take.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfcore import arguments
from hfcore.arguments import count, flag, naming_options, nonnegative, number, path
from hfcore.batches import Batch
from hfcore.bindings.checks import check_choice, check_positive
from hfcore.counted_batches import CountedBatches
from hfcore.counted_draws import CountedDraws
from hfcore.flat import FlatParameters
from hfcore.nets.data import Data
from hfcore.nets.grouped import BATCHES_ON, GroupedGradient, grouped_gradient
from hfcore.problems import CountedProblem, FiniteProblem, Problem, create
from hfcore.problems.base import check_problem
from hfcore.sweeps.cohort import Cohort, Cohorts, Resident
from hfcore.sweeps.extension import before_last_phase
from hfcore.sweeps.grid import Grid, RunSettings, expand
from hfcore.sweeps.jobs import Job, Part, parts_of, run_by, united
from hfcore.sweeps.measured import Tests, measure
from hfcore.sweeps.outcome import Test, case_count, constant_output
from hfcore.sweeps.result import Reason, SweepResult
from hfcore.sweeps.settings import SCHEDULES, ScheduleName, SweepSettings
from hfcore.sweeps.starts import Start, default_start
from hfcore.sweeps.stored import drawn, written
from hfcore.training.data import TrainingData, placed
from hfcore.training.errors import ConfigMismatchError
from hfcore.training.interrupts import stop_on_signal
from hfcore.training.resumable import Counters, Resumable
from hfcore.training.run_folder import RunFolder, read_config

if TYPE_CHECKING:
    from hfcore.sweeps.progress import SweepDisplay


@naming_options
def sweep(
    problem: Problem | str,
    grid: Grid | Sequence[Grid] | Sequence[RunSettings],
    *,
    seeds: int | Sequence[int] = 1,
    updates: int = 50_000,
    batch_size: int = 100,
    start: Start | None = None,
    schedule: ScheduleName = "delayed",
    final_updates: int = 0,
    falling_updates: int = 0,
    weight_decay: float = 0.0,
    test_every: int = 500,
    test_size: int = 1000,
    solved_below: float = 0.01,
    device: torch.device | str = "cpu",
    on_device: bool = False,
    max_bytes: int = 2 << 30,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
    executor: Any = None,
    cohorts: int | None = None,
    part: tuple[int, int] | None = None,
) -> SweepResult:
    """Train every combination of a grid's values with every seed, all of them at once.

    >>> result = hf.sweep(
    ...     hf.problems.Addition(20, centre=True),
    ...     {"learning_rate": [1e-2, 1e-3], "momentum": [0.0, 0.98], "method": ["nag", "cm"]},
    ...     seeds=4, updates=10_000)
    >>> result.write("table.csv")

    A run is what it would be alone, bit for bit on the CPU: another grid around it, other cohorts,
    a stop and a resume change nothing. Runs that meet a loss which is not finite are taken out.

    Args:
        problem: a problem of ``hf.problems``, or its name.
        grid: values by key, see :func:`hfcore.sweeps.grid.expand`; several grids are united. Or
            the runs themselves, each with its seed.
        seeds: how many seeds from 0, or which. A seed draws the initial net and the batches.
        updates: of every run, each on ``batch_size`` cases (Sutskever et al. 2013, table 5: 50,000
            of 100; autoencoders: 750,000 of 200). The loss is the problem's, averaged over cases.
        start: the untrained nets; None: what suits the problem.
        schedule: of μ, from the grid's ``momentum`` μ₀: ``"constant"``; ``"delayed"``, 0.9 for 1000
            updates, then μ₀; ``"increasing"``, eq. 5 up to μ₀.
        final_updates: so many updates at the end have μ = 0.9 at most.
        falling_updates: over the last N = ``falling_updates`` ε falls linearly, to ε/N in the last.
        weight_decay: the coefficient of ½‖θ‖² in the objective.
        test_every, test_size: updates between tests, and cases of the fixed test set.
        device: where it is computed.
        on_device: batches are made on the device, from a counter-based stream that is the same on
            the CPU and on a GPU, which then does up to 64 updates without its host. Cases are fresh
            where the problem counts them out (addition, multiplication, exclusive or, memorisation:
            ``hf.problems.CountedProblem``), else they are those of a fixed set
            (``hf.problems.Reconstruction``), pass after pass, each in an order of its own.
        max_bytes: of parameters and their companions trained at once; larger sweeps are cut into
            cohorts.
        run_dir, resume: a folder for settings, history and checkpoints; continue the one there.
            ``updates`` and ``test_every`` may differ then. With ``final_updates`` or
            ``falling_updates`` a sweep that is in its last ones goes back to where they began, if
            there was a test.
        checkpoint_seconds: time between checkpoints.
        progress: one progress bar on stderr.
        executor: anything with ``submit(f, *arguments)`` that gives futures, such as
            ``concurrent.futures.ProcessPoolExecutor``, ``submitit.AutoExecutor`` or a
            ``dask.distributed.Client``: parts of the sweep go to its workers, each in a folder of
            its own in ``run_dir``, which all of them see. Results are those without it, to the bit.
        cohorts: how many parts, at most the number of runs; None: one for each seed, or more where
            ``max_bytes`` says so. A sweep is resumed in the parts in which it was begun.
        part: (3, 16): the third of 16 parts alone, in its folder in ``run_dir``, begun or
            continued: for the array jobs of any scheduler. :func:`hfcore.sweeps.join_folder`
            unites them.

    SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 ends the sweep after the current update with a checkpoint.
    Raises TypeError or ValueError naming what is wrong, :class:`hfcore.training.RunFolderError` and
    its kin for folders, and RuntimeError for a worker that has ended or lacks the package.
    """
    check_positive(updates=updates, batch_size=batch_size, test_every=test_every)
    check_positive(test_size=test_size, max_bytes=max_bytes)
    check_choice("schedule", schedule, tuple(SCHEDULES))
    for name, last in (("final_updates", final_updates), ("falling_updates", falling_updates)):
        if count(name, last, least=0) > updates:
            raise ValueError(f"{name}: got {last}, need 0 to updates = {updates}")
    flag("progress", progress)
    if flag("resume", resume) and run_dir is None:
        raise ValueError("resume: got True without run_dir, need the folder of the sweep to resume")
    task = create(problem) if isinstance(problem, str) else problem
    if not isinstance(task, Problem):
        raise TypeError(f"problem: got {type(task).__name__}, need a problem of hf.problems")
    check_problem("problem", task, "errors")
    at = arguments.device("device", device)
    begin = default_start(task) if start is None else start
    settings = SweepSettings(
        task,
        expand(grid, seeds, begin.options),
        begin,
        updates=updates,
        batch_size=batch_size,
        schedule=schedule,
        final_updates=final_updates,
        falling_updates=falling_updates,
        weight_decay=nonnegative("weight_decay", weight_decay),
        test_every=test_every,
        test_size=test_size,
        solved_below=number("solved_below", solved_below),
        device=at,
        on_device=flag("on_device", on_device),
        max_bytes=max_bytes,
        checkpoint_seconds=nonnegative("checkpoint_seconds", checkpoint_seconds),
    )
    if settings.on_device and not isinstance(task, CountedProblem):
        _fixed_cases(task, batch_size)  # before there is a folder
    if part is not None:
        if executor is not None or cohorts is not None or run_dir is None:
            raise ValueError("part: needs run_dir, and goes without executor and cohorts")
        return _sweep_part(part, settings, path("run_dir", run_dir))
    if executor is not None:
        if run_dir is None:
            raise ValueError("run_dir: got None with an executor, need a folder that workers see")
        return _sweep_by(executor, settings, cohorts, path("run_dir", run_dir), resume=resume)
    if cohorts is not None:
        raise ValueError(f"cohorts: got {cohorts} without an executor, need None")
    display = _display() if progress else None
    if run_dir is None:
        return SweepLoop(settings, None, display).run()
    found = sweep_alone(settings, path("run_dir", run_dir), resume=resume, display=display)
    return drawn(found)


def _fixed_cases(problem: Problem, batch_size: int) -> Batch:
    """All cases of a problem for ``on_device``, with as many as a batch has.

    Raises TypeError or ValueError naming what is wrong.
    """
    if not isinstance(problem, FiniteProblem):
        raise TypeError(
            f"on_device: {problem.name} draws new cases by a generator, need a problem that counts "
            "them out (counted_batches) or one with a fixed set of them (all_cases)"
        )
    cases = problem.all_cases(torch.float32)
    found = case_count(cases)
    if batch_size > found:
        raise ValueError(f"batch_size: got {batch_size}, need 1 to {found}, the cases there are")
    return cases


def sweep_alone(
    settings: SweepSettings, path: Path, *, resume: bool, display: SweepDisplay | None = None
) -> SweepResult:
    """A sweep in one process and in a folder, without its plots."""
    opened = RunFolder.resume if resume else RunFolder.create
    with opened(path, settings.config()) as folder:
        return SweepLoop(settings, folder, display).run()


# How a sweep was cut that was not told.
BY_SEED = "by seed and memory"


def sweep_parts(settings: SweepSettings, count: int | None) -> list[Part]:
    """The parts of a sweep; ``count`` None: its cohorts."""
    if count is not None:
        most = min(arguments.count("cohorts", count), len(settings.runs))
        return parts_of([run.seed for run in settings.runs], most)
    found = list(settings.cohorts())
    return [Part(i + 1, len(found), indices) for i, indices in enumerate(found)]


def _sweep_by(
    executor: Any, settings: SweepSettings, count: int | None, folder: Path, *, resume: bool
) -> SweepResult:
    """The sweep on the workers of an executor, in the folders of its parts."""
    begun = (read_config(folder / "config.json") if resume else None) or {}
    cut = begun.get("cohorts", BY_SEED if count is None else count)
    parts = sweep_parts(settings, None if cut == BY_SEED else cut)
    config = {**settings.config(), "cohorts": cut}
    opened = RunFolder.resume if resume else RunFolder.create
    if begun and "cohorts" not in begun:
        raise ConfigMismatchError(f"{folder}: holds a sweep without an executor, need None")
    with opened(folder, config):
        jobs = [Job(part, settings, folder) for part in parts]
        found = run_by(executor, jobs, getattr(executor, "stop_workers", lambda: None))
        done = [
            _unbegun(job, settings) if r is None else r for job, r in zip(jobs, found, strict=True)
        ]
        return united(parts, done, folder)


def _sweep_part(part: tuple[int, int], settings: SweepSettings, folder: Path) -> SweepResult:
    """One part alone."""
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise ValueError(f"part: got {part!r}, need (number, count) such as (3, 16)")
    among = count("part", part[1], most=len(settings.runs))
    parts = sweep_parts(settings, among)
    number = count("part", part[0], most=among)
    return drawn(Job(parts[number - 1], settings, folder)())


def _unbegun(job: Job, settings: SweepSettings) -> SweepResult:
    """Of a part that a signal kept from beginning."""
    runs = job.settings.runs
    data = TrainingData(settings.problem, runs[0].seed, torch.float32, settings.device)
    constant = constant_output(settings.problem, data.test_set(settings.test_size))
    nothing = [list[Test]() for _ in runs]
    return SweepResult(
        runs, nothing, {}, {}, constant, "interrupted", 0, 0.0, settings.solved_below
    )


def _display() -> SweepDisplay:
    from hfcore.sweeps.progress import SweepDisplay  # rich is slow to import

    return SweepDisplay()


@dataclass
class SweepCounters(Counters):
    """What is counted of a sweep besides its cohorts' updates; part of every checkpoint."""

    seconds: float = 0.0
    updates: int = 0
    """Of every run: where the last phase ends, for which μ was scheduled."""


class SweepLoop:
    """One call of :func:`sweep`: the cohorts, their tests and the folder."""

    def __init__(
        self, settings: SweepSettings, folder: RunFolder | None, display: SweepDisplay | None
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.display = display
        self.at = SweepCounters(updates=settings.updates)
        self.tests = Tests(len(settings.runs))
        self.passes = self._passes()
        counted = isinstance(settings.problem, CountedProblem)
        self._cases = self._resident_cases() if settings.on_device and not counted else None
        self.cohorts = Cohorts(self._cohort(indices) for indices in settings.cohorts())
        self._test_sets: dict[int, list[Batch]] = {}
        self.constant = constant_output(settings.problem, self.test_set(settings.runs[0].seed))
        self.stored = Resumable(
            folder,
            {"progress": self.at, "tests": self.tests, "cohorts": self.cohorts},
            self._done,
            "this sweep",
        )

    def _passes(self) -> GroupedGradient:
        model = self.settings.build(0)
        passes = grouped_gradient(model, self.settings.problem.loss)
        if passes is None:
            raise TypeError(
                f"start: builds a {type(model).__name__}, need an hf.RNN or hf.MLP with all "
                "parameters trainable"
            )
        return passes

    def _cohort(self, indices: list[int]) -> Cohort:
        settings = self.settings
        runs = [settings.runs[i] for i in indices]
        nets = torch.stack([FlatParameters(settings.build(i)).read() for i in indices])
        return Cohort(
            indices,
            runs,
            nets.to(settings.device),
            [settings.momentum(run) for run in runs],
            self.passes,
            self._data(runs[0].seed),
            batch_size=settings.batch_size,
            weight_decay=settings.weight_decay,
            rate_factor=settings.rate_factor,
        )

    def _data(self, seed: int) -> TrainingData | Resident:
        """The batches of a seed."""
        settings, cases = self.settings, self._cases
        size, device = settings.batch_size, settings.device
        if cases is not None:
            return Resident(cases, CountedBatches(cases.count, size, seed, device))
        if settings.on_device and isinstance(settings.problem, CountedProblem):
            draws = CountedDraws(settings.problem, size, seed, device, self.passes.resident)
            return Resident(draws.cases, draws)
        return TrainingData(settings.problem, seed, torch.float32, BATCHES_ON)

    def _resident_cases(self) -> Data:
        """All cases of the problem, where the nets are. Raises TypeError or ValueError by name."""
        cases = _fixed_cases(self.settings.problem, self.settings.batch_size)
        return self.passes.resident(placed(cases, self.settings.device))

    def test_set(self, seed: int) -> list[Batch]:
        """The fixed test cases of a seed, those of :func:`hfcore.train`."""
        if seed not in self._test_sets:
            data = TrainingData(self.settings.problem, seed, torch.float32, self.settings.device)
            self._test_sets[seed] = data.test_set(self.settings.test_size)
        return self._test_sets[seed]

    # ---- the loop

    def run(self) -> SweepResult:
        """Train to the end, or until interrupted."""
        if self.folder is not None:
            before_last_phase(self.folder.checkpoints, self.settings, len(self.cohorts))
        self.stored.begin_or_resume()
        self.at.updates = self.settings.updates
        began = time.perf_counter() - self.at.seconds
        saved = time.perf_counter()
        reason: Reason = "updates"
        with stop_on_signal() as interrupted:
            if self.display is not None:
                self.display.begin(*self._amounts())
            try:
                while (cohort := self._next()) is not None and not interrupted():
                    self._advance(cohort, interrupted)
                    self.at.seconds = time.perf_counter() - began
                    begins = {cohort.done for cohort in self.cohorts} == {self.settings.last_phase}
                    late = time.perf_counter() - saved > self.settings.checkpoint_seconds
                    if late or begins:
                        self.stored.save()
                        saved = time.perf_counter()
            finally:
                if self.display is not None:
                    self.display.end()
            if self._next() is not None:
                reason = "interrupted"
        self.stored.save()
        return self._result(reason)

    def _next(self) -> Cohort | None:
        """The cohort that is furthest behind; all of them keep within one test."""
        behind = min(self.cohorts, key=lambda cohort: cohort.done)
        return behind if behind.done < self.settings.updates else None

    def _advance(self, cohort: Cohort, interrupted: Callable[[], bool]) -> None:
        """Bring a cohort to its next test, unless interrupted before."""
        every = self.settings.test_every
        target = min(self.settings.updates, (cohort.done // every + 1) * every)
        while cohort.done < target and cohort.indices:
            if interrupted():
                return
            done = cohort.advance(target - cohort.done)
            if self.display is not None:
                self.display.advance(done * len(cohort.indices))
        cohort.done = target
        cohort.retire()
        self._test(cohort)

    def _test(self, cohort: Cohort) -> None:
        means = cohort.mean_losses()
        lines = []
        for index, measured in zip(cohort.indices, self._measured(cohort), strict=True):
            test = Test(cohort.done, means[index], *measured)
            self.tests.add(index, test)
            lines.append([index, *vars(test).values()])
        if self.folder is not None:
            self.folder.log(
                {
                    "iteration": self._done(),
                    "update": cohort.done,
                    "training_seconds": self.at.seconds,
                    "running": len(cohort.indices),
                    "tests": lines,
                }
            )
        if self.display is not None:
            self.display.report(cohort.done, self.tests.last())

    def _measured(self, cohort: Cohort) -> list[list[float]]:
        """Loss, error and share of wrong cases of every run, on the test set of their seed."""
        if not cohort.runs:
            return []
        batches = self.test_set(cohort.runs[0].seed)
        return measure(self.settings.problem, self.passes, cohort.theta, batches)

    def _done(self) -> int:
        """Updates of all cohorts: counts up through the whole sweep."""
        return sum(cohort.done for cohort in self.cohorts)

    def _amounts(self) -> tuple[int, int]:
        """Updates of every run, all of them and those that are done."""
        done = sum(cohort.done * cohort.size for cohort in self.cohorts)
        return self.settings.updates * len(self.settings.runs), done

    def _result(self, reason: Reason) -> SweepResult:
        parameters: dict[int, Tensor] = {}
        diverged: dict[int, int] = {}
        for cohort in self.cohorts:
            parameters |= dict(zip(cohort.indices, cohort.theta.cpu(), strict=True))
            diverged |= cohort.diverged_at
        result = SweepResult(
            self.settings.runs,
            self.tests.of,
            diverged,
            parameters,
            self.constant,
            reason,
            min(cohort.done for cohort in self.cohorts),
            self.at.seconds,
            self.settings.solved_below,
        )
        return result if self.folder is None else written(result, self.folder.path)
