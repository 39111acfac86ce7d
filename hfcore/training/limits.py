"""When a run ends at the latest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hfcore.arguments import count, naming_fields, positive


@naming_fields
@dataclass(frozen=True)
class Limits:
    """A run stops at the first limit it meets; None is no limit. A resume may have others.

    Args:
        iterations: of the whole run.
        minibatches: gradients and curvature products, each over 1000 cases; the iteration that
            crosses it is the last one.
        seconds: of data and steps, without tests, callbacks and checkpoints.

    Raises ValueError naming the limit that is not positive, TypeError for iterations that are no
    int.
    """

    iterations: int | None = None
    minibatches: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                check: Callable[[str, Any], float] = count if name == "iterations" else positive
                object.__setattr__(self, name, check(name, value))

    def reached(self, iteration: int, minibatches: float, seconds: float) -> str | None:
        """The name of the limit that is met: ``"budget"`` (of minibatches), ``"iterations"`` or
        ``"seconds"``."""
        spent = (
            ("budget", minibatches, self.minibatches),
            ("iterations", iteration, self.iterations),
            ("seconds", seconds, self.seconds),
        )
        return next((name for name, x, most in spent if most is not None and x >= most), None)

    def config(self) -> dict[str, Any]:
        """The limits that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}
