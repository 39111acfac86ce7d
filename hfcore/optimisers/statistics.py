"""What one Hessian-free step reports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hfcore.bindings.nvtx import annotate


@dataclass(frozen=True)
class StepStats:
    """One step in numbers; ``dataclasses.asdict`` of it is JSON but for inf and nan.

    ρ is the objective's change over the one that the quadratic foretold: 1 where both agree; below
    ¼ λ rises, above ¾ it falls. ρ = −∞ says that the objective rose, was not finite, or that CG
    gave nothing to try; NaN that the quadratic foretold no decrease to compare with. A healthy run
    has some of both; where most steps have them, the batches of curvature are too small.

    Work is counted in minibatches: one product, gradient or objective evaluation on one batch is 1.
    So are the passes of a diagonal preconditioner and of scale-sensitive damping: over the gradient
    data they are among the gradients, over the curvature data among the products.
    """

    loss: float  # objective on the gradient data, before the step
    line_search_loss: float  # objective on the line search data, before the step
    loss_after: float  # objective on the line search data, after the step
    rho: float  # reduction ratio ρ; −∞ and NaN are explained above
    damping: float  # the λ of this step
    damping_next: float  # the λ of the next step
    cg_iterations: int  # of this step
    cg_stop: str  # why CG stopped, such as "relative progress below tolerance"
    cg_kept: int  # the CG iterate that became the step, 0 for none
    alpha: float  # factor of the line search; 0: the step was rejected
    step_norm: float  # ‖αp‖
    gradient_norm: float  # ‖∇f‖ before the step
    products: int  # with the curvature, in minibatches
    gradients: int  # in minibatches
    objective_evaluations: int  # in minibatches
    seconds: dict[str, float]  # by phase, and "total"
    accepted: bool  # the parameters have moved
    converged: bool  # no step can be told from rounding any more
    messages: tuple[str, ...]  # sentences on what was out of the ordinary

    @property
    def minibatches(self) -> int:
        """The paper's cost: gradients and curvature products, what diagonals take among them."""
        return self.products + self.gradients


PHASES = (
    "prepare",
    "gradient",
    "curvature",
    "preconditioner",
    "products",
    "cg",
    "backtracking",
    "rho",
    "line_search",
)


class Ledger:
    """Counts the work of one step and the seconds of its phases (phases may nest)."""

    def __init__(self) -> None:
        self.products = 0
        self.gradients = 0
        self.objective_evaluations = 0
        self.messages: list[str] = []
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._open: list[str] = []
        self._started = self._mark = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time inside goes to ``name``, less what inner phases take; a profiler sees a range."""
        self._switch()
        self._open.append(name)
        try:
            with annotate(f"hf.{name}"):
                yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._mark
        self._mark = now

    def seconds(self) -> dict[str, float]:
        return {**self._seconds, "total": time.perf_counter() - self._started}
