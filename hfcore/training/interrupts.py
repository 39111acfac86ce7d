"""Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 as a request to stop after the current step.

Slurm and submitit send the last two before a job's time is over. Whoever handled them before is
called when the run has stopped: submitit then puts the job into the queue again.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hfcore.step_interrupt import can_leave, leave, say

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Where the system has them.
OF_SCHEDULERS = tuple(
    getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
AFTER_STEP = "stopping after this step"
AFTER_ITERATION = "stopping after this iteration"
AGAIN = "again to abort it"


@contextmanager
def stop_on_signal(
    seconds_left: Callable[[], float | None] = lambda: None, *, soon: bool = False
) -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether a signal came.

    ``seconds_left`` tells how long the running iteration is expected to take yet, None if unknown.

    The first signal only sets the flag; with ``soon`` it also does what a second does where that is
    not to end at once. A second one ends a Hessian-free step between two
    iterations of CG, with :class:`StepInterrupted`; elsewhere, and a third time, it does at once
    what it did before (Ctrl-C: KeyboardInterrupt). What comes next is said on stderr. Outside the
    main thread signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()
    handed_on: list[int] = []
    previous = {s: signal.getsignal(s) or signal.SIG_DFL for s in (*SIGNALS, *OF_SCHEDULERS)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        if not came.is_set():
            came.set()
            if number in OF_SCHEDULERS and callable(previous[signal.Signals(number)]):
                handed_on.append(number)
            if soon and can_leave():
                leave()
            else:
                left = seconds_left()
                about = "" if left is None else f" (about {math.ceil(left)} s)"
                say(f"{AFTER_STEP if can_leave() else AFTER_ITERATION}{about}; {AGAIN}")
        elif can_leave():
            leave()
        else:
            restore()
            signal.raise_signal(number)

    for number in previous:
        signal.signal(number, request)
    try:
        yield came.is_set
    finally:
        restore()
    for again in handed_on:
        signal.raise_signal(again)


@contextmanager
def interrupt_on_signal() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as SIGINT does: outside of a training loop, and as the
    second signal inside. Outside the main thread signals are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
