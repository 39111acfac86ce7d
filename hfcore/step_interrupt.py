"""Leaving a long step between two iterations of CG, where nothing has changed yet."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STDERR = 2
WITHIN = "stopping between two iterations of CG; again to stop at once"


class StepInterrupted(KeyboardInterrupt):
    """A step was left before its end: parameters and the optimiser's state are as before it."""


class _Step(threading.local):
    """The step of this thread; signals come to the main one alone."""

    running = False
    leaving = False
    agreed = False


_step = _Step()


def say(message: str) -> None:
    """A line on stderr from within a signal's handler, where a buffer may be in use."""
    with contextlib.suppress(OSError):
        os.write(STDERR, f"\n{message}\n".encode())


def can_leave() -> bool:
    """Whether a step runs in this thread that can still be asked to end early."""
    return _step.running and not _step.leaving


def leave() -> None:
    """Ask the step of this thread to end between two iterations of CG."""
    _step.leaving = True
    say(WITHIN)


def check_interrupt() -> None:
    """What a step calls where it may end. Raises :class:`StepInterrupted` if it was asked to.

    A step of several processes ends where they exchange who was asked, see :func:`leave_now`.
    """
    if _step.leaving and not _step.agreed:
        leave_now()


def asked_to_leave() -> bool:
    """Whether the step of this thread was."""
    return _step.leaving


def leave_now() -> None:
    """End the step. Raises :class:`StepInterrupted`."""
    raise StepInterrupted("the step was left: parameters and optimiser are as before it")


@contextmanager
def interruptible_step(*, agreed: bool = False) -> Iterator[None]:
    """A step that calls :func:`check_interrupt`; ``agreed``: several processes end it together.

    Where Ctrl-C would raise KeyboardInterrupt anywhere, a first one ends the step at the next
    check, or after it if there is none; a second one acts at once. Whoever else handles SIGINT
    decides himself, see :func:`leave`.
    """
    if _step.running:  # a step of another optimiser within this one's closure
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    alone = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def request(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        leave()

    _step.running, _step.leaving, _step.agreed = True, False, agreed
    if alone:
        signal.signal(signal.SIGINT, request)
    try:
        yield
        if alone and _step.leaving:
            raise KeyboardInterrupt("after a whole step")
    finally:
        _step.running = _step.leaving = _step.agreed = False
        if alone and signal.getsignal(signal.SIGINT) is request:
            signal.signal(signal.SIGINT, signal.default_int_handler)
