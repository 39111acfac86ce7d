"""Live progress in the terminal; plain lines where there is no terminal."""

from __future__ import annotations

import math
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from hfcore.training.callbacks import Callback, TrainState

SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay(Callback):
    """Loss, error, λ, CG iterations, what is spent of the limits and the time left within them.

    The time left is to the end of the first limit: a run that solves its problem ends sooner.
    """

    reads_gradients = False

    def __init__(self, console: Console | None = None) -> None:
        self._console = console if console is not None else Console(stderr=True)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[spent]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
        )
        self._live: Live | None = None
        self._started = self._printed = 0.0
        self._done_before = 0.0

    def on_train_begin(self, state: TrainState) -> None:
        self._started = time.perf_counter()
        self._done_before = share(state)
        self._bar.add_task(state.name, total=1.0, spent=spent(state), left="")
        if self._console.is_terminal:
            self._live = Live(self._bar, console=self._console, transient=True)
            self._live.start()

    def on_step(self, state: TrainState) -> None:
        left = self._time_left(state)
        if self._live is not None:
            done = share(state)
            self._bar.update(self._bar.task_ids[0], completed=done, spent=spent(state), left=left)
            # two lines: everything on one does not fit a terminal of 80 columns
            self._live.update(Group(self._bar, Text(describe(state), no_wrap=True)))
        elif time.perf_counter() - self._printed > SECONDS_BETWEEN_LINES:
            self._printed = time.perf_counter()
            self._print(f"{describe(state)}  {spent(state)}  {left}")

    def on_train_end(self, state: TrainState) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if state.metrics:
            self._print(f"{describe(state)}  {spent(state)}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def _time_left(self, state: TrainState) -> str:
        done = share(state) - self._done_before
        if done <= 0:
            return ""
        whole = (time.perf_counter() - self._started) / done
        return f"at most {clock(max(0.0, 1.0 - share(state)) * whole)} left"


def clock(seconds: float) -> str:
    """``h:mm:ss``, or ``m:ss`` of less than an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe(state: TrainState) -> str:
    """Loss and error after the last step, λ and CG iterations of it.

    An update of a first-order optimiser has the loss of its batch before it. An error of an earlier
    test says so.
    """
    m = state.metrics
    parts = [f"step {state.iteration}"]
    if "loss" in m:
        after = m.get("loss_after", m["loss"])
        parts.append(f"loss {after if math.isfinite(after) else m['loss']:.4g}")
    for name, error in (("validation", state.validation_error), ("error", state.test_error)):
        if error is not None:
            parts.append(f"{name} {100 * error:.2f}%" if state.shares else f"{name} {error:.4g}")
    if state.test_error is not None and m.get("test_error") is None:
        parts.append("(at the last test)")
    if "damping" in m:
        parts.append(f"λ {m['damping']:.3g}")
    if "cg_iterations" in m:
        parts.append(f"CG {m['cg_iterations']}")
    return "  ".join(parts)


def share(state: TrainState) -> float:
    """What is done of the limit that is nearest, 0 to 1; 0 without any."""
    limits = state.limits
    spent = (
        (state.iteration, limits.iterations),
        (state.minibatches, limits.minibatches),
        (state.step_seconds, limits.seconds),
    )
    return min(1.0, max((x / most for x, most in spent if most is not None), default=0.0))


def spent(state: TrainState) -> str:
    """Minibatches and iterations, each of their limit where there is one."""
    limits = state.limits
    parts = [
        f"{x:,.6g}{'' if most is None else f'/{most:,.6g}'} {unit}"
        for x, most, unit in (
            (state.minibatches, limits.minibatches, "minibatches"),
            (state.iteration, limits.iterations, "iterations"),
        )
        if most is not None or unit == "minibatches"
    ]
    return ", ".join(parts)
