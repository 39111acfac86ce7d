"""Ctrl-C at a chosen moment of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from hfcore.sweeps import engine


class Interrupt:
    """Asks to stop after so many questions, those of all sweeps together."""

    def __init__(self, after: int) -> None:
        self.after = after

    @contextmanager
    def __call__(self) -> Iterator[Callable[[], bool]]:
        yield self._came

    def _came(self) -> bool:
        self.after -= 1
        return self.after < 0


@contextmanager
def interrupted_sweeps(after: int) -> Iterator[None]:
    """Sweeps that begin inside are asked to stop after so many questions whether they should."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "stop_on_signal", Interrupt(after))
        yield
