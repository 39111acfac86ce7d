"""``hf.GaussNewton``: the damped Gauss-Newton matrix of a model as an ``@``-able operator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.bindings.checks import check_tensor
from hfcore.curvature.rnn import Normalize, RnnObjective, StructuralDistance
from hfcore.flat import FlatParameters
from hfcore.losses import Loss
from hfcore.models.rnn import RNN


def check_nonnegative(name: str, value: float) -> float:
    """Check a damping-like number: finite and not negative. Raises ValueError."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: got {value}, need a finite number that is not negative")
    return float(value)


class GaussNewton:
    """A = G_f + damping·(I + structural·G_S) at the model's present parameters.

    G_f = JᵀL''J of the mean loss over ``inputs [T,B,n]`` (Martens & Sutskever 2011, Algorithm 1)
    and G_S the Gauss-Newton matrix of the structural distance between hidden states, whose
    D'' = e'(t) (for tanh 1 − h²) is not masked. ``damping`` is λ and ``structural`` is μ. Vectors
    are flat ``[N]``, in the order of ``model.parameters()``; activations are cached once, so an
    operator outlives later changes of the parameters and stays at the old ones.

    Parameters
    ----------
    model : hf.RNN
    loss : a loss of ``hf.losses`` that matches the output nonlinearity
    inputs, targets, mask : as in :class:`hfcore.Batch`
    normalize : ``"sequences"`` divides sums by B (the paper), ``"outputs"`` by the number of
        unmasked outputs (the original release)
    structural_distance : ``"matching"`` or ``"quarter"`` (the release's 0.25·(1 − h²))

    Raises TypeError or ValueError naming what is wrong with the data, the parameters (NaN or Inf)
    or an option.
    """

    def __init__(
        self,
        model: RNN,
        loss: Loss,
        inputs: Tensor,
        targets: Tensor,
        *,
        mask: Tensor | None = None,
        damping: float = 0.0,
        structural: float = 0.0,
        normalize: Normalize = "sequences",
        structural_distance: StructuralDistance = "matching",
    ) -> None:
        if not isinstance(model, RNN):
            raise TypeError(
                f"model: got {type(model).__name__}, need an hf.RNN; for other modules "
                "hf.HessianFree takes a closure"
            )
        self.damping = check_nonnegative("damping", damping)
        self.structural = check_nonnegative("structural", structural)
        objective = RnnObjective(
            model, loss, normalize=normalize, structural_distance=structural_distance
        )
        parameters = FlatParameters(model)
        theta = parameters.read()
        bad = parameters.first_bad(theta)
        if bad is not None:
            raise ValueError(f"model: parameter {bad} holds NaN or Inf, need finite values")
        data = objective.prepare(Batch(inputs, targets, mask))
        self._curvature = objective.curvature(data, theta)
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

    def matvec(self, v: Tensor, *, out: Tensor | None = None) -> Tensor:
        """A v for ``v [N]``; with ``out [N]`` nothing is allocated. ``out`` must not be ``v``."""
        check_tensor("v", v, [self.shape[1]], like=self._like)
        return self._curvature.product(
            v, damping=self.damping, structural=self.damping * self.structural, out=out
        )

    def matmat(self, V: Tensor) -> Tensor:
        """A V for ``V [N,m]``, all m vectors in one pass over the data."""
        check_tensor("V", V, [self.shape[1], "m"], like=self._like)
        if V.shape[1] == 0:
            return torch.empty_like(V)
        rows = V.mT.contiguous()
        return self._curvature.products(rows, self.damping, self.damping * self.structural).mT

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

    def __repr__(self) -> str:
        return (
            f"GaussNewton(shape={self.shape}, dtype={self.dtype}, damping={self.damping}, "
            f"structural={self.structural})"
        )
