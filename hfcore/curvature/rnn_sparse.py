"""Objective and curvature of an :class:`hfcore.RNN` whose W_hh is sparse.

θ holds the values of the entries in W_hh's place. With P the matrix that puts them into the dense
net's θ, gradients are Pᵀ∇f(Pθ) and curvatures PᵀBP. Losses, gradients, squared gradients and
Gauss-Newton products run on the entries where that is faster; everything else, and everything
where it is not, runs on the dense net and is restricted to the pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.bindings import loss as loss_ops
from hfcore.bindings.checks import check_out, check_tensor
from hfcore.bindings.recurrence import split_flat
from hfcore.bindings.sparse import EllPattern, ell_dense, ell_gather
from hfcore.curvature.rnn import GRADIENT_CHUNK, RnnObjective, Sequences
from hfcore.curvature.rnn_passes import States
from hfcore.curvature.rnn_sparse_passes import (
    backward,
    case_squares,
    outputs,
    parameter_gradient,
    split_sparse,
    states,
    tangent,
)
from hfcore.losses import Loss
from hfcore.models.rnn import RNN
from hfcore.objective import Curvature, CurvatureKind


class SparseRnnObjective:
    """:class:`hfcore.curvature.rnn.RnnObjective` of a sparse net; the same options."""

    supports_structural = True
    supports_stop = True

    def __init__(self, model: RNN, loss: Loss, **options: Any) -> None:
        self.dense = RnnObjective(model, loss, **options)
        self.model = model
        self.loss_function = loss
        self.l2 = self.dense.l2

    def prepare(self, data: Batch | Sequence[Batch]) -> list[Sequences]:
        """As :meth:`RnnObjective.prepare`."""
        return self.dense.prepare(data)

    def minibatches(self, data: list[Sequences]) -> int:
        return self.dense.minibatches(data)

    def damping_start(self, data: list[Sequences]) -> float:
        return self.dense.damping_start(data)

    @property
    def pattern(self) -> EllPattern:
        return self.model.pattern

    def spread(self, theta: Tensor) -> Tensor:
        """Pθ: the dense net's ``[...,N_dense]`` from ``theta [...,N]``."""
        w = split_sparse(theta.reshape(-1, theta.shape[-1]), self.model.shape, self.pattern.K)
        w = w._replace(W_hh=ell_dense(w.W_hh, self.pattern))
        return torch.cat([p.flatten(1) for p in w], 1).view(*theta.shape[:-1], -1)

    def restricted(self, g: Tensor) -> Tensor:
        """Pᵀg: the entries ``[...,N]`` of the dense net's ``g [...,N_dense]``."""
        w = split_flat(g.reshape(-1, g.shape[-1]), self.model.shape)
        w = w._replace(W_hh=ell_gather(w.W_hh, self.pattern))
        return torch.cat([p.flatten(1) for p in w], 1).view(*g.shape[:-1], -1)

    def loss(self, data: list[Sequences], theta: Tensor) -> float:
        if not self.model.runs_sparse:
            return self.dense.loss(data, self.spread(theta))
        scale, total = self.dense.scale(data), 0.0
        for whole in data:
            for part in whole.chunks(GRADIENT_CHUNK):
                total += self.dense.loss_at(part, outputs(self.states(part, theta)), scale)
        return total + self.dense.regulariser(theta)

    def gradient(self, data: list[Sequences], theta: Tensor) -> tuple[float, Tensor]:
        if not self.model.runs_sparse:
            value, g = self.dense.gradient(data, self.spread(theta))
            return value, self.restricted(g)
        scale, pattern, total = self.dense.scale(data), self.pattern, 0.0
        gradient = self.l2 * theta
        for whole in data:
            for part in whole.chunks(GRADIENT_CHUNK):
                at = self.states(part, theta)
                s = outputs(at)
                total += self.dense.loss_at(part, s, scale)
                gs = self.dense.output_gradient(part, s).mul_(scale)
                gradient += parameter_gradient(at, pattern, backward(at, pattern, gs), gs)[0]
        return total + self.dense.regulariser(theta), gradient

    def squared_gradients(self, data: list[Sequences], theta: Tensor) -> Tensor:
        """As :meth:`RnnObjective.squared_gradients`."""
        if not self.model.runs_sparse:
            return self.restricted(self.dense.squared_gradients(data, self.spread(theta)))
        pattern, total = self.pattern, torch.zeros_like(theta)
        for whole in data:
            for part in whole.chunks(GRADIENT_CHUNK):
                at = self.states(part, theta)
                gs = self.dense.output_gradient(part, outputs(at))
                total += case_squares(at, pattern, backward(at, pattern, gs), gs)
        return total.mul_(self.dense.square_scale(data))

    def curvature(
        self, data: list[Sequences], theta: Tensor, kind: CurvatureKind = "ggn"
    ) -> Curvature:
        if kind == "ggn" and self.model.runs_sparse:
            return SparseRnnCurvature(self, data, theta)
        return RestrictedCurvature(self, self.dense.curvature(data, self.spread(theta), kind))

    def states(self, part: Sequences, theta: Tensor) -> States:
        """States of a batch at ``theta [N]``, on the entries."""
        w = split_sparse(theta.unsqueeze(0), self.model.shape, self.pattern.K)
        e = self.model.nonlinearity
        return States(part.x, states(part.x, w, self.pattern, e), w, e, part.steps)


