"""The one interface through which an optimiser sees a model, its loss and its data."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

CurvatureKind = Literal["ggn", "hessian", "hessian_fd", "fisher"]
CURVATURE_KINDS = ("ggn", "hessian", "hessian_fd", "fisher")


class Curvature(Protocol):
    """A curvature matrix at fixed parameters and data, as products with flat vectors."""

    @property
    def loss(self) -> float:
        """Objective on the curvature data at those parameters."""

    def product(
        self,
        v: Tensor,
        *,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """(B + damping·I + structural·G_S) v for ``v [N]``; B holds the L2 term.

        ``stop`` (int32 ``[1]``, on v's device) is given where ``supports_stop``: where it is not
        zero nobody reads the product, and kernels exit at once.
        """

    def products(self, V: Tensor, damping: float = 0.0, structural: float = 0.0) -> Tensor:
        """The same for the rows of ``V [m,N]``."""

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag(G) ``[N]`` of the Gauss-Newton matrix without L2 and damping.

        With ``probes`` an unbiased estimate from that many probes a case (M&S 2012, section
        20.11.4; Chapelle & Erhan 2011); None: exact, at one probe per output.
        """


class Objective(Protocol):
    """f(θ) = mean loss over cases + ½ l2 ‖θ‖², its gradient and its curvature.

    ``data`` is what :meth:`prepare` gave; ``theta [N]`` is a flat parameter vector, which need
    not be what the model holds.
    """

    supports_structural: bool
    supports_stop: bool
    l2: float

    def prepare(self, data: Any) -> Any:
        """Check data once and bring it to the form that the other methods take."""

    def minibatches(self, data: Any) -> int:
        """How many minibatches one pass over the data counts."""

    def loss(self, data: Any, theta: Tensor) -> float:
        """f(θ) on the data."""

    def gradient(self, data: Any, theta: Tensor) -> tuple[float, Tensor]:
        """f(θ) and ∇f(θ) ``[N]`` on the data."""

    def curvature(self, data: Any, theta: Tensor, kind: CurvatureKind = "ggn") -> Curvature:
        """The curvature at θ on the data, activations cached.

        Raises ValueError with the reason for a kind that is not served.
        """

    def squared_gradients(self, data: Any, theta: Tensor) -> Tensor:
        """Mean over cases of the squared gradient of each ``[N]``, without the L2 term."""
