"""The callbacks of a run, all of them together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hfcore.training.callbacks import Callback, CallbackStates, StopRequest, TrainState
from hfcore.training.metrics_log import as_python


class Hooks:
    """Calls each of them in their order; the first reason to stop that one gives counts."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks
        self.states = CallbackStates(callbacks)

    @contextlib.contextmanager
    def running(self, state: Callable[[], TrainState]) -> Iterator[str | None]:
        """They begin and, those that have begun, end; gives the reason to train not at all."""
        begun: list[Callback] = []
        try:
            reasons = []
            for callback in self._callbacks:
                reasons.append(_reason(callback.on_train_begin(state())))
                begun.append(callback)
            yield _first(reasons)
        finally:
            for callback in begun:
                callback.on_train_end(state())

    def after_step(self, state: TrainState) -> str | None:
        """The reason to stop after an iteration."""
        return _first([_reason(callback.on_step(state)) for callback in self._callbacks])

    def measure(self, state: TrainState) -> dict[str, Any]:
        """What they add to the line of an iteration, which ``state.metrics`` is, one by one."""
        line = state.metrics
        for callback in self._callbacks:
            added = callback.measure(state)
            if not isinstance(added, Mapping):
                raise TypeError(
                    f"{type(callback).__name__}.measure: gave {type(added).__name__}, need a dict "
                    "of columns by name"
                )
            line |= {key: as_python(value) for key, value in added.items()}
        return line


def _first(reasons: Sequence[str | None]) -> str | None:
    return next(filter(None, reasons), None)


def _reason(asked: StopRequest) -> str | None:
    """Why a callback wants to stop, None if it does not."""
    return asked if isinstance(asked, str) else "callback" if asked else None
