"""L'', the second derivative of a loss by the outputs s, in the forms that it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hfcore.bindings import loss as ops

# Outputs up to which a formula's L'' is looked at as a whole for negative eigenvalues; above, in
# Krylov spaces of so many steps.
LOOKED_AT = 32
STEPS = 12
# Rounding of an eigenvalue relative to the largest.
TOLERANCE = 1e-4


class OutputHessian(ABC):
    """L'' of single outputs ``[…,k]``, their weights in it; unscaled."""

    @property
    def kernel_form(self) -> tuple[Tensor, bool] | None:
        """(``c […,k]``, rank_one) if L'' is diag(c), or diag(c) − c cᵀ with rank_one, which ops on
        whole nets take; None otherwise."""
        return None

    @abstractmethod
    def apply(self, R: Tensor) -> Tensor:
        """L''R ``[…,k]`` in plain torch ops, for ``R […,k]`` like the outputs."""

    def product(self, Rs: Tensor, *, out: Tensor | None = None) -> Tensor:
        """L''Rs ``[G,T,B,k]``, into ``out`` (which may be ``Rs``) if it is given."""
        product = self.apply(Rs)
        return product if out is None else out.copy_(product)

    @abstractmethod
    def root(self, u: Tensor) -> Tensor:
        """S u ``[…,k]`` for ``u […,k]``, with S Sᵀ = L''.

        Raises ValueError where L'' has a negative eigenvalue.
        """

    def averaged(self, total: float) -> Callable[[Tensor], Tensor]:
        """The map from ``R […,k]`` to L''R / total ``[…,k]``, in plain torch ops.

        It may write to R, and takes L'' itself along, which is not asked for anything after.
        """
        return lambda R: self.apply(R) / total


@dataclass(frozen=True, eq=False)
class IdentityHessian(OutputHessian):
    """L'' = I."""

    def apply(self, R: Tensor) -> Tensor:
        return R

    def product(self, Rs: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Rs itself: nothing is copied."""
        return Rs

    def root(self, u: Tensor) -> Tensor:
        return u.clone(memory_format=torch.contiguous_format)

    def averaged(self, total: float) -> Callable[[Tensor], Tensor]:
        return lambda R: R.mul_(1 / total)


@dataclass(frozen=True, eq=False)
class DiagonalHessian(OutputHessian):
    """L'' = diag(c), with ``c […,k]`` like the outputs."""

    c: Tensor

    @property
    def kernel_form(self) -> tuple[Tensor, bool]:
        return self.c, False

    def apply(self, R: Tensor) -> Tensor:
        return self.c * R

    def product(self, Rs: Tensor, *, out: Tensor | None = None) -> Tensor:
        return ops.loss_hessian_product(self.c, Rs, out=out)

    def root(self, u: Tensor) -> Tensor:
        return self.c.sqrt() * u

    def averaged(self, total: float) -> Callable[[Tensor], Tensor]:
        c = self.c.div_(total)  # once, not in every product
        return lambda R: R.mul_(c)


@dataclass(frozen=True, eq=False)
class SoftmaxHessian(OutputHessian):
    """diag(c) − c cᵀ with ``c […,k]`` the probabilities p.

    With weights w of outputs it is c = w p and diag(c) − c cᵀ / w.
    """

    c: Tensor
    weighted: bool

    @property
    def kernel_form(self) -> tuple[Tensor, bool] | None:
        return None if self.weighted else (self.c, True)

    def apply(self, R: Tensor) -> Tensor:
        weighted = self.c * R
        return weighted - self._along_c(weighted.sum(-1, keepdim=True))

    def product(self, Rs: Tensor, *, out: Tensor | None = None) -> Tensor:
        form: Literal[True, "weighted"] = "weighted" if self.weighted else True
        return ops.loss_hessian_product(self.c, Rs, rank_one=form, out=out)

    def root(self, u: Tensor) -> Tensor:
        """√c ⊙ u − c (√cᵀu), with weights c (√cᵀu) / w: √pᵀ√p = 1."""
        rooted = self.c.sqrt() * u
        return rooted - self._along_c(rooted.sum(-1, keepdim=True))

    def averaged(self, total: float) -> Callable[[Tensor], Tensor]:
        """In the memory of c and R alone: with many classes each is most of what there is."""
        if self.weighted:
            w = self.c.sum(-1, keepdim=True)
            per_weight: Any = torch.where(w == 0, 0, total / w)
        else:
            per_weight = total
        c = self.c.div_(total)

        def apply(R: Tensor) -> Tensor:
            R.mul_(c)
            dot = R.sum(-1, keepdim=True).mul_(per_weight)
            return R.addcmul_(c, dot, value=-1)

        return apply

    def _along_c(self, dot: Tensor) -> Tensor:
        if self.weighted:
            w = self.c.sum(-1, keepdim=True)
            dot = torch.where(w == 0, 0, dot / w)
        return self.c * dot


