"""CG that does not wait for the host: same rules and results as ``conjugate_gradient.py``.

α, β, φ, the stop test and the copies of iterates to be judged later are made on the device; the
host looks every few iterations. What is enqueued beyond the end exits at once, so the result does
not depend on how often it looks, to the last bit.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from hfcore.bindings.device_conjugate_gradient import (
    DeviceSolve,
    KeptSolves,
    StoppableProduct,
    serves,
)
from hfcore.solvers.conjugate_gradient import (
    MAX_ITERATIONS,
    NONFINITE,
    NONPOSITIVE,
    OBSERVER,
    PROGRESS,
    RESIDUAL,
    Observer,
    Solution,
    StopRule,
    applied,
    check_definite,
)
from hfcore.solvers.preconditioners import Preconditioner
from hfcore.step_interrupt import check_interrupt

__all__ = ["device_conjugate_gradient", "serves"]

# By the value of the stop flag, RUNNING first; the last is an iterate that is not finite itself.
REASONS = ("", MAX_ITERATIONS, PROGRESS, RESIDUAL, NONPOSITIVE, NONFINITE, NONFINITE)
BAD_ITERATE = len(REASONS) - 1

LOOK_EVERY = 10
# Iterations for which memory is taken at first.
ROOM = 512


def device_conjugate_gradient(
    product: StoppableProduct,
    b: Tensor,
    x0: Tensor,
    *,
    rule: StopRule,
    observer: Observer | None = None,
    observe_at: Sequence[int] | None = None,
    preconditioner: Tensor | Preconditioner | None = None,
    look_every: int = LOOK_EVERY,
    recorded: bool = False,
    solves: KeptSolves | None = None,
    key: Hashable = None,
    room: int = ROOM,
) -> tuple[Solution, int]:
    """Solve A x = b ``[N]`` from ``x0`` on their device; gives the solution and the products done.

    ``product(v, out, stop)`` may skip its work where the int32 flag ``stop`` is not zero. The
    observer sees the iterates in ``observe_at`` (ascending; None: all), but only when the host
    looks: where it ends the solve, the later iterations were in vain. ``recorded``: product and
    preconditioner wait for nothing and may be replayed from a CUDA graph. So they may with
    ``solves``, which keeps workspace and recordings for later solves: products of equal ``key``
    give the same launches on the same memory, whichever solve they were recorded in, and the
    preconditioner is a diagonal or None (ValueError). Memory is taken for ``room`` iterations at
    first, and for twice as many where they do not suffice.
    Everything else as in :func:`hfcore.solvers.conjugate_gradient.conjugate_gradient`.
    """
    if look_every < 1:
        raise ValueError(f"look_every: got {look_every}, need at least 1")
    inverse = None if isinstance(preconditioner, Tensor) else preconditioner
    if solves is not None and inverse is not None:
        raise ValueError("preconditioner: got an operator, need a diagonal or None with solves")
    most = rule.max_iterations
    wanted = _wanted(observe_at, most) if observer is not None else ()
    room = min(room, most)
    kept = _between(wanted, 0, room)
    given: dict[str, Any] = {
        "lookback": [lookback(rule, i) for i in range(room + 1)],
        "kept": kept,
        "tolerance": rule.tolerance,
        "residual": rule.residual,
        "preconditioner": preconditioner if isinstance(preconditioner, Tensor) else None,
    }
    if solves is not None:
        solve = solves.take(b, **given)
    else:
        apply = None if inverse is None else lambda r, z: applied(inverse, r, z)
        solve = DeviceSolve(b, **given, inverse=apply, recorded=recorded)

    def ended(stop: str, i: int, x: Tensor, direction: Tensor | None = None) -> Solution:
        """The solution, which has nothing of a workspace that the next solve writes to."""
        solution = Solution(
            x.clone(),
            stop,
            i,
            history[: i + 1],
            direction=None if direction is None else direction.clone(),
        )
        if solves is not None:
            solves.keep(solve)
        return solution

    solve.begin(product, b, x0)
    observed = 0
    while True:
        check_interrupt()  # the device has done all that it was given
        for _ in range(look_every):
            solve.iterate(product, key)
        stop, iterations, products = solve.look()
        if inverse is not None:
            check_definite(solve.rz)
        history = solve.history(iterations)
        # An iterate that is not finite is nobody's candidate.
        last = iterations - (stop == BAD_ITERATE)
        for i in (i for i in kept if observed < i <= last):
            # The flag is raised before the iterate is copied aside: the last one is x itself.
            x = solve.x if stop and i == iterations else solve.snapshot(i)
            assert observer is not None
            if observer(i, x, history[i]):
                return ended(OBSERVER, i, x), products
        observed = iterations
        if REASONS[stop] == MAX_ITERATIONS and room < most:
            before, room = room, min(2 * room, most)
            kept = _between(wanted, before, room)
            solve.grow([lookback(rule, i) for i in range(room + 1)], kept)
        elif stop:
            reason = REASONS[stop]
            direction = solve.direction if reason == NONPOSITIVE else None
            return ended(reason, iterations, solve.x, direction), products


def lookback(rule: StopRule, i: int) -> int:
    """k of the progress rule at iteration i, 0 where it does not apply."""
    k = max(rule.lookback, math.ceil(rule.lookback_fraction * i))
    return k if i >= rule.min_iterations and i > k else 0


def _wanted(observe_at: Sequence[int] | None, most: int) -> Sequence[int]:
    """The iterations whose iterate the observer sees, ascending; a range is not written out."""
    wanted = range(1, most + 1) if observe_at is None else observe_at
    if wanted and wanted[0] < 1:
        raise ValueError(f"observe_at: got {wanted[0]}, need iterations from 1 on")
    return wanted


def _between(wanted: Sequence[int], low: int, high: int) -> Sequence[int]:
    """Those in (low, high]."""
    return wanted[bisect_right(wanted, low) : bisect_right(wanted, high)]
