"""Several runs side by side: each in a process of its own, or as a job of an executor."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import hfcore as hf

INTERRUPTED = 130  # the shell's code for a program ended by Ctrl-C


class Runnable(Protocol):
    """What is run; it can be pickled."""

    def run(self) -> bool:
        """False if it was interrupted."""


def side_by_side(
    jobs: Iterable[Runnable],
    workers: int,
    *,
    begun: Callable[[Any], None] = lambda job: None,
    ended: Callable[[Any], None] = lambda job: None,
) -> bool:
    """Run all jobs, ``workers`` at a time; False if they were interrupted.

    One worker is this process. Ctrl-C and SIGTERM reach the jobs, which end with a checkpoint.
    ``begun`` and ``ended`` are told of each. Raises what a job raised in this process, RuntimeError
    naming a job that failed in another one, once the others that were running have ended.
    """
    if workers == 1:
        for job in jobs:
            begun(job)
            if not job.run():
                return False
            ended(job)
        return True
    return _Processes(jobs, workers, begun, ended)()


def by_executor(
    jobs: Sequence[Runnable], executor: Any, *, ended: Callable[[Any], None] = lambda job: None
) -> bool:
    """Run all jobs on the workers of ``executor``; False if some were interrupted.

    ``ended`` is told of each in their order, when all are over. Raises what a job raised, and
    :class:`hfcore.training.ExecutorError` for workers that cannot.
    """
    whole = True
    for job, done in zip(jobs, hf.sweeps.run_by(executor, [_Call(j) for j in jobs]), strict=True):
        if done:
            ended(job)
        whole = whole and bool(done)
    return whole


@dataclass(frozen=True)
class _Call:
    """A job as a call that any executor can make."""

    job: Runnable

    def __call__(self) -> bool:
        return self.job.run()

    def checkpoint(self) -> Any:
        """What submitit submits in its place when a scheduler takes the machine away."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _Processes:
    """Jobs in processes of their own."""

    def __init__(
        self,
        jobs: Iterable[Runnable],
        workers: int,
        begun: Callable[[Any], None],
        ended: Callable[[Any], None],
    ) -> None:
        self._waiting = iter(jobs)
        self._workers, self._begun, self._ended = workers, begun, ended
        self._running: dict[int, tuple[BaseProcess, Runnable]] = {}
        # A forked process would have torch's threads without the threads.
        self._context = multiprocessing.get_context("spawn")

    def __call__(self) -> bool:
        whole, failed = True, None
        try:
            while self._fill(whole and failed is None) or self._running:
                for process, job in self._done():
                    if process.exitcode == INTERRUPTED:
                        whole = False
                    elif process.exitcode != 0:
                        failed = failed or job
                    else:
                        self._ended(job)
        except KeyboardInterrupt:
            whole = False
        finally:
            for process, _ in self._running.values():
                process.terminate()
            for process, _ in self._running.values():
                process.join()
        if failed is not None:
            raise RuntimeError(f"{failed}: failed, see above")
        return whole

    def _fill(self, more: bool) -> bool:
        """Begin jobs while there are free workers and ``more`` are wanted; whether any began."""
        began = False
        while more and len(self._running) < self._workers:
            job = next(self._waiting, None)
            if job is None:
                break
            process = self._context.Process(target=_run, args=(job,))
            process.start()
            self._running[process.sentinel] = process, job
            self._begun(job)
            began = True
        return began

    def _done(self) -> list[tuple[BaseProcess, Runnable]]:
        """Waits for one that has ended, at least."""
        wait(list(self._running))
        over = [key for key, (process, _) in self._running.items() if not process.is_alive()]
        ready = [self._running.pop(key) for key in over]
        for process, _ in ready:
            process.join()
        return ready


def _run(job: Runnable) -> None:
    """In the process: its exit code says how the job ended."""
    try:
        code = 0 if job.run() else INTERRUPTED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        print(f"{job}: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)
