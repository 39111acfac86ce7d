"""Hessian and empirical Fisher matrix of an RNN, by explicit passes on the recurrence ops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from hfcore.bindings import loss as loss_ops
from hfcore.bindings import recurrence as ops
from hfcore.bindings.checks import check_out, check_tensor
from hfcore.bindings.recurrence import RnnWeights, split_flat
from hfcore.curvature.rnn import GRADIENT_CHUNK, RnnObjective, Sequences
from hfcore.curvature.rnn_passes import (
    States,
    above,
    along_cases,
    backward,
    cross_gradient,
    parameter_gradient,
    rbackward,
    tangent,
)


@dataclass(frozen=True)
class _Linearisation:
    """A chunk of sequences: states, L'' and the gradient's own passes.

    ``c, gs [1,T_out,B,k]`` the diagonal of L'' and ∂L/∂s; ``gt [1,T,B,H]`` = ∂L/∂t; ``bent`` is
    ∂L/∂h ⊙ e''/e', or None where e'' = 0.
    """

    at: States
    c: Tensor
    gs: Tensor
    gt: Tensor
    bent: Tensor | None


class _RnnMatrix(ABC):
    """What the two matrices share: chunks, linearised once or in every product, and damping."""

    def __init__(self, objective: RnnObjective, data: list[Sequences], theta: Tensor) -> None:
        self._objective = objective
        self._w = objective.weights(theta.clone())
        self._scale = objective.scale(data)
        self._square_scale = objective.square_scale(data)
        self._data = data
        self._N = theta.numel()
        self._chunks = [chunk for whole in data for chunk in whole.chunks(GRADIENT_CHUNK)]
        self._cached: list[_Linearisation] = []
        total = 0.0
        for part in self._chunks:
            if objective.memory == "cached":
                lin, value = self._linearise(part)
                self._cached.append(lin)
            else:
                s = objective.forward(part, self._w, states=False)[1]
                value = objective.loss_at(part, s, self._scale)
            total += value
        self.loss = total + objective.regulariser(theta)

    def product(
        self,
        v: Tensor,
        *,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """(B + l2·I + damping·I + structural·G_S) v for ``v [N]``; it is computed to the end."""
        grouped = None if out is None else out.unsqueeze(0)
        return self.products(v.unsqueeze(0), damping, structural, grouped)[0]

    def products(
        self,
        v: Tensor,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
    ) -> Tensor:
        """The same for the rows of ``v [m,N]``, one after the other."""
        check_tensor("v", v, ["m", self._N], like=self._w.W_hh)
        out = check_out(out, v.shape, v)
        structural *= self._objective.structural_factor
        for row, into in zip(v.detach(), out, strict=True):
            direction = row.unsqueeze(0)
            total = (damping + self._objective.l2) * direction
            for i, part in enumerate(self._chunks):
                lin = self._cached[i] if self._cached else self._linearise(part)[0]
                total += self._one(lin, direction, split_flat(direction, self._shape), structural)
            into.copy_(total[0])
        return out

    @property
    def _shape(self) -> ops.RnnShape:
        return self._objective.model.shape

    def _linearise(self, part: Sequences) -> tuple[_Linearisation, float]:
        objective = self._objective
        at, s = objective.states_and_outputs(part, self._w)
        c = loss_ops.loss_curvature(objective.loss_function.kind, s, part.targets, part.mask)
        gs = objective.output_gradient(part, s)
        gt = backward(at, gs)
        bend = at.bend
        bent = None if bend is None else bend.mul_(above(at, gt, gs))
        return _Linearisation(at, c, gs, gt, bent), objective.loss_at(part, s, self._scale)

    @abstractmethod
    def _one(self, lin: _Linearisation, flat: Tensor, v: RnnWeights, structural: float) -> Tensor:
        """One chunk's part for ``flat [1,N]``, split as ``v``."""


class RnnHessian(_RnnMatrix):
    """The exact Hessian, by the R-op on both passes (Pearlmutter 1994)."""

    def _one(self, lin: _Linearisation, flat: Tensor, v: RnnWeights, structural: float) -> Tensor:
        at, loss = lin.at, self._objective.loss_function
        Rh, Rs = tangent(at, v)
        Rgs = loss_ops.loss_hessian_product(lin.c, Rs, rank_one=loss.rank_one)
        a = structural * Rh  # D'' = e' makes structural damping structural·Rh
        if lin.bent is not None:
            a.addcmul_(lin.bent, Rh)
        Rgt = rbackward(at, lin.gt, lin.gs, Rgs, v, a)
        curved = parameter_gradient(at, Rgt, Rgs) + cross_gradient(at, lin.gt, lin.gs, Rh)
        return curved.mul_(self._scale)

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Raises ValueError: the Hessian has no square root to probe."""
        raise ValueError("diagonal: the Hessian is not a Gram matrix, need kind 'ggn'")


class RnnFisher(_RnnMatrix):
    """The empirical Fisher matrix, mean of g_i g_iᵀ over sequences."""

    def _one(self, lin: _Linearisation, flat: Tensor, v: RnnWeights, structural: float) -> Tensor:
        at = lin.at
        weight = along_cases(at, lin.gt, lin.gs, v)[:, None, :, None]
        fisher = parameter_gradient(at, weight * lin.gt, weight * lin.gs).mul_(self._square_scale)
        if structural:  # a product without L'' is the structural term alone
            fisher += ops.rnn_gauss_newton(
                at.x,
                at.h,
                self._w,
                flat,
                torch.zeros_like(lin.c),
                nonlinearity=at.nonlinearity,
                steps=at.steps,
                scale=self._scale,
                structural=structural,
            )
        return fisher

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The exact diagonal ``[N]``; probes are not needed."""
        flat = torch.cat([w.flatten(1) for w in self._w], dim=1)[0]
        return self._objective.squared_gradients(self._data, flat)
