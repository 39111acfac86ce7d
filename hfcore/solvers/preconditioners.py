"""Preconditioners of linear solvers: M close to A, of which M⁻¹ r is cheap."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hfcore import arguments
from hfcore.arguments import naming_options
from hfcore.bindings.checks import check_tensor

# Products that "nystrom" spends, and eigenvalues that it then knows.
RANK = 32


@runtime_checkable
class Preconditioner(Protocol):
    """A symmetric positive definite M ``[N,N]``, as products with its inverse."""

    def apply(self, r: Tensor, out: Tensor) -> Tensor:
        """M⁻¹ r for ``r [N]`` into ``out [N]``, which is returned."""


class Matrix(Protocol):
    """A square operator, as far as a preconditioner looks at it."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def identity_part(self) -> float: ...

    def products(self, V: Tensor) -> Tensor:
        """A v for the rows of ``V [m,N]``, as rows ``[m,N]``."""

    def diagonal(self) -> Tensor:
        """diag(A) ``[N]``."""


class DiagonalPreconditioner:
    """M = diag(d) for ``diagonal [N]``, positive and finite (ValueError otherwise)."""

    def __init__(self, diagonal: Tensor) -> None:
        check_tensor("preconditioner", diagonal, ["N"])
        if not bool((torch.isfinite(diagonal) & (diagonal > 0)).all()):
            raise ValueError("preconditioner: holds values that are not positive and finite")
        self.vector = diagonal.detach().contiguous()

    def apply(self, r: Tensor, out: Tensor) -> Tensor:
        """r / d ``[N]`` into ``out``."""
        check_tensor("r", r, self.vector.shape, like=self.vector)
        return torch.div(r, self.vector, out=out)


def jacobi(A: Matrix) -> DiagonalPreconditioner:
    """M = |diag A|, with 1 where that is zero."""
    d = A.diagonal().abs()
    return DiagonalPreconditioner(d.masked_fill(d == 0, 1.0))


class NystromPreconditioner:
    """Randomised Nyström preconditioner of a positive semi-definite A = G + μI.

    Frangella, Tropp & Udell (2021), section 5: with eigenpairs (Λ, U) of the Nyström approximation
    of G from ``rank`` products, M⁻¹ = (λ_ℓ + μ) U (Λ + μ)⁻¹ Uᵀ + (I − U Uᵀ), λ_ℓ the least of them.
    μ is the operator's ``identity_part``, its damping.

    Parameters
    ----------
    A : an operator ``[N,N]``
    rank : eigenvalues that it takes out, at one product and N numbers each; at most N are used
    seed : of the random test matrix: the same seed gives the same preconditioner

    Raises ValueError where the sketch shows a negative eigenvalue, or a product is not finite.
    """

    @naming_options
    def __init__(self, A: Matrix, rank: int = RANK, seed: int = 0) -> None:
        rank, seed = arguments.count("rank", rank), arguments.count("seed", seed, 0)
        if not hasattr(A, "products"):
            raise TypeError(f"A: got {type(A).__name__}, need an operator")
        N = A.shape[1]
        mu = max(A.identity_part, 0.0)
        generator = torch.Generator().manual_seed(seed)
        test = torch.randn(N, min(rank, N), generator=generator, dtype=torch.float64, device="cpu")
        omega = torch.linalg.qr(test)[0].to(A.device, A.dtype)
        sketch = (A.products(omega.mT) - mu * omega.mT).mT.double()  # G Ω [N,r]
        if not bool(torch.isfinite(sketch).all()):
            raise ValueError("preconditioner: a product with A is not finite")
        core = omega.mT.double() @ sketch
        values, vectors = torch.linalg.eigh((core + core.mT) / 2)
        largest = float(values.abs().max())
        eps = torch.finfo(A.dtype).eps
        if float(values[0]) < -1e3 * eps * max(largest, mu):
            raise ValueError(
                f"preconditioner: 'nystrom' needs a positive semi-definite A; its projection has "
                f"the eigenvalue {float(values[0]) + mu:.3g}"
            )
        known = values > 10 * len(values) * eps * max(largest, mu)
        factor = sketch @ (vectors[:, known] / values[known].sqrt())  # G ≈ F Fᵀ
        U, root, _ = torch.linalg.svd(factor, full_matrices=False)
        spectrum = root.square()
        # Where fewer eigenvalues than products were found, nothing but μ is left over.
        tail = float(spectrum[-1]) if len(spectrum) and (mu == 0 or bool(known.all())) else 0.0
        self._basis = U.mT.to(A.dtype).contiguous()
        self._change = ((tail + mu) / (spectrum + mu) - 1).to(A.dtype)

    def apply(self, r: Tensor, out: Tensor) -> Tensor:
        """M⁻¹ r ``[N]`` into ``out``."""
        check_tensor("r", r, [self._basis.shape[1]], like=self._basis)
        inside = torch.mv(self._basis, r).mul_(self._change)
        return torch.addmv(r, self._basis.mT, inside, out=out)


def checked(M: object, like: Tensor) -> Preconditioner | None:
    """What a solver was given for vectors like ``like [N]``; a tensor ``[N]`` is a diagonal."""
    if isinstance(M, Tensor):
        check_tensor("preconditioner", M, [len(like)], like=like)
        return DiagonalPreconditioner(M)
    if isinstance(M, DiagonalPreconditioner):
        check_tensor("preconditioner", M.vector, [len(like)], like=like)
    if M is None:
        return None
    # A module's apply() is something else.
    if isinstance(M, nn.Module) or not isinstance(M, Preconditioner):
        raise TypeError(
            f"preconditioner: got {type(M).__name__}, need None, a diagonal [N] or an object with "
            "apply(r, out)"
        )
    return M
