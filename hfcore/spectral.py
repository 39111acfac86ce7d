"""Spectral radius of dense and of sparse matrices, and reservoirs that are scaled to one.

Eigenvalues of a random matrix fill a disc, and those at its rim differ in modulus by fractions of a
thousandth. Arnoldi iterations on A settle on a pair of them before they have seen the largest;
on A^16 the moduli are 16 times further apart, and an iteration costs one orthogonalisation for 16
products. The eigenvalues of A itself are then those of its projection onto the space found.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import scipy  # its parts are slow to import and come when they are used
import torch
from torch import Tensor

from hfcore.bindings.checks import check_positive
from hfcore.draws import check_scale
from hfcore.fan_in import distinct_columns

logger = logging.getLogger(__name__)

# Up to this size all eigenvalues are computed; it takes below a second.
DENSE_SIZE = 500

POWER = 16
WANTED = 6  # complex ones come in pairs, and the largest need not be found first
SUBSPACE = 48
RESTARTS = 50
RITZ_TOLERANCE = 1e-3  # of the eigenvalues of A^16
# A Ritz pair with a larger ‖A v − θ v‖ / |θ| is not trusted.
RESIDUAL = 1e-2
GROWTH_STEPS = 500

# A nilpotent draw has probability zero; that many in a row mean that something else is wrong.
MAX_DRAWS = 10


def spectral_radius(matrix: Any) -> float:
    """Largest absolute eigenvalue of a square matrix: an array, or anything scipy.sparse.

    It is the largest among the strongly connected components of the matrix's graph, the diagonal
    blocks of a block-triangular form; a matrix without a cycle is nilpotent and gives exactly 0.
    Up to 500 rows all eigenvalues of a block are computed. Beyond, ARPACK finds the leading ones
    from products with the block alone: 100,000 rows of 15 entries take seconds. The start vector
    is fixed, so the same matrix gives the same number. For random matrices its relative error is
    mostly below 1e-5; residuals ‖A v − θ v‖ above |θ|/100 are not accepted. Where ARPACK does not
    converge (many eigenvalues of one modulus), a warning is logged and the growth of ‖Aᵐ x‖ from
    m = 500 to 1000 is taken, good to about 1 %.

    Raises ValueError for a matrix that is not square, or not finite.
    """
    A = scipy.sparse.csr_array(matrix, dtype=np.float64)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.shape[0] < 1:
        raise ValueError(f"matrix: got shape {list(A.shape)}, need a square one")
    if not np.isfinite(A.data).all():
        raise ValueError("matrix: holds values that are not finite, need finite ones")
    return max(_irreducible_radius(block) for block in _diagonal_blocks(A))


def esn_recurrence(
    hidden_size: int, fan_in: int, spectral_radius: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Recurrent weights of an ESN: fan-in rows of N(0, 1), scaled to a spectral radius.

    Returns ``index`` int32 and ``value`` float64, both ``[H,F]`` with F = min(fan_in, H): row i
    has ``value[i]`` in the columns ``index[i]``, which are distinct and ascend. Every set of
    columns is equally likely, the unit's own among them. Time and memory grow with H·fan_in, so
    100,000 units are no trouble. On the CPU, from a generator of any device.

    A draw without a cycle has only zero eigenvalues and cannot be scaled: it is drawn again, with
    a warning. Raises ValueError if that happens 10 times in a row, and TypeError or ValueError
    naming the argument that is wrong.
    """
    for name, size in (("hidden_size", hidden_size), ("fan_in", fan_in)):
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name}: got {size!r}, need an int")
    check_positive(hidden_size=hidden_size, fan_in=fan_in)
    check_scale("spectral_radius", spectral_radius)
    for _ in range(MAX_DRAWS):
        index, value = _fan_in_rows(hidden_size, min(fan_in, hidden_size), generator)
        radius = _radius(index, value)
        if radius > 0.0:
            return index, value * (spectral_radius / radius)
        logger.warning("esn_recurrence: the draw is nilpotent (spectral radius 0), drawing again")
    raise ValueError(
        f"hidden_size, fan_in: {MAX_DRAWS} draws of {hidden_size} units with fan-in {fan_in} "
        "were all nilpotent, need a larger fan_in"
    )


def _radius(index: Tensor, value: Tensor) -> float:
    return spectral_radius(rows_to_csr(index, value))


