"""A linear operator in the clothes of other libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hfcore.curvature.linear_operator import LinearOperator


def to_scipy(operator: LinearOperator) -> Any:
    """See :meth:`hfcore.curvature.linear_operator.LinearOperator.to_scipy`."""
    import numpy as np
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

    def apply(A: LinearOperator, V: Any) -> Any:
        if np.iscomplexobj(V):
            raise TypeError(f"v: got {V.dtype}, need real numbers")
        tensor = torch.as_tensor(V, dtype=A.dtype, device=A.device)
        return (A @ tensor).cpu().numpy()

    transpose = operator.mT
    return ScipyOperator(
        operator.shape,
        matvec=lambda v: apply(operator, v.reshape(-1)),
        rmatvec=lambda v: apply(transpose, v.reshape(-1)),
        matmat=lambda V: apply(operator, V),
        rmatmat=lambda V: apply(transpose, V),
        dtype=torch.empty(0, dtype=operator.dtype, device="cpu").numpy().dtype,
    )


def to_curvlinops(operator: LinearOperator) -> Any:
    """See :meth:`hfcore.curvature.linear_operator.LinearOperator.to_curvlinops`."""
    try:
        from curvlinops._torch_base import PyTorchLinearOperator
    except ImportError as error:
        raise ImportError(
            "to_curvlinops: needs the package curvlinops; install curvlinops-for-pytorch"
        ) from error

    class Exported(PyTorchLinearOperator):  # type: ignore[misc]  # it has no types
        """An operator of hfcore; every space is one flat vector."""

        def __init__(self, A: LinearOperator) -> None:
            M, N = A.shape
            super().__init__([(N,)], [(M,)])
            self.SELF_ADJOINT = A.symmetric
            self._operator = A

        def _matmat(self, X: list[Tensor]) -> list[Tensor]:
            return [self._operator.matmat(X[0])]

        def _adjoint(self) -> Exported:
            return Exported(self._operator.mT)

        @property
        def device(self) -> torch.device:
            return self._operator.device

        @property
        def dtype(self) -> torch.dtype:
            return self._operator.dtype

    return Exported(operator)
