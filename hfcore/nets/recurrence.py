"""What passes through recurrent nets need of W_hh, in each form of it: a matrix, or its entries.

Arrays are ``[G,T,B,·]``; an axis G of length 1 is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from hfcore.bindings import recurrence as ops
from hfcore.bindings import sparse as sparse_ops
from hfcore.bindings.recurrence import RnnWeights
from hfcore.bindings.scratch import Scratch
from hfcore.bindings.sparse import EllPattern
from hfcore.models.rnn import RNN
from hfcore.nets.through_time import (
    add_times,
    at_outputs,
    case_squares,
    joined_steps,
    outer,
    times,
)


class Recurrence:
    """W_hh as a matrix."""

    # Whether the fused ops of bindings/recurrence.py serve this form,
    has_ops = True
    # and have another θ than the net: one with zeros for the entries that W_hh does not have.
    is_spread = False

    def __init__(self, nonlinearity: str) -> None:
        self.nonlinearity = nonlinearity

    def pinned(self) -> Self:
        """The same, also where the model's pattern changes."""
        return self

    def weight(self, W: Tensor) -> Tensor:
        """W_hh as the passes take it, from what θ holds ``[G,H,·]``."""
        return W

    def gathered(self, W: Tensor) -> Tensor:
        """Its adjoint: what θ holds, of a gradient by the ops' W_hh ``[G,H,H]``."""
        return W

    def forward(
        self, x: Tensor, w: RnnWeights, steps: Tensor | None, *, states: bool, out: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """h ``[G,T,B,H]``, in ``out`` if given, None unless ``states``; s ``[G,T_out,B,k]``."""
        e = self.nonlinearity
        return ops.rnn_forward(x, w, nonlinearity=e, steps=steps, states=states, out=out)

    def add_carried(self, u: Tensor, h: Tensor, W: Tensor, work: Scratch) -> None:
        """``u [G,T,B,H]`` += h Wᵀ at every step."""
        add_times(u, h, W.mT)

    def add_returned(self, u: Tensor, g: Tensor, W: Tensor, work: Scratch) -> None:
        """``u [G,T,B,H]`` += g W at every step."""
        add_times(u, g, W)

    def scan(self, u: Tensor, d: Tensor, W: Tensor, out: Tensor | None) -> Tensor:
        """y_t = d_t ⊙ (y_{t-1} Wᵀ + u_t), ``[G,T,B,H]`` like ``u`` and ``d``."""
        return ops.linear_scan(u, d, W.mT, out=out)

    def scan_back(
        self, u: Tensor, d: Tensor, W: Tensor, a: Tensor | None, out: Tensor | None
    ) -> Tensor:
        """y_t = d_t ⊙ (y_{t+1} W + u_t) + a_t, ``[G,T,B,H]`` like ``u``, ``d`` and ``a``."""
        return ops.linear_scan(u, d, W, a, reverse=True, out=out)

    def outer(self, g: Tensor, h: Tensor) -> Tensor:
        """gᵀh over time and cases where θ has a weight, ``[G,·]``."""
        return outer(g, h)

    def squares(self, g: Tensor, h: Tensor) -> Tensor:
        """Σ over cases of the squares of one case's gᵀh ``[·]``; ``g, h [T,b,H]``."""
        return case_squares(g, h).flatten()


class SparseRecurrence(Recurrence):
    """A sparse W_hh: θ holds the values ``[H,K]`` of its entries.

    ``pattern`` says where they are; None asks the model each time.
    """

    def __init__(self, model: RNN, pattern: EllPattern | None = None) -> None:
        super().__init__(model.nonlinearity)
        self.model, self._pattern = model, pattern

    @property
    def pattern(self) -> EllPattern:
        return self.model.pattern if self._pattern is None else self._pattern

    def pinned(self) -> Self:
        return type(self)(self.model, self.pattern)


class Entries(SparseRecurrence):
    """A sparse W_hh whose entries the ops run on."""

    has_ops = False

    def forward(
        self, x: Tensor, w: RnnWeights, steps: Tensor | None, *, states: bool, out: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        u = times(x, w.W_hx.mT) + w.b_h[:, None, None]
        u[:, 0] += w.b_init.unsqueeze(1)
        e = self.nonlinearity
        h = sparse_ops.ell_hidden(u, w.W_hh, self.pattern, nonlinearity=e, out=out)
        return h, times(at_outputs(h, steps), w.W_yh.mT) + w.b_y[:, None, None]

    def add_carried(self, u: Tensor, h: Tensor, W: Tensor, work: Scratch) -> None:
        self._add(sparse_ops.ell_matmul, u, h, W, work)

    def add_returned(self, u: Tensor, g: Tensor, W: Tensor, work: Scratch) -> None:
        self._add(sparse_ops.ell_matmul_t, u, g, W, work)

    def _add(
        self, product: Callable[..., Tensor], u: Tensor, y: Tensor, W: Tensor, work: Scratch
    ) -> None:
        if u.shape[1] == 0:
            return
        moved = work.take("moved", u, max(len(y), len(W)), u.shape[1] * u.shape[2], u.shape[3])
        joined_steps(u).add_(product(y.flatten(1, 2), W, self.pattern, out=moved))

    def scan(self, u: Tensor, d: Tensor, W: Tensor, out: Tensor | None) -> Tensor:
        return sparse_ops.ell_scan(u, d, W, self.pattern, out=out)

    def scan_back(
        self, u: Tensor, d: Tensor, W: Tensor, a: Tensor | None, out: Tensor | None
    ) -> Tensor:
        pattern = self.pattern
        return sparse_ops.ell_scan(u, d, W, pattern, a, transposed=True, reverse=True, out=out)

    def outer(self, g: Tensor, h: Tensor) -> Tensor:
        if g.shape[1] == 0:
            return g.new_zeros(len(g), self.pattern.m * self.pattern.K)
        gradient = sparse_ops.ell_gradient(g.flatten(1, 2), h.flatten(1, 2), self.pattern)
        return gradient.flatten(1)

    def squares(self, g: Tensor, h: Tensor) -> Tensor:
        index = self.pattern.index.long()
        columns = [(g * h[:, :, index[:, k]]).sum(0).square().sum(0) for k in range(index.shape[1])]
        entries = torch.stack(columns, dim=1)
        present = self.pattern.present
        return (entries if present is None else entries * present).flatten()


class EntriesAsMatrix(SparseRecurrence):
    """A sparse W_hh that is made dense for the passes, where that is faster."""

    is_spread = True

    def weight(self, W: Tensor) -> Tensor:
        return sparse_ops.ell_dense(W, self.pattern)

    def gathered(self, W: Tensor) -> Tensor:
        return sparse_ops.ell_gather(W, self.pattern)

    def outer(self, g: Tensor, h: Tensor) -> Tensor:
        H = g.shape[-1]
        return self.gathered(super().outer(g, h).view(-1, H, H)).flatten(1)

    def squares(self, g: Tensor, h: Tensor) -> Tensor:
        return self.gathered(case_squares(g, h).unsqueeze(0)).flatten()


def recurrence_of(model: RNN) -> Recurrence:
    """The form in which the model's W_hh is fastest, by shape and device."""
    if not model.sparse:
        return Recurrence(model.nonlinearity)
    return Entries(model) if model.runs_sparse else EntriesAsMatrix(model)