def _fan_in_rows(H: int, F: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """F distinct columns of H for each of H rows, ascending, and as many normals."""
    index = distinct_columns(H, H, F, generator)
    value = torch.randn(H, F, generator=generator, dtype=torch.float64, device=generator.device)
    return index.int().cpu(), value.cpu()


def rows_to_csr(index: Tensor, values: Tensor) -> Any:
    """The square ``scipy.sparse.csr_array`` of fan-in rows.

    ``index`` int ``[H,F]``, ``values [H,F]``: row i has ``values[i]`` in the columns ``index[i]``.
    """
    H, F = index.shape
    return scipy.sparse.csr_array(
        (
            values.detach().cpu().double().numpy().ravel(),
            index.detach().cpu().numpy().astype(np.int32).ravel(),
            np.arange(0, H * F + 1, F, dtype=np.int32),
        ),
        shape=(H, H),
    )


def leading_modulus(A: Any) -> float | None:
    """Modulus of the leading eigenvalue by Arnoldi iterations on A^16; None without success."""
    H = A.shape[0]
    space = _leading_space(A / (np.linalg.norm(A.data) / np.sqrt(H)))
    if space is None:
        return None
    image = A @ space
    theta, coordinates = np.linalg.eig(space.T @ image)
    first = int(np.abs(theta).argmax())
    theta_1, v = theta[first], coordinates[:, first]
    residual = np.linalg.norm(image @ v - theta_1 * (space @ v))
    return float(abs(theta_1)) if residual <= RESIDUAL * abs(theta_1) else None


def growth(A: Any) -> float:
    """(‖A²ᵐ x‖ / ‖Aᵐ x‖)^(1/m) with m = 500 and the fixed start vector."""
    x, total = _start(A.shape[0]), 0.0
    for step in range(2 * GROWTH_STEPS):
        x = A @ x
        size = float(np.linalg.norm(x))
        if size == 0.0:
            return 0.0
        x /= size
        total += np.log(size) if step >= GROWTH_STEPS else 0.0
    return float(np.exp(total / GROWTH_STEPS))


def _leading_space(A: Any) -> np.ndarray | None:
    """Orthonormal real basis ``[H,d]`` of leading eigenvectors of A^16; None if none converged.

    A has been scaled to entries for which A^16 does not overflow.
    """
    from scipy.sparse import linalg

    H = A.shape[0]

    def product(x: Any) -> Any:
        for _ in range(POWER):
            x = A @ x
        return x

    operator = linalg.LinearOperator((H, H), matvec=product, dtype=np.float64)
    try:
        _, vectors = linalg.eigs(
            operator,
            k=WANTED,
            ncv=SUBSPACE,
            v0=_start(H),
            tol=RITZ_TOLERANCE,
            maxiter=RESTARTS,
        )
    except linalg.ArpackError:  # no convergence, or no space to work in
        return None
    parts = np.concatenate([vectors.real, vectors.imag], axis=1)
    return np.asarray(scipy.linalg.orth(parts, rcond=1e-8))


def _start(H: int) -> np.ndarray:
    """A start vector that no structure of the matrix is likely to be orthogonal to."""
    return np.asarray(1.0 + np.cos(1.3 * np.arange(H)))


def _irreducible_radius(A: Any) -> float:
    """Spectral radius of one diagonal block."""
    if A.shape[0] <= DENSE_SIZE:
        return float(np.abs(np.linalg.eigvals(A.toarray())).max())
    radius = leading_modulus(A)
    if radius is None:
        logger.warning("spectral_radius: ARPACK did not converge, taking the growth of powers")
        return growth(A)
    return radius


def _diagonal_blocks(A: Any) -> list[Any]:
    """The strongly connected components; those of one row by their largest entry."""
    from scipy.sparse.csgraph import connected_components

    A.eliminate_zeros()
    count, label = connected_components(A, connection="strong")
    if count == 1:
        return [A]
    size = np.bincount(label, minlength=count)
    order = np.argsort(label, kind="stable")
    members = np.split(order, np.cumsum(size)[:-1])
    single = A.diagonal()[size[label] == 1]
    largest_single = scipy.sparse.csr_array([[np.abs(single).max(initial=0.0)]])
    return [largest_single, *(A[rows][:, rows] for rows in members if len(rows) > 1)]
