"""The one interface through which optimisers and operators see a model, its loss and its data.

Whatever has the methods serves; subclassing :class:`Objective` and :class:`Curvature` adds the
defaults of those that may be left out. ``hf.HessianFree(model, objective=...)`` and the operators
check what an objective of one's own gives, see :mod:`hfcore.checked_objective`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, Protocol, TypedDict

import torch
from torch import Tensor

CurvatureKind = Literal["ggn", "hessian", "hessian_fd", "fisher"]
CURVATURE_KINDS = ("ggn", "hessian", "hessian_fd", "fisher")

# λ₀ of an objective that names none.
DAMPING_START = 1.0


class ProductTerms(TypedDict, total=False):
    """The keywords of :meth:`Curvature.product`, where they are passed on.

    ``out [N]``, ``stop [1]`` int32, or None.
    """

    damping: float
    structural: float
    out: Tensor | None
    stop: Tensor | None


class Curvature(Protocol):
    """A curvature matrix at fixed parameters and data, as products with flat vectors.

    One's own needs :meth:`product`, of which ``v`` alone is enough: what it does not take is done
    for it (damping added, the result copied to ``out``).
    """

    loss: float
    """Objective on the curvature data at those parameters; left out: ``Objective.loss`` there."""

    @abstractmethod
    def product(
        self,
        v: Tensor,
        *,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """(B + damping·I + structural·G_S) v ``[N]`` for ``v [N]``; B holds the L2 term.

        ``structural`` is 0 without ``supports_structural``. ``stop`` (int32 ``[1]``, on v's device)
        is given where ``supports_stop``: where it is not zero nobody reads the product, and kernels
        exit at once. The result is written to ``out [N]`` where that is given, which never shares
        memory with ``v``.
        """

    def products(self, V: Tensor, damping: float = 0.0, structural: float = 0.0) -> Tensor:
        """The same for the rows of ``V [m,N]``; left out: one product after the other."""
        return torch.stack([self.product(v, damping=damping, structural=structural) for v in V])

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag(G) ``[N]`` of the Gauss-Newton matrix without L2 and damping.

        With ``probes`` an unbiased estimate from that many probes a case (M&S 2012, section
        20.11.4; Chapelle & Erhan 2011); None: exact, at one probe per output. Left out: what needs
        it is refused.
        """
        raise NotImplementedError


class UnstoppableCurvature(Curvature):
    """A curvature whose products are new vectors, computed whatever ``stop`` says."""

    def product(
        self, v: Tensor, *, damping: float = 0.0, structural: float = 0.0,
        out: Tensor | None = None, stop: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(B + damping·I + structural·G_S) v ``[N]`` for ``v [N]``."""
        result = self._product(v, damping, structural)
        return result if out is None else out.copy_(result)

    @abstractmethod
    def _product(self, v: Tensor, damping: float, structural: float) -> Tensor:
        """The same as a new vector."""


class Objective(Protocol):
    """f(θ) = mean loss over cases + ½ l2 ‖θ‖², its gradient and its curvature.

    ``data`` is what :meth:`prepare` gave; ``theta [N]`` is a flat parameter vector in the order of
    ``model.parameters()``, which need not be what the model holds, and is not to be written to.
    :meth:`loss`, :meth:`gradient` and :meth:`curvature` are required.

    >>> class Rosenbrock(hf.Objective):
    ...     def loss(self, data, theta):
    ...         return float((1 - theta[0]) ** 2 + 100 * (theta[1] - theta[0] ** 2) ** 2)
    """

    supports_structural: bool = False
    """Whether products take ``structural``."""
    supports_stop: bool = False
    """Whether products run on this package's kernels, which look at ``stop``."""
    l2: float = 0.0
    """Weight of ½‖θ‖², which is in loss, gradient and products."""

    def prepare(self, data: Any) -> Any:
        """Check data once and bring it to the form that the other methods take.

        Data is an :class:`hfcore.Batch` or a list of them where a step or an operator was given
        ``(x, y[, mask])`` or batches, otherwise what it was given. Left out: as it came. A list of
        one part for a batch says that parts of several may be joined to one list.
        """
        return data

    def minibatches(self, data: Any) -> int:
        """How many minibatches one pass over the data counts; left out: 1."""
        return 1

    def damping_start(self, data: Any) -> float:
        """λ₀ where ``damping="auto"``, at the gradient data of the first step; left out: 1."""
        return DAMPING_START

    @abstractmethod
    def loss(self, data: Any, theta: Tensor) -> float:
        """f(θ) on the data, for ``theta [N]``."""

    @abstractmethod
    def gradient(self, data: Any, theta: Tensor) -> tuple[float, Tensor]:
        """f(θ) and ∇f(θ) ``[N]`` on the data, of θ's dtype and device."""

    @abstractmethod
    def curvature(self, data: Any, theta: Tensor, kind: CurvatureKind = "ggn") -> Curvature:
        """The curvature at ``theta [N]`` on the data, activations cached.

        It keeps what it needs of θ. Without the argument ``kind`` it serves ``"ggn"`` alone;
        ``"hessian_fd"`` is never asked for. Raises ValueError with the reason for a kind that is
        not served.
        """

    def squared_gradients(self, data: Any, theta: Tensor) -> Tensor:
        """Mean over cases of the squared gradient of each ``[N]``, without the L2 term.

        Left out: ``preconditioner="fisher"`` is refused.
        """
        raise NotImplementedError
