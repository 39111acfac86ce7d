"""Spectral radius of dense and of sparse matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg
from torch import Tensor

# Up to this size all eigenvalues are computed; it takes below a second.
DENSE_SIZE = 500


def rows_to_csr(index: Tensor, values: Tensor) -> Any:
    """The square ``scipy.sparse.csr_array`` of fan-in rows.

    ``index`` int ``[H,F]``, ``values [H,F]``: row i has ``values[i]`` in the columns ``index[i]``.
    """
    H, F = index.shape
    return scipy.sparse.csr_array(
        (
            values.detach().cpu().double().numpy().ravel(),
            index.detach().cpu().numpy().ravel(),
            np.arange(0, H * F + 1, F),
        ),
        shape=(H, H),
    )


def spectral_radius(matrix: Any) -> float:
    """Largest absolute eigenvalue of a square matrix: an array, or anything scipy.sparse.

    Up to 500 rows all eigenvalues are computed. Beyond, Arnoldi iterations (ARPACK) from a fixed
    start find the leading ones without forming the matrix, so that the same matrix gives the same
    number. A matrix whose graph has no cycle is nilpotent: exactly 0.
    """
    A = scipy.sparse.csr_array(matrix)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.shape[0] < 1:
        raise ValueError(f"matrix: got shape {list(A.shape)}, need a square one")
    if not np.isfinite(A.data).all():
        raise ValueError("matrix: holds values that are not finite, need finite ones")
    H = A.shape[0]
    A.eliminate_zeros()
    components, _ = scipy.sparse.csgraph.connected_components(A, connection="strong")
    if components == H and not A.diagonal().any():
        return 0.0
    if H <= DENSE_SIZE:
        return float(np.abs(np.linalg.eigvals(A.toarray())).max())
    start = np.ones(H) + np.cos(1.3 * np.arange(H))
    leading = scipy.sparse.linalg.eigs(
        A, k=6, ncv=80, which="LM", v0=start, tol=1e-6, return_eigenvectors=False
    )
    return float(np.abs(leading).max())
