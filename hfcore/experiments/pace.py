"""How long the runs of a command take: an order of magnitude beforehand, then by their own pace.

Beforehand a run's floating-point operations, counted from its sizes, are divided by the rate of a
matrix product on the same device, which runs side by side share. A gradient and a curvature product
count three products with the weights each: forward, backward, and for the weights themselves. What
Hessian-free takes of iterations of CG is not known then, and counts ``CG_ITERATIONS``.

As runs end, what they took beside what was expected of them corrects the rest. A run that is there
already ends at once and counts nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import torch

from hfcore.cli.tables import clock

CG_ITERATIONS = 50  # of a step, before the first is known
CURVES_IMAGES = 20_000  # of the training part
SIDE = 512  # of the matrices whose product is timed
AT_ONCE = 0.5  # seconds: what ends sooner was there already
FIRST_TOLD, LAST_TOLD = 20.0, 600.0  # seconds between two lines within a run, which double

# Below so many seconds, what is said of them.
ORDERS = (
    (15.0, "some seconds"),
    (100.0, "about a minute"),
    (900.0, "some minutes"),
    (2_700.0, "about half an hour"),
    (7_200.0, "about an hour"),
    (36_000.0, "some hours"),
    (200_000.0, "about a day"),
    (1_200_000.0, "some days"),
)
LONGEST = "weeks"


def gradients(parameters: float, rows: float, count: float = 1.0) -> float:
    """Floating-point operations of ``count`` gradients or curvature products.

    Each is over ``rows`` cases, of a recurrent net cases times steps, of ``parameters`` weights.
    """
    return 6.0 * parameters * rows * count


def hessian_free(parameters: float, rows: float, curvature_rows: float) -> float:
    """Those of one iteration: a gradient over ``rows``, products over ``curvature_rows``."""
    return gradients(parameters, rows) + gradients(parameters, curvature_rows, CG_ITERATIONS)


def autoencoder_parameters(encoder_sizes: Sequence[int]) -> int:
    """Weights and biases of the autoencoder with this encoder."""
    return sum(2 * a * b + a + b for a, b in pairwise(encoder_sizes))


class HasSizes(Protocol):
    """A problem of which the width of inputs and outputs is known."""

    input_size: int
    output_size: int


def recurrent_parameters(task: HasSizes, hidden: int) -> int:
    """Weights and biases of the plain recurrent net of a problem."""
    return hidden * (task.input_size + hidden + 2) + task.output_size * (hidden + 1)


def operations_a_second(device: torch.device) -> float:
    """The rate of a float32 matrix product on ``device``, the best of a few."""
    a = torch.ones(SIDE, SIDE, device=device)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        float((a @ a)[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - began)
    return 2.0 * SIDE**3 / best


def roughly(seconds: float) -> str:
    """Its order of magnitude in words."""
    return next((text for below, text in ORDERS if seconds < below), LONGEST)


class Pace:
    """The runs of one call by name, with the floating-point operations expected of each.

    ``limits``: the most seconds of runs that have such a limit. ``at_most``: what is expected are
    limits, and a run that is solved ends sooner. ``workers`` runs go on at a time. ``what`` they
    are called. ``tell`` is given a line of text now and then. ``now`` is the clock.
    """

    def __init__(
        self,
        operations: Mapping[Hashable, float],
        device: torch.device,
        *,
        limits: Mapping[Hashable, float] | None = None,
        at_most: bool = False,
        workers: int = 1,
        what: str = "run",
        tell: Callable[[str], None] = lambda line: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._waiting = dict(operations)
        self._device, self._limits, self._at_most = device, dict(limits or {}), at_most
        self._workers, self._what, self._tell, self._now = workers, what, tell, now
        self._running: dict[Hashable, float] = {}  # when it began
        self._shares: dict[Hashable, float] = {}
        self._before: dict[Hashable, float] = {}
        self._done = 0
        self._worked = 0.0  # operations of runs that are done
        self._took = 0.0  # their seconds, of all workers together
        self._next, self._step = float("inf"), FIRST_TOLD

    def expect(self) -> None:
        """Say the order of magnitude, before the first run."""
        if not self._waiting:
            return
        rate, inf = operations_a_second(self._device), float("inf")
        seconds = sum(
            min(operations / rate, self._limits.get(run, inf))
            for run, operations in self._waiting.items()
        )
        most = " at most; one that is solved ends sooner" if self._at_most else ""
        many = f"{len(self._waiting)} {self._what}s, which by their size take"
        runs = many if len(self._waiting) > 1 else f"1 {self._what}, which by its size takes"
        self._tell(f"{runs} {roughly(seconds)}{most}")

    def begin(self, run: Hashable, before: float = 0.0) -> None:
        """A run begins, or goes on where the share ``before`` of it is done.

        One that is not among those of the call is passed over, here and below.
        """
        if run not in self._waiting:
            return
        self._running[run] = self._now()
        self._shares[run] = self._before[run] = before
        self._next = min(self._next, self._now() + self._step)

    def within(self, run: Hashable, share: float) -> None:
        """``share`` of a run is done, 0 to 1; says how long all take, not too often."""
        if run not in self._running:
            return
        self._shares[run] = share
        now = self._now()
        if now >= self._next:
            self._step = min(2 * self._step, LAST_TOLD)
            self._next = now + self._step
            self._tell(str(self))

    def end(self, run: Hashable) -> None:
        """A run is done; says how long the others take."""
        operations = self._waiting.pop(run, 0.0)
        if run not in self._running:
            return
        self._shares.pop(run)
        operations *= 1.0 - self._before.pop(run)
        took = self._now() - self._running.pop(run)
        if took < AT_ONCE:
            return
        self._done += 1
        self._worked += operations
        self._took += took
        if self._waiting:
            self._tell(str(self))

    @property
    def left(self) -> float | None:
        """Seconds; None while nothing can be said."""
        now, inf = self._now(), float("inf")
        spent = {run: now - began for run, began in self._running.items()}
        # Of a run in another process it is not known how far it is.
        known = [run for run in spent if self._shares[run] > self._before[run]]
        worked, took = self._worked, self._took + sum(spent[run] for run in known)
        worked += sum((self._shares[run] - self._before[run]) * self._waiting[run] for run in known)
        if worked <= 0.0 or took <= 0.0:
            return None
        seconds = 0.0
        for run, operations in self._waiting.items():
            rest = operations * (1.0 - self._shares.get(run, 0.0)) * took / worked
            if run in spent and run not in known:
                rest -= spent[run]
            seconds += max(0.0, min(rest, self._limits.get(run, inf) - spent.get(run, 0.0)))
        return seconds / min(self._workers, max(1, len(self._waiting)))

    def __str__(self) -> str:
        """``2 of 6 runs done, at this pace 3 min 20 s more``."""
        done = f"{self._done} of {self._done + len(self._waiting)} {self._what}s done"
        left = self.left
        if left is None:
            return done
        most = "at most " if self._at_most and not self._done else ""
        return f"{done}, at this pace {most}{clock(left)} more"
