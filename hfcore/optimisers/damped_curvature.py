"""The matrix of a step's solve, whose products are counted and timed."""

from __future__ import annotations

from torch import Tensor

from hfcore.objective import Curvature
from hfcore.optimisers.statistics import Ledger


class DampedCurvature:
    """A = B + λD + λμ G_S at one λ; D is diagonal (``scale [N]``), or I.

    One call is ``minibatches`` products of the ledger, if it is to count them.
    """

    def __init__(
        self,
        curvature: Curvature,
        ledger: Ledger,
        minibatches: int,
        *,
        damping: float,
        structural: float,
        scale: Tensor | None = None,
        counting: bool = True,
    ) -> None:
        self._curvature = curvature
        self._ledger = ledger
        self._minibatches = minibatches if counting else 0
        self._identity = damping if scale is None else 0.0
        self._damping = damping
        self._structural = structural
        self._scale = scale

    def __call__(self, v: Tensor, out: Tensor, stop: Tensor | None = None) -> Tensor:
        """A v in ``out [N]``, for ``v [N]``."""
        self._ledger.products += self._minibatches
        with self._ledger.phase("products"):
            self._curvature.product(
                v, damping=self._identity, structural=self._structural, out=out, stop=stop
            )
        if self._scale is not None:
            out.addcmul_(self._scale, v, value=self._damping)
        return out
