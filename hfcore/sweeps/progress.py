"""The progress bar of a sweep; plain lines where there is no terminal."""

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

SECONDS_BETWEEN_LINES = 30.0


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
        self._printed = -math.inf

    def begin(self, total: int, done: int) -> None:
        """``total`` updates of all runs, ``done`` of them before."""
        self._bar.update(self._task, total=total, completed=done)
        self._bar.start()

    def advance(self, updates: int) -> None:
        """So many further updates, one for each run of a cohort."""
        self._bar.advance(self._task, updates)

    def report(self, update: int, tests: Sequence[Test]) -> None:
        """The last test of every run so far."""
        best = min((test.error for test in tests), default=math.nan)
        found = f"update {update:,}: best error {best:.4g}"
        self._bar.update(self._task, found=found)
        late = time.perf_counter() - self._printed > SECONDS_BETWEEN_LINES
        if late and not self._console.is_terminal:
            self._printed = time.perf_counter()
            self._console.print(found, highlight=False, soft_wrap=True)

    def end(self) -> None:
        """Take the bar away."""
        self._bar.stop()