class RestrictedCurvature:
    """PᵀBP of a curvature B of the dense net."""

    def __init__(self, objective: SparseRnnObjective, dense: Curvature) -> None:
        self._objective, self._dense = objective, dense
        self.loss = dense.loss

    def product(
        self,
        v: Tensor,
        *,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """(B + damping·I + structural·G_S) v for ``v [N]``, on the pattern."""
        wide = self._dense.product(
            self._objective.spread(v), damping=damping, structural=structural, stop=stop
        )
        return _into(out, self._objective.restricted(wide), stop)

    def products(self, V: Tensor, damping: float = 0.0, structural: float = 0.0) -> Tensor:
        """The same for the rows of ``V [m,N]``."""
        wide = self._dense.products(self._objective.spread(V), damping, structural)
        return self._objective.restricted(wide)

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag(G) ``[N]`` as the dense net's curvature gives it."""
        return self._objective.restricted(self._dense.diagonal(probes, generator))


@dataclass(frozen=True)
class _Linearisation:
    """What a product needs of one batch: states (None: recomputed) and the diagonal of L''."""

    part: Sequences
    at: States | None
    c: Tensor


class SparseRnnCurvature:
    """Gauss-Newton matrix at fixed parameters and data, on the entries."""

    def __init__(self, objective: SparseRnnObjective, data: list[Sequences], theta: Tensor) -> None:
        self._objective, self._data = objective, data
        self._theta, self._pattern = theta.clone(), objective.pattern
        self._scale = objective.dense.scale(data)
        self._parts: list[_Linearisation] = []
        kind, total = objective.loss_function.kind, 0.0
        for whole in data:
            for part in whole.chunks(GRADIENT_CHUNK):
                at = objective.states(part, self._theta)
                s = outputs(at)
                total += objective.dense.loss_at(part, s, self._scale)
                c = loss_ops.loss_curvature(kind, s, part.targets, part.mask)
                kept = at if objective.dense.memory == "cached" else None
                self._parts.append(_Linearisation(part, kept, c))
        self.loss = total + objective.dense.regulariser(theta)

    def product(
        self,
        v: Tensor,
        *,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """(G + l2·I + damping·I + structural·G_S) v for ``v [N]``."""
        return _into(out, self.products(v.unsqueeze(0), damping, structural)[0], stop)

    def products(self, V: Tensor, damping: float = 0.0, structural: float = 0.0) -> Tensor:
        """The same for the rows of ``V [m,N]`` in one pass, on the group axis."""
        check_tensor("v", V, ["m", self._theta.numel()], like=self._theta)
        objective, pattern = self._objective, self._pattern
        v = split_sparse(V.detach(), objective.model.shape, pattern.K)
        structural *= objective.dense.structural_factor
        total = (damping + objective.l2) * V.detach()
        for lin in self._parts:
            at = objective.states(lin.part, self._theta) if lin.at is None else lin.at
            Rh, Rs = tangent(at, pattern, v)
            gs = loss_ops.loss_hessian_product(lin.c, Rs, rank_one=objective.loss_function.rank_one)
            # D'' = e' makes structural damping structural·Rh
            gt = backward(at, pattern, gs, structural * Rh if structural else None)
            total += self._scale * parameter_gradient(at, pattern, gt, gs)
        return total

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag(G) ``[N]``, by the dense net's passes."""
        objective = self._objective
        wide = objective.dense.curvature(self._data, objective.spread(self._theta))
        return objective.restricted(wide.diagonal(probes, generator))


def _into(out: Tensor | None, value: Tensor, stop: Tensor | None) -> Tensor:
    """The product, in the caller's buffer if any, which a raised ``stop`` leaves alone."""
    if out is None:
        return value
    check_out(out, value.shape, value)
    if stop is not None:
        value = torch.where(stop != 0, out, value)
    return out.copy_(value)