@dataclass(frozen=True, eq=False)
class DenseHessian(OutputHessian):
    """Matrices ``H […,k,k]``."""

    H: Tensor

    def apply(self, R: Tensor) -> Tensor:
        return (self.H @ R.unsqueeze(-1)).squeeze(-1)

    def root(self, u: Tensor) -> Tensor:
        return (symmetric_root(self.H) @ u.unsqueeze(-1)).squeeze(-1)


class FormulaHessian(OutputHessian):
    """L'' of a formula, by differentiating its gradient ``g […,k]`` by ``s […,k]``.

    Both come with their autograd graph.
    """

    def __init__(self, g: Tensor, s: Tensor) -> None:
        self._g, self._s = g, s

    def apply(self, R: Tensor) -> Tensor:
        if not self._g.requires_grad:  # linear in s
            return torch.zeros_like(R)
        if R.ndim == self._s.ndim and R.shape != self._s.shape:  # several tangents of one net
            return torch.stack([self._one(r.view(self._s.shape))[0] for r in R])
        return self._one(R)

    def _one(self, R: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(
            self._g, self._s, R, retain_graph=True, materialize_grads=True
        )
        return product

    def root(self, u: Tensor) -> Tensor:
        return DenseHessian(self.dense()).root(u)

    def dense(self) -> Tensor:
        """``[…,k,k]``, a column at a time."""
        k = self._s.shape[-1]
        eye = torch.eye(k, dtype=self._s.dtype, device=self._s.device)
        columns = [self.apply(e.expand_as(self._s)) for e in eye]
        return torch.stack(columns, -1)

    def most_negative(self) -> float:
        """The least eigenvalue of L'' if it is below zero, else 0. Beyond ``LOOKED_AT`` outputs
        the least Ritz value, which is not below it."""
        H = self.dense() if self._s.shape[-1] <= LOOKED_AT else self._tridiagonal()
        values = torch.linalg.eigvalsh(H)
        least, size = float(values.min()), float(values.abs().max())
        return least if least < -TOLERANCE * size else 0.0

    def _tridiagonal(self) -> Tensor:
        """Lanczos of every output's L'' from a random start: ``[…,STEPS,STEPS]``."""
        generator = torch.Generator().manual_seed(0)
        q = torch.randn(self._s.shape, generator=generator, dtype=torch.float64, device="cpu").to(
            self._s
        )
        basis = [q / q.norm(dim=-1, keepdim=True)]
        T = self._s.new_zeros(*self._s.shape[:-1], STEPS, STEPS)
        for j in range(STEPS):
            r = self.apply(basis[j])
            for i, b in enumerate(basis):  # orthogonal to all that came before
                overlap = (b * r).sum(-1)
                T[..., i, j] = T[..., j, i] = overlap
                r = r - overlap.unsqueeze(-1) * b
            length = r.norm(dim=-1, keepdim=True)
            ended = length <= TOLERANCE * T.abs().amax((-2, -1)).unsqueeze(-1)
            basis.append(torch.where(ended, 0, r / torch.where(ended, 1, length)))
        return T


def symmetric_root(H: Tensor) -> Tensor:
    """S = Sᵀ ``[…,k,k]`` with S S = H.

    Raises ValueError for a matrix with a negative eigenvalue.
    """
    values, vectors = torch.linalg.eigh(H)
    smallest = float(values.min())
    if smallest < -TOLERANCE * float(values.abs().max()):
        raise ValueError(
            f"loss: L'' has the negative eigenvalue {smallest:.2g}, so that it has no square "
            "root; a loss that is convex in the outputs has one"
        )
    root: Tensor = (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
    return root


def semidefinite(H: Tensor, how: str) -> Tensor:
    """``H […,k,k]`` without its negative eigenvalues.

    ``how`` sets them to zero (``"positive"``) or takes their absolute values (``"absolute"``).
    """
    values, vectors = torch.linalg.eigh(H)
    values = values.abs() if how == "absolute" else values.clamp_min(0)
    made: Tensor = (vectors * values.unsqueeze(-2)) @ vectors.mT
    return made
