"""What a matrix known by its products alone can do: products, algebra, exports, estimates.

Curvature operators, Jacobians and everything made of them by ``+``, ``*``, ``@`` and ``block`` are
subclasses that say what one product is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn, Self, SupportsIndex, overload

import torch
from torch import Tensor

from hfcore.arguments import naming_options, number
from hfcore.bindings.checks import check_out, check_tensor, overlap
from hfcore.curvature import estimators
from hfcore.solvers import lanczos, linear
from hfcore.solvers.preconditioners import Preconditioner
from hfcore.solvers.spectral_density import SpectralDensity, spectral_density


class LinearOperator(ABC):
    """A real matrix A ``[M,N]`` on flat vectors of one dtype and device.

    A subclass brings ``shape``, ``dtype``, ``device`` and :meth:`_product`; one that is not
    symmetric says so and brings ``mT``.
    """

    #: Whether A = Aᵀ is known. Solvers and eigenvalues need it.
    symmetric: bool = True
    #: c of a multiple c·I known to be part of A, such as damping: A − c·I is a matrix of its own.
    identity_part: float = 0.0
    #: Where the parameters lie in a vector ``[N]``, by name; None where they have no names.
    parameter_slices: Mapping[str, slice] | None = None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(M, N): products take ``[N]`` and give ``[M]``."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the vectors it takes and gives."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where those vectors lie."""

    @abstractmethod
    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        """A v for a checked ``v [N]``, into ``out [M]`` where that is given."""

    def _products(self, V: Tensor) -> Tensor:
        """A v for the rows of a checked, contiguous ``V [m,N]``, m ≥ 1, as rows ``[m,M]``."""
        return torch.stack([self._product(v, None) for v in V])

    @property
    def mT(self) -> LinearOperator:
        """Aᵀ."""
        if not self.symmetric:
            raise NotImplementedError(f"{type(self).__name__}: has no products with its transpose")
        return self

    @property
    def T(self) -> LinearOperator:
        """Aᵀ."""
        return self.mT

    # ------------------------------------------------------------------------------- products

    def matvec(self, v: Tensor, *, out: Tensor | None = None) -> Tensor:
        """A v ``[M]`` for ``v [N]``; with ``out [M]``, contiguous, the result is written there.

        ``out`` must not share memory with ``v``.
        """
        check_tensor("v", v, [self.shape[1]], like=self._like(0))
        if out is not None:
            check_out(out, [self.shape[0]], v)
            if overlap(out, v):
                raise ValueError("out: shares memory with v, need a buffer of its own")
        result = self._product(v.detach(), out)
        return result if out is None else out

    def matmat(self, V: Tensor) -> Tensor:
        """A V ``[M,m]`` for ``V [N,m]``, all m vectors in one pass over the data where that is
        served."""
        check_tensor("V", V, [self.shape[1], "m"], like=self._like(0))
        return self.products(V.mT).mT

    def products(self, V: Tensor) -> Tensor:
        """A v for the rows of ``V [m,N]``, as rows ``[m,M]``: :meth:`matmat` without transposes."""
        check_tensor("V", V, ["m", self.shape[1]], like=self._like(0))
        if V.shape[0] == 0:
            return V.new_empty(0, self.shape[0])
        return self._products(V.detach().contiguous())

    @overload
    def __matmul__(self, v: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, v: LinearOperator) -> LinearOperator: ...

    def __matmul__(self, v: Tensor | LinearOperator) -> Tensor | LinearOperator:
        """A v ``[M]`` for ``v [N]``, A V ``[M,m]`` for ``V [N,m]``, or A B for another operator."""
        if isinstance(v, LinearOperator):
            from hfcore.curvature.algebra import chain

            return chain(self, v)
        if isinstance(v, Tensor) and v.ndim == 2:
            return self.matmat(v)
        return self.matvec(v)

    # -------------------------------------------------------------------------------- algebra

    def shifted(self, c: float) -> LinearOperator:
        """A + c·I."""
        from hfcore.curvature.algebra import Identity, Scaled

        return self + Scaled(number("c", c), Identity(self))

    def block(self, names: str | Iterable[str]) -> LinearOperator:
        """The rows and columns of some parameters, in the order of the whole.

        ``names``: a shell pattern over parameter names (``"encoder.*"``), or several. A product is
        one of the whole matrix with a vector that is zero elsewhere. Raises ValueError for a
        pattern that names no parameter, and where the operator's vectors have no names.
        """
        from hfcore.curvature.algebra import block

        if not isinstance(names, Iterable):
            raise TypeError(f"names: got {type(names).__name__}, need a pattern or several")
        return block(self, [names] if isinstance(names, str) else list(names))

    def __add__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        from hfcore.curvature.algebra import Sum

        return Sum(self, other)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return self + (-other)

    def __mul__(self, c: float) -> LinearOperator:
        from hfcore.curvature.algebra import Scaled, is_number

        return Scaled(c, self) if is_number(c) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, c: float) -> LinearOperator:
        from hfcore.curvature.algebra import Scaled, is_number

        if not is_number(c):
            return NotImplemented
        if c == 0:
            raise ValueError("c: got 0, need a divisor that is not zero")
        return Scaled(1 / number("c", c), self)

    def __neg__(self) -> LinearOperator:
        return -1.0 * self

    # ------------------------------------------------------------------------ linear equations

    @naming_options
    def solve(
        self,
        b: Tensor,
        rtol: float = 1e-5,
        preconditioner: Literal["jacobi", "nystrom"] | Preconditioner | Tensor | None = None,
        x0: Tensor | None = None,
        max_iter: int | None = None,
        *,
        method: linear.Method = "auto",
    ) -> tuple[Tensor, linear.SolveInfo]:
        """x with ‖b − A x‖ ≤ rtol ‖b‖ for a symmetric A and ``b [N]``, or for all of ``b [N,m]``.

        Right-hand sides that are not done share one pass over the data per iteration.

        Parameters
        ----------
        b : right-hand side(s), finite, of the operator's dtype (float32 or float64)
        preconditioner : ``"jacobi"``, 1/|diag A|; ``"nystrom"``,
            :class:`~hfcore.solvers.preconditioners.NystromPreconditioner` for a positive
            semi-definite A; a positive diagonal ``[N]``; or an object whose ``apply(r, out)``
            writes M⁻¹ r
        x0 : where to start, shaped like b; zero if left out
        max_iter : most iterations of a right-hand side; 10 N, but at most 10,000, if left out
        method : ``"cg"`` (Hestenes & Stiefel 1952) for positive definite A, ``"minres"`` (Paige &
            Saunders 1975) for an indefinite or singular one; ``"auto"`` is CG, and MINRES from
            where CG meets a direction without positive curvature

        Returns x, shaped like b, and :class:`hfcore.SolveInfo`, which says whether it converged.
        """
        self._check_symmetric("solve")
        return linear.solve(
            self,
            b,
            rtol=rtol,
            preconditioner=preconditioner,
            x0=x0,
            max_iter=max_iter,
            method=method,
        )

    # ------------------------------------------------------------------------------ estimates

    @naming_options
    def trace(self, probes: int | None = None, generator: torch.Generator | None = None) -> float:
        """tr A: exact for ``probes`` None (N products), else Hutchinson's unbiased estimate from
        that many."""
        self._check_square("trace")
        estimators.check_probes(probes, generator)
        return estimators.trace(self.matmat, self._like(self.shape[1]), probes, generator)

    @naming_options
    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag A ``[N]``: exact for ``probes`` None (N products), else an unbiased estimate."""
        self._check_square("diagonal")
        estimators.check_probes(probes, generator)
        return estimators.diagonal(self.matmat, self._like(self.shape[1]), probes, generator)

    @naming_options
    def eigsh(
        self,
        k: int,
        which: lanczos.Which = "LA",
        *,
        tolerance: float = 0.0,
        seed: int = 0,
        max_products: int | None = None,
    ) -> lanczos.Eigenpairs:
        """The k largest eigenvalues and their eigenvectors, of a symmetric A.

        Lanczos iterations on the operator's device with full reorthogonalisation and thick restarts
        (Wu & Simon 2000). Copies of a multiple eigenvalue are searched for from fresh random
        vectors: that costs one to a few dozen products more, and finds them with high probability.

        Parameters
        ----------
        k : 1 to N
        which : ``"LA"``, the largest, in descending order; ``"SA"``, the smallest, in ascending
            order; ``"LM"``, the largest in magnitude
        tolerance : of ‖A u − θ u‖, relative to the largest |θ|; 0 is eps^(2/3) of the dtype, at
            which eigenvalues that are not crowded have all their digits
        seed : of the random vectors: the same seed gives the same result
        max_products : after which :class:`hfcore.EigenpairsNotConverged` is raised, with those
            that did converge; 100 times the size of the basis, 2k + 30, if left out

        Returns ``values [k]`` and orthonormal ``vectors [N,k]``; memory is 2k + 30 vectors.
        """
        self._check_symmetric("eigsh")
        return lanczos.eigsh(self, k, which, tolerance, seed, max_products)

    @naming_options
    def eigenvalues(self, k: int, *, which: lanczos.Which = "LA", tolerance: float = 0.0) -> Tensor:
        """The values ``[k]`` of :meth:`eigsh`."""
        self._check_symmetric("eigenvalues")
        return self.eigsh(k, which, tolerance=tolerance).values

    @naming_options
    def spectral_density(
        self,
        probes: int = 10,
        steps: int = 80,
        *,
        grid: int | Tensor | None = None,
        width: float | None = None,
        generator: torch.Generator | None = None,
    ) -> SpectralDensity:
        """The density of the eigenvalues of a symmetric A, with error bars.

        Stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017) from ``probes·steps`` products,
        those of all probes in one pass over the data.

        Parameters
        ----------
        probes : random sign vectors, at least 2; the standard error falls with their root
        steps : Lanczos steps of each, at most N: how finely the spectrum is resolved
        grid : points at which the density is given: how many, or a tensor ``[g]``
        width : standard deviation of the Gaussian that stands for an eigenvalue; 1 % of the range
            of the spectrum if left out
        generator : draws the probes; torch's own if left out
        """
        self._check_symmetric("spectral_density")
        return spectral_density(self, probes, steps, grid, width, generator)

    # -------------------------------------------------------------------------------- exports

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator`` on NumPy vectors of the same dtype.

        Its products raise TypeError for complex vectors.
        """
        from hfcore.curvature.exports import to_scipy

        return to_scipy(self)

    def to_curvlinops(self) -> Any:
        """A ``curvlinops`` ``PyTorchLinearOperator`` on flat vectors; needs that package.

        Raises ImportError naming it where it is not installed.
        """
        from hfcore.curvature.exports import to_curvlinops

        return to_curvlinops(self)

    # --------------------------------------------------------------------------------- checks

    def _like(self, size: int) -> Tensor:
        """An uninitialised vector of the operator's dtype and device."""
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def _is_transpose_of(self, other: LinearOperator) -> bool:
        """Whether this is known to be the transpose of ``other``."""
        return self is other and self.symmetric

    def _check_square(self, what: str) -> None:
        M, N = self.shape
        if M != N:
            raise ValueError(f"{what}: the operator's shape is [{M},{N}], need a square one")

    def _check_symmetric(self, what: str) -> None:
        self._check_square(what)
        if not self.symmetric:
            raise ValueError(
                f"{what}: {self!r} is not known to be symmetric, need A = Aᵀ, such as A.mT @ A"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


class OperatorAtParameters(LinearOperator):
    """A matrix at fixed parameters θ, whose dtype and device are its own."""

    _theta: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self._theta.dtype

    @property
    def device(self) -> torch.device:
        return self._theta.device

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self._refuse_a_copy()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        self._refuse_a_copy()

    def __copy__(self) -> Self:
        copy = type(self).__new__(type(self))
        vars(copy).update(vars(self))
        return copy

    def _refuse_a_copy(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: holds graphs and locks, which cannot be copied or pickled; "
            "build it anew from a copy of the model"
        )
