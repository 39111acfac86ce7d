"""What passes through an RNN need of W_hh, in each form of it: a matrix, or its entries.

Arrays are ``[G,T,B,·]``; an axis G of length 1 is shared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings import recurrence as ops
from hfcore.bindings import sparse as sparse_ops
from hfcore.bindings.recurrence import RnnShape, RnnWeights, split_flat
from hfcore.bindings.sparse import EllPattern
from hfcore.models.rnn import RNN
from hfcore.nets.sequences import Sequences
from hfcore.nets.through_time import at_outputs, case_squares, outer, times


class Recurrence:
    """W_hh as a matrix; ``pattern`` belongs to the forms below, None asks the model for its own."""

    # Whether the fused ops of bindings/recurrence.py serve this form,
    has_ops = True
    # and have another θ than the net: one with zeros for the entries that W_hh does not have.
    is_spread = False

    def __init__(self, model: RNN, pattern: EllPattern | None = None) -> None:
        self.model = model
        self.shape: RnnShape = model.shape
        self._pattern = pattern

    @property
    def pattern(self) -> EllPattern:
        return self.model.pattern if self._pattern is None else self._pattern

    def pinned(self) -> Recurrence:
        """The same with the present pattern, also where the model's changes."""
        return type(self)(self.model, self.pattern) if self.model.sparse else self

    def spread(self, v: Tensor) -> Tensor:
        """The fused ops' Pv ``[G,N_dense]`` from ``v [G,N]``."""
        return v

    def restricted(self, g: Tensor) -> Tensor:
        """Pᵀg ``[G,N]`` of the fused ops' ``g [G,N_dense]``."""
        return g

    def split(self, theta: Tensor) -> RnnWeights:
        """``theta [G,N]`` as parameters with a group axis."""
        return split_flat(theta, self.shape)

    def forward(
        self, part: Sequences, w: RnnWeights, *, states: bool, out: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """h ``[G,T,B,H]``, in ``out`` if given, None unless ``states``; s ``[G,T_out,B,k]``."""
        e = self.model.nonlinearity
        return ops.rnn_forward(part.x, w, nonlinearity=e, steps=part.steps, states=states, out=out)

    def carried(self, h: Tensor, W: Tensor) -> Tensor:
        """``h [G,T,B,H]`` times Wᵀ at every step."""
        return times(h, W.mT)

    def returned(self, g: Tensor, W: Tensor) -> Tensor:
        """``g [G,T,B,H]`` times W at every step."""
        return times(g, W)

    def scan(self, u: Tensor, d: Tensor, W: Tensor) -> Tensor:
        """y_t = d_t ⊙ (y_{t-1} Wᵀ + u_t)."""
        return ops.linear_scan(u, d, W.mT)

    def scan_back(self, u: Tensor, d: Tensor, W: Tensor, a: Tensor | None) -> Tensor:
        """y_t = d_t ⊙ (y_{t+1} W + u_t) + a_t."""
        return ops.linear_scan(u, d, W, a, reverse=True)

    def outer(self, g: Tensor, h: Tensor) -> Tensor:
        """gᵀh over time and cases where W has entries, ``[G,·]``."""
        return outer(g, h)

    def squares(self, g: Tensor, h: Tensor) -> Tensor:
        """Σ over cases of the squares of one case's gᵀh ``[·]``; ``g, h [T,b,H]``."""
        return case_squares(g, h).flatten()


class Entries(Recurrence):
    """A sparse W_hh: θ holds the values ``[H,K]`` of its entries, and the ops run on them."""

    has_ops = False

    def split(self, theta: Tensor) -> RnnWeights:
        return split_entries(theta, self.shape, self.pattern.K)

    def forward(
        self, part: Sequences, w: RnnWeights, *, states: bool, out: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        u = times(part.x, w.W_hx.mT) + w.b_h[:, None, None]
        u[:, 0] += w.b_init.unsqueeze(1)
        e = self.model.nonlinearity
        h = sparse_ops.ell_hidden(u, w.W_hh, self.pattern, nonlinearity=e, out=out)
        return h, times(at_outputs(h, part.steps), w.W_yh.mT) + w.b_y[:, None, None]

    def carried(self, h: Tensor, W: Tensor) -> Tensor:
        if h.shape[1] == 0:
            return h
        moved = sparse_ops.ell_matmul(h.flatten(1, 2), W, self.pattern)
        return moved.view(len(moved), *h.shape[1:])

    def returned(self, g: Tensor, W: Tensor) -> Tensor:
        if g.shape[1] == 0:
            return g
        moved = sparse_ops.ell_matmul_t(g.flatten(1, 2), W, self.pattern)
        return moved.view(len(moved), *g.shape[1:])

    def scan(self, u: Tensor, d: Tensor, W: Tensor) -> Tensor:
        return sparse_ops.ell_scan(u, d, W, self.pattern)

    def scan_back(self, u: Tensor, d: Tensor, W: Tensor, a: Tensor | None) -> Tensor:
        return sparse_ops.ell_scan(u, d, W, self.pattern, a, transposed=True, reverse=True)

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


class EntriesAsMatrix(Recurrence):
    """A sparse W_hh that is made dense for the passes, where that is faster."""

    is_spread = True

    def split(self, theta: Tensor) -> RnnWeights:
        w = split_entries(theta, self.shape, self.pattern.K)
        return w._replace(W_hh=sparse_ops.ell_dense(w.W_hh, self.pattern))

    def outer(self, g: Tensor, h: Tensor) -> Tensor:
        return self._gathered(super().outer(g, h))

    def squares(self, g: Tensor, h: Tensor) -> Tensor:
        return self._gathered(super().squares(g, h)).flatten()

    def spread(self, v: Tensor) -> Tensor:
        return torch.cat([p.flatten(1) for p in self.split(v)], 1)

    def restricted(self, g: Tensor) -> Tensor:
        w = split_flat(g, self.shape)
        w = w._replace(W_hh=sparse_ops.ell_gather(w.W_hh, self.pattern))
        return torch.cat([p.flatten(1) for p in w], 1)

    def _gathered(self, W: Tensor) -> Tensor:
        H = self.shape.H
        return sparse_ops.ell_gather(W.view(-1, H, H), self.pattern).flatten(1)


def recurrence_of(model: RNN) -> Recurrence:
    """The form in which the model's W_hh is fastest, by shape and device."""
    if not model.sparse:
        return Recurrence(model)
    return Entries(model) if model.runs_sparse else EntriesAsMatrix(model)


def split_entries(theta: Tensor, shape: RnnShape, K: int) -> RnnWeights:
    """Views of ``theta [G,N]`` as parameters, in W_hh's place the values ``[G,H,K]``."""
    W_hx, _, *others = shape.shapes
    shapes = (W_hx, (shape.H, K), *others)
    parts = theta.split([torch.Size(s).numel() for s in shapes], dim=1)
    return RnnWeights(*(p.view(len(theta), *s) for p, s in zip(parts, shapes, strict=True)))
