"""A few eigenpairs of a symmetric matrix by Lanczos iterations with thick restarts.

Wu & Simon (2000), with full reorthogonalisation: the basis lies where the products do, and only the
small projected matrix comes to the host. A Krylov space holds one vector of each eigenspace, so
copies of a multiple eigenvalue are looked for from fresh random vectors until none turns up.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hfcore import arguments

logger = logging.getLogger("hfcore")

Which = Literal["LA", "SA", "LM"]
WHICH = ("LA", "SA", "LM")

# Vectors of the basis: this many beyond twice k. More need fewer products and more memory.
EXTRA_VECTORS = 30
# Default of max_products, in bases.
MOST_BASES = 100
# Cycles without a newly converged pair, behind one, after which a random vector comes in; twice as
# many where the last random vector has brought none.
PATIENCE = 3
# Steps between looks, and before the first, while copies are looked for.
LOOK_EVERY, FIRST_LOOK = 5, 15
# A remainder below this many roundings of the largest eigenvalue is nothing.
NOTHING = 100


class Eigenpairs(NamedTuple):
    """``values [k]`` and orthonormal ``vectors [N,k]``, in the order that was asked for."""

    values: Tensor
    vectors: Tensor


class EigenpairsNotConverged(RuntimeError):
    """Not all eigenpairs converged; ``converged`` holds those that did."""

    def __init__(self, k: int, products: int, converged: Eigenpairs) -> None:
        self.converged = converged
        super().__init__(
            f"eigsh: {len(converged.values)} of {k} eigenpairs converged in {products} products; "
            "raise max_products or tolerance"
        )


def eigsh(
    A: Any, k: int, which: Which, tolerance: float, seed: int, max_products: int | None
) -> Eigenpairs:
    """See :meth:`hfcore.curvature.linear_operator.LinearOperator.eigsh`."""
    N = A.shape[0]
    k = arguments.count("k", k)
    if k > N:
        raise ValueError(f"k: got {k}, need 1 to {N}")
    arguments.choice("which", which, WHICH)
    seed = arguments.count("seed", seed, 0)
    tolerance = arguments.number("tolerance", tolerance)
    if not (math.isfinite(tolerance) and 0 <= tolerance < 1):
        raise ValueError(f"tolerance: got {tolerance}, need 0 (the default) to below 1")
    if A.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"A: products are {A.dtype}, need torch.float32 or torch.float64")
    eps = torch.finfo(A.dtype).eps
    tolerance = max(tolerance, 10 * eps) if tolerance else eps ** (2 / 3)
    size = min(N, 2 * k + EXTRA_VECTORS)
    most = MOST_BASES * size if max_products is None else max_products
    most = arguments.count("max_products", most)
    return _Search(A, k, which, tolerance, seed, size, most).run()


class _Basis:
    """Orthonormal rows V and the projection T = V A Vᵀ, grown by A's image of the last row."""

    def __init__(self, A: Any, size: int, seed: int) -> None:
        self._A = A
        self.V = torch.empty(size + 1, A.shape[0], dtype=A.dtype, device=A.device)
        self.T = torch.zeros(size, size, dtype=torch.float64, device=A.device)
        self.size = size
        self.used = 0  # rows whose image is in T; row ``used`` is the next
        self.remainder = 0.0  # ‖A Vᵀ − Vᵀ T‖, all of it in the last row used
        self.products = 0
        self.steps = 0  # since the last random vector
        self._scale = 0.0  # of the entries of T so far
        self._generator = torch.Generator().manual_seed(seed)
        self.randomise()

    def randomise(self) -> None:
        """A random vector, orthogonal to the rows used, as the next one."""
        N = self.V.shape[1]
        row = torch.randn(N, generator=self._generator, dtype=torch.float64, device="cpu")
        row = row.to(self.V.device, self.V.dtype)
        for _ in range(2):
            self._orthogonalise(row)
            row /= row.norm()
        self.V[self.used] = row
        self.remainder = 0.0
        self.steps = 0

    def grow(self) -> None:
        """One product. Raises ValueError where it is not finite."""
        j, N = self.used, self.V.shape[1]
        w = self._A.matvec(self.V[j])
        self.products += 1
        self.used = j + 1
        self.steps += 1
        # A second time takes off what rounding has left the first time.
        h = self._orthogonalise(w) + self._orthogonalise(w)
        self.T[: j + 1, j] = h
        self.T[j, : j + 1] = h
        beta, largest = torch.stack([w.norm().double(), h.abs().max()]).tolist()
        if not math.isfinite(beta):
            raise ValueError("A: a product is not finite")
        self._scale = max(self._scale, largest, beta)
        self.remainder = beta if j + 1 < N else 0.0
        if beta <= NOTHING * torch.finfo(w.dtype).eps * self._scale or j + 1 == N:
            if j + 1 < min(N, len(self.V)):
                steps = self.steps
                self.randomise()
                self.steps = steps
            self.remainder = 0.0
        else:
            self.V[j + 1] = w / beta

    def _orthogonalise(self, w: Tensor) -> Tensor:
        """Take the rows used off ``w [N]``, in place; gives the coefficients in float64."""
        rows = self.V[: self.used]
        h = torch.mv(rows, w)
        w.sub_(torch.mv(rows.mT, h))
        return h.double()

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of T, on the host."""
        T = self.T[: self.used, : self.used].cpu()
        values, vectors = torch.linalg.eigh((T + T.mT) / 2)
        return values, vectors

    def vectors(self, S: Tensor) -> Tensor:
        """Ritz vectors as rows, for columns of coefficients ``S [used,l]``."""
        return S.mT.to(self.V.device, self.V.dtype) @ self.V[: self.used]

    def restart(self, values: Tensor, S: Tensor, *, keep_direction: bool) -> None:
        """Ritz pairs instead of the rows; the next row stays, or is a random one."""
        kept = len(values)
        direction = self.V[self.used].clone()
        self.V[:kept] = self.vectors(S)
        self.T.zero_()
        self.T[:kept, :kept] = torch.diag(values).to(self.T.device)
        self.used = kept
        if keep_direction:
            self.V[kept] = direction
        else:
            self.randomise()


class _Search:
    """The k best Ritz pairs, until they converge and nothing better turns up."""

    def __init__(
        self, A: Any, k: int, which: Which, tolerance: float, seed: int, size: int, most: int
    ) -> None:
        self._k, self._which, self._tolerance, self._most = k, which, tolerance, most
        self._basis = _Basis(A, size, seed)
        self._N = A.shape[0]
        # The values that a random vector, the last one, was to find something better than.
        self._verified: Tensor | None = None
        self._converged = 0  # pairs, at the last restart
        self._locked = 0  # pairs, at the last random vector
        self._idle, self._patience = 0, PATIENCE

    def run(self) -> Eigenpairs:
        basis = self._basis
        while True:
            end = basis.size
            if self._verified is not None:
                end = min(end, basis.used + (LOOK_EVERY if basis.steps else FIRST_LOOK))
            while basis.used < end and basis.products < self._most:
                basis.grow()
            values, S, converged = self._look()
            done = int(converged[: self._k].sum())
            if done == self._k and (basis.used == self._N or self._nothing_better(values, S)):
                return self._result(values, S, converged)
            if basis.products >= self._most:
                # Copies may be missing, but what is there has converged.
                if done == self._k:
                    logger.info("eigsh: max_products ended the search for multiple eigenvalues")
                    return self._result(values, S, converged)
                found = self._result(values, S, converged)
                raise EigenpairsNotConverged(self._k, basis.products, found)
            if done == self._k and not self._stands(values):
                self._lock(values, S, converged)
                self._verified = values[: self._k].clone()
            elif basis.used == basis.size:
                self._restart(values, S, converged, done)

    def _look(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values and coefficients, best first, and which have converged."""
        values, S = self._basis.ritz()
        order = self._key(values).argsort(descending=True, stable=True)
        values, S = values[order], S[:, order]
        return values, S, self._residuals(S) <= self._tolerance * float(values.abs().max())

    def _residuals(self, S: Tensor) -> Tensor:
        return self._basis.remainder * S[-1].abs()

    def _key(self, values: Tensor) -> Tensor:
        return {"LA": values, "SA": -values, "LM": values.abs()}[self._which]

    def _stands(self, values: Tensor) -> bool:
        """Whether the k best are still those that were there before the last random vector."""
        if self._verified is None:
            return False
        moved = float((values[: self._k] - self._verified).abs().max())
        return moved <= self._tolerance * float(values.abs().max())

    def _nothing_better(self, values: Tensor, S: Tensor) -> bool:
        """Whether a search that began with a random vector would have found a missing pair."""
        steps, k = self._basis.steps, self._k
        if not self._stands(values) or steps < FIRST_LOOK or len(values) <= k:
            return False
        key = self._key(values)
        residual = float(self._residuals(S)[k])
        scale = float(values.abs().max())
        # The largest Ritz value of a random start falls short of the largest eigenvalue by this
        # share of the spectrum on average (Kuczyński & Woźniakowski 1992).
        short = 0.103 * (math.log(self._N * float(steps) ** 4) / steps) ** 2
        spread = float(values[k:].max() - values[k:].min())
        if float(key[k]) + min(1.0, short) * spread < float(key[k - 1]):
            return True
        near = residual <= math.sqrt(self._tolerance) * scale
        return residual <= self._tolerance * scale or (
            near and float(key[k]) + residual < float(key[k - 1])
        )

    def _restart(self, values: Tensor, S: Tensor, converged: Tensor, done: int) -> None:
        """Thick restart; from a random vector where only copies can be missing."""
        self._idle = 0 if done > self._converged else self._idle + 1
        self._converged = done
        if self._verified is None and bool(converged[0]) and self._idle >= self._patience:
            self._patience *= 1 if done > self._locked else 2
            self._lock(values, S, converged)
            return
        keep = self._k + (self._basis.size - self._k) // 2
        self._basis.restart(values[:keep], S[:, :keep], keep_direction=True)

    def _lock(self, values: Tensor, S: Tensor, converged: Tensor) -> None:
        """Go on from the leading pairs that have converged and a random vector."""
        leading = int(converged[: self._k].int().cumprod(0).sum())
        self._basis.restart(values[:leading], S[:, :leading], keep_direction=False)
        self._converged = self._locked = leading
        self._idle = 0

    def _result(self, values: Tensor, S: Tensor, converged: Tensor) -> Eigenpairs:
        best = converged.nonzero().flatten()
        best = best[best < self._k]
        V = self._basis.V
        return Eigenpairs(
            values[best].to(V.device, V.dtype), self._basis.vectors(S[:, best]).mT.contiguous()
        )
