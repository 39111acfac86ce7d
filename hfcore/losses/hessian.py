"""L'', the second derivative of a loss by the outputs s, in the forms that it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from hfcore.bindings import loss as ops

# Outputs up to which a formula's L'' is looked at as a whole for negative eigenvalues; above, along
# random signs.
LOOKED_AT = 32
PROBES = 8
# Rounding of an eigenvalue relative to the largest.
TOLERANCE = 1e-4


class OutputHessian(ABC):
    """L'' of single outputs ``[…,k]``, their weights in it; unscaled.

    ``kernel_form``: (c, rank_one) if L'' is diag(c), or diag(c) − c cᵀ with rank_one, which ops on
    whole nets take; None otherwise.
    """

    kernel_form: tuple[Tensor, bool] | None = None

    @abstractmethod
    def apply(self, R: Tensor) -> Tensor:
        """L''R in plain torch ops, ``R`` like the outputs."""

    def product(self, Rs: Tensor, *, out: Tensor | None = None) -> Tensor:
        """L''Rs ``[G,T,B,k]``, into ``out`` (which may be ``Rs``) if it is given."""
        product = self.apply(Rs)
        return product if out is None else out.copy_(product)

    @abstractmethod
    def root(self, u: Tensor) -> Tensor:
        """S u with S Sᵀ = L''."""


class IdentityHessian(OutputHessian):
    """L'' = I."""

    def apply(self, R: Tensor) -> Tensor:
        return R

    def product(self, Rs: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Rs itself: nothing is copied."""
        return Rs

    def root(self, u: Tensor) -> Tensor:
        return u.clone(memory_format=torch.contiguous_format)


class DiagonalHessian(OutputHessian):
    """L'' = diag(c)."""

    def __init__(self, c: Tensor) -> None:
        self.c = c
        self.kernel_form = c, False

    def apply(self, R: Tensor) -> Tensor:
        return self.c * R

    def product(self, Rs: Tensor, *, out: Tensor | None = None) -> Tensor:
        return ops.loss_hessian_product(self.c, Rs, out=out)

    def root(self, u: Tensor) -> Tensor:
        return self.c.sqrt() * u


class SoftmaxHessian(OutputHessian):
    """diag(c) − c cᵀ with c = p; with weights w of outputs c = w p and diag(c) − c cᵀ / w."""

    def __init__(self, c: Tensor, *, weighted: bool) -> None:
        self.c = c
        self.weighted = weighted
        self.kernel_form = None if weighted else (c, True)

    def apply(self, R: Tensor) -> Tensor:
        weighted = self.c * R
        return weighted - self._along_c(weighted.sum(-1, keepdim=True))

    def product(self, Rs: Tensor, *, out: Tensor | None = None) -> Tensor:
        rank_one: ops.RankOne = "weighted" if self.weighted else True
        return ops.loss_hessian_product(self.c, Rs, rank_one=rank_one, out=out)

    def root(self, u: Tensor) -> Tensor:
        """√c ⊙ u − c (√cᵀu), with weights c (√cᵀu) / w: √pᵀ√p = 1."""
        rooted = self.c.sqrt() * u
        return rooted - self._along_c(rooted.sum(-1, keepdim=True))

    def _along_c(self, dot: Tensor) -> Tensor:
        if self.weighted:
            w = self.c.sum(-1, keepdim=True)
            dot = torch.where(w == 0, 0, dot / w)
        return self.c * dot


class DenseHessian(OutputHessian):
    """Matrices ``H […,k,k]``."""

    def __init__(self, H: Tensor) -> None:
        self.H = H

    def apply(self, R: Tensor) -> Tensor:
        return (self.H @ R.unsqueeze(-1)).squeeze(-1)

    def root(self, u: Tensor) -> Tensor:
        return (symmetric_root(self.H) @ u.unsqueeze(-1)).squeeze(-1)


class FormulaHessian(OutputHessian):
    """L'' of a formula, by differentiating its gradient ``g`` by ``s``, both with their graph."""

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
        """What is below zero of RᵀL''R at R's own length, or 0: all of it up to ``LOOKED_AT``
        outputs, beyond along random signs."""
        k = self._s.shape[-1]
        if k <= LOOKED_AT:
            values = torch.linalg.eigvalsh(self.dense())
            least, size = values.min(), values.abs().max()
        else:
            generator = torch.Generator().manual_seed(0)
            least = size = self._s.new_zeros(())
            for _ in range(PROBES):
                signs = torch.randint(2, self._s.shape, generator=generator).to(self._s) * 2 - 1
                along = (signs * self.apply(signs)).sum(-1) / k
                least, size = torch.minimum(least, along.min()), size.maximum(along.abs().max())
        return min(0.0, float(least)) if float(least) < -TOLERANCE * float(size) else 0.0


def symmetric_root(H: Tensor) -> Tensor:
    """S = Sᵀ with S S = H. Raises ValueError for a matrix with a negative eigenvalue."""
    values, vectors = torch.linalg.eigh(H)
    smallest = float(values.min())
    if smallest < -TOLERANCE * float(values.abs().max()):
        raise ValueError(
            f"loss: L'' has the negative eigenvalue {smallest:.2g}, so that it has no square "
            "root; a loss that is convex in the outputs has one"
        )
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT


def semidefinite(H: Tensor, how: str) -> Tensor:
    """H with its negative eigenvalues set to zero (``"positive"``) or turned (``"absolute"``)."""
    values, vectors = torch.linalg.eigh(H)
    values = values.abs() if how == "absolute" else values.clamp_min(0)
    return (vectors * values.unsqueeze(-2)) @ vectors.mT
