"""The progress bar of a sweep, with the time left; plain lines where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hfcore.sweeps.outcome import Test
from hfcore.training.progress import clock

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BEFORE_FIRST = 3.0  # of training, from which the time left can be told


class SweepDisplay:
    """Updates of all runs together, and what the last tests found."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console if console is not None else Console(stderr=True)
        self._bar = Progress(
            TextColumn("[bold]sweep"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[found]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("sweep", total=None, found="")
        self._found = ""
        self._total = self._before = self._done = 0
        self._began = self._next = 0.0

    def begin(self, total: int, done: int) -> None:
        """``total`` updates of all runs, ``done`` of them before."""
        self._total, self._before, self._done = total, done, done
        self._began = time.perf_counter()
        self._next = self._began + SECONDS_BEFORE_FIRST
        self._bar.update(self._task, total=total, completed=done)
        self._bar.start()

    def advance(self, updates: int) -> None:
        """So many further updates, one for each run of a cohort."""
        self._done += updates
        self._bar.advance(self._task, updates)
        now = time.perf_counter()
        if now > self._next and not self._console.is_terminal:
            self._next = now + SECONDS_BETWEEN_LINES
            self._console.print(self._line(now), highlight=False, soft_wrap=True)

    def _line(self, now: float) -> str:
        """What is done, the time left, and the last test if there was one."""
        each = (now - self._began) / (self._done - self._before)
        left = f"about {clock((self._total - self._done) * each)} left"
        done = f"{self._done:,} of {self._total:,} updates"
        return "  ".join(filter(None, [done, left, self._found]))

    def report(self, update: int, tests: Sequence[Test]) -> None:
        """The last test of every run so far."""
        best = min((test.error for test in tests), default=math.nan)
        self._found = f"best error after {update:,} updates {best:.4g}"
        self._bar.update(self._task, found=self._found)

    def end(self) -> None:
        """Take the bar away."""
        self._bar.stop()
