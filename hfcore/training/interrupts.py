"""Ctrl-C and SIGTERM as a request to stop after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hfcore.step_interrupt import can_leave, leave, say

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AFTER_STEP = "stopping after this step; again to stop within it"
AFTER_ITERATION = "stopping after this iteration; again to stop at once"


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether a signal came.

    The first signal only sets the flag. A second one ends a Hessian-free step between two
    iterations of CG, with :class:`StepInterrupted`; elsewhere, and a third time, it does at once
    what it did before (Ctrl-C: KeyboardInterrupt). What comes next is said on stderr. Outside the
    main thread signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()
    previous = {s: signal.getsignal(s) or signal.SIG_DFL for s in SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        if not came.is_set():
            came.set()
            say(AFTER_STEP if can_leave() else AFTER_ITERATION)
        elif can_leave():
            leave()
        else:
            restore()
            signal.raise_signal(number)

    for number in SIGNALS:
        signal.signal(number, request)
    try:
        yield came.is_set
    finally:
        restore()


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
