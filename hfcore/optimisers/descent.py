"""Line searches one after the other along conjugate directions, on one function.

Vectors are flat, in memory that is kept from step to step: θ and the trial point lie as the
module's parameters would, so that the function is computed there without a copy. The direction is
held as q = −p, which is what the updates of conjugate gradients do in place:
θ ← θ − αq, q ← g + βq.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfcore.arguments import called, number
from hfcore.bindings.conjugate_gradient import cg_direction, dot
from hfcore.bindings.momentum import lookahead_point
from hfcore.bindings.threads import among_kernels
from hfcore.flat import FlatParameters, dense_gradients
from hfcore.flat_memory import joined, side_by_side
from hfcore.optimisers.flat_state import SideBySide
from hfcore.optimisers.wolfe_search import Trial, WolfeSearch


class Decay(NamedTuple):
    """½·l2·‖·‖² of a part of the flat vector."""

    l2: float
    part: slice


class Start(NamedTuple):
    """The function and the norm of its gradient where a step began."""

    value: float
    gradient_norm: float


class _Place:
    """Memory for all parameters: ``flat [1,N]``, and ``views`` in their shapes ``[…]``."""

    def __init__(self, parameters: FlatParameters) -> None:
        self.views = side_by_side(parameters.tensors)
        flat = joined(self.views)
        assert flat is not None
        self.flat = flat


class DescentMemory:
    """What a step works in: two places, the direction, two gradients, all of N numbers."""

    def __init__(self, parameters: FlatParameters) -> None:
        self._key = _key(parameters)
        self.here, self.there = _Place(parameters), _Place(parameters)
        self.q, self.gradient, self.kept = (torch.empty_like(self.here.flat[0]) for _ in range(3))
        self.given = SideBySide()

    def fits(self, parameters: FlatParameters) -> bool:
        """Whether it was made for parameters like these."""
        return self._key == _key(parameters)


def _key(parameters: FlatParameters) -> tuple[Any, ...]:
    shapes = [p.shape for p in parameters.tensors]
    return shapes, parameters.dtype, parameters.device


class Descent:
    """θ on its way down the function of ``closure``, with the terms of ``decays`` added."""

    def __init__(
        self,
        parameters: FlatParameters,
        memory: DescentMemory,
        closure: Callable[[], Any],
        decays: list[Decay],
    ) -> None:
        self._parameters, self._memory = parameters, memory
        self._closure, self._decays = closure, decays
        self._along: list[tuple[float, float, float]] = []
        self._trial_alpha = 0.0
        self.searches = self.failed = self.evaluations = 0
        self.alpha = 0.0
        self.moved = False
        self._in_closure, self._started = 0.0, time.perf_counter()

    # ---- what a step does

    def begin(self, before: Mapping[str, Any]) -> Start:
        """Take θ, f and ∇f; the direction is that of :meth:`direction` in ``before``, or −∇f.

        Raises ValueError where f or ∇f is not finite.
        """
        memory = self._memory
        with among_kernels(memory.q):
            for view, p in zip(memory.here.views, self._parameters.tensors, strict=True):
                view.copy_(p)
        value, given = self._evaluated(memory.here.views)
        self._copy_gradient(given, memory.here, memory.gradient)
        theta, self.value = memory.here.flat[0], value
        for l2, part in self._decays:
            self.value += 0.5 * l2 * dot(theta[part], theta[part])
        self._squared = dot(memory.gradient, memory.gradient)
        if not (math.isfinite(self.value) and math.isfinite(self._squared)):
            raise ValueError(
                f"closure: loss {self.value}, squared gradient norm {self._squared}, need finite "
                "values"
            )
        self._steepest()
        if "direction" in before:
            slope = -dot(before["direction"], memory.gradient)
            if slope < 0:
                memory.q.copy_(before["direction"])
                self._is_steepest, self._slope = False, slope
                self._first = before["alpha"] * before["slope"] / slope
        return Start(self.value, math.sqrt(self._squared))

    def advance(self, search: WolfeSearch, slope_ratio: float, *, turn: bool) -> bool:
        """One line search; whether another one may find more. ``turn``: with a new direction."""
        if self._slope == 0:
            return False
        self.searches += 1
        self._look_along()
        start = Trial(0.0, self.value, self._slope)
        found = search.search(self._at, start, self._first, self._keep)
        self.alpha = found.alpha
        if found is start:
            self.failed += 1
            was_steepest = self._is_steepest
            self._steepest()
            return not was_steepest
        self._accept(found)
        if turn:
            self._turn(found, slope_ratio)
        return True

    def direction(self) -> dict[str, Any]:
        """Where :meth:`begin` goes on: ``direction [N]``, α that was found last and its slope."""
        first = {"alpha": self._first, "slope": self._slope}
        return {"direction": self._memory.q.clone(), **first}

    @property
    def theta(self) -> Tensor:
        """The parameters, ``[N]``."""
        return self._memory.here.flat[0]

    def seconds(self) -> dict[str, float]:
        """Those of the closure, and all."""
        total = time.perf_counter() - self._started
        return {"gradient": self._in_closure, "total": total}

    # ---- one line search

    def _look_along(self) -> None:
        """‖θ‖², θᵀq and ‖q‖² of the parts that decay: their terms along the line cost no pass."""
        theta, q = self._memory.here.flat[0], self._memory.q
        self._along = [
            (dot(theta[part], theta[part]), dot(theta[part], q[part]), dot(q[part], q[part]))
            for _, part in self._decays
        ]

    def _at(self, alpha: float) -> Trial:
        """f and its slope at θ − αq."""
        memory = self._memory
        self._place(alpha)
        value, self._given = self._evaluated(memory.there.views)
        slope = -dot(self._given, memory.q)
        for (l2, _), (here, mixed, there) in zip(self._decays, self._along, strict=True):
            value += 0.5 * l2 * (here - 2 * alpha * mixed + alpha * alpha * there)
            slope += l2 * (alpha * there - mixed)
        return Trial(alpha, value, slope)

    def _keep(self, trial: Trial) -> None:
        """The gradient of the best trial so far, before the next one takes its place."""
        self._copy_gradient(self._given, self._memory.there, self._memory.kept)

    def _accept(self, found: Trial) -> None:
        memory = self._memory
        if self._trial_alpha != found.alpha:  # a later trial was worse
            self._place(found.alpha)
        memory.here, memory.there = memory.there, memory.here
        memory.gradient, memory.kept = memory.kept, memory.gradient
        self.value, self.moved = found.value, True

    def _turn(self, found: Trial, slope_ratio: float) -> None:
        """The Polak–Ribière+ direction at the new θ; ``kept`` holds the gradient before."""
        memory, before = self._memory, self._squared
        self._squared = dot(memory.gradient, memory.gradient)
        change = self._squared - dot(memory.gradient, memory.kept)
        beta = max(0.0, change / before)
        # −qᵀg of the new q = g + βq, the slope that was found being −qᵀg of the old one.
        slope = -self._squared + beta * found.slope
        if beta == 0.0 or not slope < 0:
            former = self._slope
            self._steepest()
            if self._slope < 0:
                self._first = found.alpha * min(slope_ratio, former / self._slope)
            return
        cg_direction(memory.q, memory.gradient, beta)
        self._first = found.alpha * min(slope_ratio, self._slope / slope)
        self._is_steepest, self._slope = False, slope

    def _steepest(self) -> None:
        """The direction −∇f, and how far to try along it where nothing is known."""
        _copy(self._memory.gradient, self._memory.q)
        self._is_steepest, self._slope = True, -self._squared
        self._first = 1.0 / (1.0 + self._squared)

    # ---- pieces

    def _place(self, alpha: float) -> None:
        """θ − αq into the place of trials."""
        memory = self._memory
        lookahead_point(memory.here.flat, memory.q[None], -alpha, out=memory.there.flat)
        self._trial_alpha = alpha

    def _evaluated(self, views: list[Tensor]) -> tuple[float, Tensor]:
        """The closure's value and gradient ``[N]`` with these values in the module."""
        started = time.perf_counter()
        with self._parameters.holding_views(views), torch.enable_grad():
            value = number("closure", called("closure", self._closure))
        self._in_closure += time.perf_counter() - started
        self.evaluations += 1
        gradients = dense_gradients(self._parameters.tensors)
        return value, self._memory.given.view(gradients)[0]

    def _copy_gradient(self, given: Tensor, at: _Place, out: Tensor) -> None:
        """∇f with the decay's part at a place, into memory of its own."""
        _copy(given, out)
        with among_kernels(out):
            for l2, part in self._decays:
                out[part].add_(at.flat[0][part], alpha=l2)


def _copy(given: Tensor, out: Tensor) -> None:
    """``given [N]`` into ``out [N]`` by the kernels' threads: torch's, among them, is one."""
    lookahead_point(given[None], given[None], 0.0, out=out[None])
