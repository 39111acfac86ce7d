"""What every curvature operator can do: products with flat vectors, SciPy, estimators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.batches import Batch
from hfcore.bindings.checks import check_tensor
from hfcore.curvature import estimators
from hfcore.flat import FlatParameters
from hfcore.losses import Loss
from hfcore.objective import CurvatureKind
from hfcore.objective_factory import curvature_of, objective_for

AnyLoss = Loss | Callable[..., Tensor] | None
AnyModel = nn.Module | Iterable[nn.Parameter]


def check_nonnegative(name: str, value: float) -> float:
    """Check a damping-like number: finite and not negative. Raises ValueError."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: got {value}, need a finite number that is not negative")
    return float(value)


class CurvatureOperator:
    """A = B + damping·(I + structural·G_S) at the model's present parameters, symmetric ``[N,N]``.

    B is a curvature of the mean loss (with the objective's L2, if any). Vectors are flat, in the
    order of ``model.parameters()``; activations are cached once, so that an operator outlives later
    changes of the parameters and stays at the old ones. The subclasses say what B is and take the
    data; ``loss`` is the objective there.
    """

    def __init__(
        self,
        kind: CurvatureKind,
        model: AnyModel,
        loss: AnyLoss,
        inputs: Any,
        targets: Any,
        mask: Tensor | None,
        *,
        damping: float,
        structural: float | Mapping[str, Any],
        **options: Any,
    ) -> None:
        self.damping = check_nonnegative("damping", damping)
        self.structural = structural
        # With named submodules every μ is in the objective.
        self._mu = 1.0
        if not isinstance(structural, Mapping):
            self._mu = self.structural = check_nonnegative("structural", structural)
        if not isinstance(model, nn.Module):
            model = list(model)
        self._objective = objective_for(model, loss, structural=structural, **options)
        parameters = FlatParameters(model)
        theta = parameters.read()
        bad = parameters.first_bad(theta)
        if bad is not None:
            raise ValueError(f"model: parameter {bad} holds NaN or Inf, need finite values")
        self._data = self._objective.prepare(_data(inputs, targets, mask))
        self._curvature = curvature_of(self._objective, self._data, theta, kind)
        self._like = theta
        self.loss = self._curvature.loss

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N) for N parameters."""
        return (self._like.numel(), self._like.numel())

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def strategy(self) -> str:
        """How products are computed: ``"fused"``, or a strategy of ``autograd/strategies.py``."""
        return getattr(self._curvature, "strategy", "fused")

    def matvec(self, v: Tensor, *, out: Tensor | None = None) -> Tensor:
        """A v for ``v [N]``; with ``out [N]`` the result is written there. ``out`` must not be
        ``v``."""
        check_tensor("v", v, [self.shape[1]], like=self._like)
        if out is not None and out.data_ptr() == v.data_ptr():
            raise ValueError("out: shares memory with v, need a buffer of its own")
        return self._curvature.product(
            v, damping=self.damping, structural=self.damping * self._mu, out=out
        )

    def matmat(self, V: Tensor) -> Tensor:
        """A V for ``V [N,m]``, all m vectors in one pass over the data where that is served."""
        check_tensor("V", V, [self.shape[1], "m"], like=self._like)
        if V.shape[1] == 0:
            return torch.empty_like(V)
        rows = V.mT.contiguous()
        return self._curvature.products(rows, self.damping, self.damping * self._mu).mT

    def __matmul__(self, v: Tensor) -> Tensor:
        if isinstance(v, Tensor) and v.ndim == 2:
            return self.matmat(v)
        return self.matvec(v)

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator`` on NumPy vectors of the same dtype."""
        from scipy.sparse.linalg import LinearOperator

        numpy_dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def apply(V: Any) -> Any:
            tensor = torch.as_tensor(V, dtype=self.dtype, device=self.device)
            return (self @ tensor).cpu().numpy()

        return LinearOperator(
            self.shape,
            matvec=lambda v: apply(v.reshape(-1)),
            rmatvec=lambda v: apply(v.reshape(-1)),
            matmat=apply,
            rmatmat=apply,
            dtype=numpy_dtype,
        )

    def trace(self, probes: int | None = None, generator: torch.Generator | None = None) -> float:
        """tr A: exact for ``probes`` None (N products), else Hutchinson's unbiased estimate from
        that many."""
        estimators.check_probes(probes)
        return estimators.trace(self.matmat, self._like, probes, generator)

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag A ``[N]``: exact for ``probes`` None (N products), else an unbiased estimate."""
        estimators.check_probes(probes)
        return estimators.diagonal(self.matmat, self._like, probes, generator)

    def eigenvalues(self, k: int, *, which: str = "LA", tolerance: float = 0.0) -> Tensor:
        """The k largest eigenvalues in descending order, by SciPy's ``eigsh``.

        ``which``: ``"LA"``, the k smallest in ascending order with ``"SA"``, the k largest in
        magnitude with ``"LM"``. ``tolerance`` is relative, 0 the machine's. Raises SciPy's
        ArpackNoConvergence, above all for the many equal smallest ones of a damped matrix.
        """
        return estimators.eigenvalues(self.to_scipy(), k, which, tolerance)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, "
            f"damping={self.damping}, structural={self.structural})"
        )


def _data(inputs: Any, targets: Any, mask: Tensor | None) -> Any:
    """Inputs with targets are one batch; alone they are a list of batches, or a closure."""
    if targets is not None or isinstance(inputs, Tensor):
        return Batch(inputs, targets, mask)
    if mask is not None:
        raise ValueError("mask: belongs to inputs and targets; a batch or a closure has its own")
    return inputs
