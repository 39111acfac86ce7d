"""hf.RNN on the recurrence ops: its passes, for W_hh as a matrix and for its entries alike.

Arrays are ``[G,T,B,·]``; an axis G of length 1 is shared. t are the hidden pre-activations,
h = e(t), gt = ∂L/∂t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.bindings import recurrence as ops
from hfcore.bindings.checks import check_choice
from hfcore.bindings.recurrence import RnnWeights, activation_derivative
from hfcore.losses import Loss, OutputHessian
from hfcore.losses.hessian import DiagonalHessian, IdentityHessian
from hfcore.models.rnn import RNN
from hfcore.nets.net import Data, FusedNet, Into, Pass, Tangent, Uncached
from hfcore.nets.recurrence import recurrence_of
from hfcore.nets.sequences import Sequences, check_sequences
from hfcore.nets.through_time import (
    activation_bend,
    at_outputs,
    case_slices,
    case_squares,
    outer,
    scattered,
    times,
)

StructuralDistance = Literal["matching", "quarter"]

# D'' of the structural term in units of e'(t). Note 1: the paper derives D'' = 1 − h² for tanh; the
# original release multiplies by 0.25, so that the same μ is four times weaker there.
STRUCTURAL_FACTOR: dict[str, float] = {"matching": 1.0, "quarter": 0.25}

# Sequences whose states are held at once while a gradient is accumulated.
SEQUENCES_AT_ONCE = 1024


@dataclass(frozen=True)
class RnnStates:
    """Weights and hidden states ``h [G,T,B,H]`` of a pass."""

    w: RnnWeights
    h: Tensor


class RnnNet(FusedNet):
    """Nets shaped like one :class:`hfcore.RNN`.

    Args:
        model, loss: see :class:`FusedNet`.
        structural: whether structural damping is wanted; μ reaches the products as part of λμ, at
            the hidden state.
        structural_distance: ``"matching"``, D'' = e'(t) (M&S 2011, section 3), or ``"quarter"``,
            the original release's 0.25·e'(t).
    """

    memory = "cached"
    timed = True
    supports_structural = True
    has_fisher = True

    def __init__(
        self,
        model: RNN,
        loss: Loss,
        *,
        structural: float | Mapping[str, Any] = 0.0,
        structural_distance: StructuralDistance = "matching",
    ) -> None:
        check_choice("structural_distance", structural_distance, tuple(STRUCTURAL_FACTOR))
        if isinstance(structural, Mapping):
            raise ValueError(
                "structural: got a mapping; the hidden state of an hf.RNN is damped by a number μ"
            )
        names = [name for name, _ in model.named_parameters()]
        numel = sum(p.numel() for p in model.parameters())
        if names != list(RnnWeights._fields):
            numel = -1
        super().__init__(model, loss, numel=numel, output_size=model.output_size)
        self.sizes = (model.input_size, model.output_size)
        self.nonlinearity = model.nonlinearity
        self.W = recurrence_of(model)
        self.walks_cases = self.W.has_ops
        self.supports_groups = not model.sparse
        self.factor = STRUCTURAL_FACTOR[structural_distance]

    def apart(self) -> Self:
        other = super().apart()
        other.W = self.W.pinned()
        return other

    # ---- data

    def check(self, batch: Batch, dtype: torch.dtype | None = None) -> Sequences:
        like = next(self.model.parameters()) if dtype is None else None
        return check_sequences(batch, self.loss, self.sizes, like=like, dtype=dtype)

    def check_tested(self, batch: Batch, dtype: torch.dtype) -> Sequences:
        return check_sequences(batch, self.loss, self.sizes, dtype=dtype, every_step=True)

    def bytes_per_case(self, part: Sequences) -> int:
        return part.x.shape[1] * self.W.shape.H * part.x.element_size()

    def chunk_size(self, part: Sequences) -> int:
        return SEQUENCES_AT_ONCE

    def second(self, part: Data, s: Tensor, *, exact: bool = False) -> OutputHessian:
        second = super().second(part, s, exact=exact)
        if isinstance(second, IdentityHessian):
            return DiagonalHessian(torch.ones_like(s))  # the op takes a tensor
        return second

    # ---- passes

    def outputs(self, theta: Tensor, part: Sequences) -> Tensor:
        return self.W.forward(part, self.W.split(theta), states=False)[1]

    def forward(self, theta: Tensor, part: Sequences, *, fresh: bool) -> Pass:
        w, out = self.W.split(theta), None
        if not fresh:  # fresh pages cost as much as the arithmetic
            out = self.work.take(
                "states", theta, len(theta), part.x.shape[1], part.count, self.W.shape.H
            )
        h, s = self.W.forward(part, w, states=True, out=out)
        assert h is not None
        return Pass(part, s, RnnStates(w, h))

    def tangent(self, at: Pass, v: Tensor, *, keep: bool, stop: Tensor | None = None) -> Tangent:
        """Rh and Rs (M&S 2011, Algorithm 1); ``stop`` is not looked at."""
        w, h, V = at.states.w, at.states.h, self.W.split(v)
        Rh = self.W.scan(self._direct(at, V), self._slope(h), w.W_hh)
        return Tangent(times(at_outputs(Rh, at.part.steps), w.W_yh.mT) + self._read(at, V), Rh)

    def backward(self, at: Pass, gs: Tensor, into: Into) -> Tensor:
        g = self._gradient(at, self._through_time(at, gs, into.add), gs, at.states.h, at.part.x)
        return into.out.copy_(g.mul_(into.scale))

    def structural_term(self, at: Pass, R: Tangent, structural: float) -> Tensor:
        Rh: Tensor = R.states
        return self.factor * structural * Rh  # D'' = e' makes D''Rt = Rh

    def adjoint(self, at: Pass, gs: Tensor, *, bends: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """(gs, gt, ∂L/∂h ⊙ e''/e' with ``bends``, None where e'' = 0)."""
        w, h = at.states.w, at.states.h
        gt = self._through_time(at, gs)
        bend = activation_bend(h, self.nonlinearity) if bends else None
        if bend is not None:
            gh = scattered(times(gs, w.W_yh), at.part.steps, h.shape[1])
            gh[:, :-1] += self.W.returned(gt[:, 1:], w.W_hh)
            bend = bend.mul_(gh)
        return gs, gt, bend

    def rbackward(
        self, at: Pass, adjoint: Any, R: Tangent, Rgs: Tensor, v: Tensor, into: Into
    ) -> Tensor:
        """Rgt_t = e' ⊙ (Rgt_{t+1} W_hh + gt_{t+1} V_hh + Rgs_t W_yh + gs_t V_yh) + bend + add."""
        (gs, gt, bend), Rh, part, V = adjoint, R.states, at.part, self.W.split(v)
        w, h, add = at.states.w, at.states.h, into.add
        if bend is not None:
            add = bend * Rh if add is None else add.addcmul_(bend, Rh)
        u = scattered(times(Rgs, w.W_yh) + times(gs, V.W_yh), part.steps, h.shape[1])
        u[:, :-1] += self.W.returned(gt[:, 1:], V.W_hh)
        Rgt = self.W.scan_back(u, self._slope(h), w.W_hh, add)
        curved = self._gradient(at, Rgt, Rgs, h, part.x)
        # The same with Rh in h's place; inputs and ones have no tangent.
        cross = self._gradient(at, gt, gs, Rh, None)
        return torch.add(curved, cross, out=into.out).mul_(into.scale)

    def squares(self, at: Pass, gs: Tensor, into: Into) -> Tensor:
        gt, x, h = self._through_time(at, gs), at.part.x[0], at.states.h[0]
        read = at_outputs(at.states.h, at.part.steps)[0]
        widest = max(gt.shape[-1], x.shape[-1], gs.shape[-1]) * gt.shape[-1]
        for net, total in enumerate(into.out.zero_()):
            for b in case_slices(gt.shape[2], widest, gt):
                g, o, before = gt[net, :, b], gs[net, :, b], h[:-1, b]
                total += torch.cat(
                    [
                        case_squares(g, x[:, b]).flatten(),
                        self.W.squares(g[1:], before),
                        case_squares(o, read[:, b]).flatten(),
                        g.sum(0).square().sum(0),
                        g[0].square().sum(0),
                        o.sum(0).square().sum(0),
                    ]
                )
        return into.out.mul_(into.scale)

    # ---- shortcuts

    def gradient(self, at: Pass, into: Into) -> Tensor:
        gs = self.slope(at.part, at.s, scale=into.scale)
        if not self.W.has_ops:
            return self.backward(at, gs, into._replace(scale=1.0))
        g = ops.rnn_backward(
            at.part.x,
            at.states.h,
            at.states.w,
            gs,
            nonlinearity=self.nonlinearity,
            steps=at.part.steps,
            out=None if self.W.is_spread else into.out,
        )
        return g if g is into.out else into.out.copy_(self.W.restricted(g))

    def gauss_newton(
        self,
        at: Pass | Uncached,
        v: Tensor,
        second: OutputHessian,
        into: Into,
        *,
        structural: float,
        damping: float,
        accumulate: bool,
    ) -> None:
        """One op; its buffers stay for CG alone: many tangents would hold as many times more."""
        assert second.kernel_form is not None  # see FusedCurvature
        c, rank_one = second.kernel_form
        (out, scale, _, stop), form, spread = into, self.W, self.W.is_spread
        g = ops.rnn_gauss_newton(
            at.part.x,
            at.states.h if isinstance(at, Pass) else None,
            at.states.w if isinstance(at, Pass) else form.split(at.theta),
            form.spread(v),
            c,
            rank_one=rank_one,
            nonlinearity=self.nonlinearity,
            steps=at.part.steps,
            scale=scale,
            structural=structural * self.factor,
            damping=0.0 if spread else damping,
            out=None if spread else out,
            accumulate=accumulate and not spread,
            stop=stop,
            scratch=self.work if len(v) == 1 else None,
        )
        if spread:
            g = form.restricted(g).add_(v, alpha=damping)
            g = g.add_(out) if accumulate else g
            out.copy_(g if stop is None else torch.where(stop != 0, out, g))

    def fisher(self, at: Pass, adjoint: Any, v: Tensor, into: Into) -> Tensor:
        """From ⟨g_i, v⟩ ``[G,B]`` = Σ_t gt·(direct tangent of t) + gs·(that of s): no scan."""
        (gs, gt, _), V = adjoint, self.W.split(v)
        along = (gt * self._direct(at, V)).sum((1, 3)) + (gs * self._read(at, V)).sum((1, 3))
        weight = along[:, None, :, None]
        g = self._gradient(at, weight * gt, weight * gs, at.states.h, at.part.x)
        return into.out.copy_(g.mul_(into.scale))

    # ---- pieces of the passes

    def _slope(self, h: Tensor) -> Tensor:
        """e'(t)."""
        return activation_derivative(h, self.nonlinearity)

    def _direct(self, at: Pass, V: RnnWeights) -> Tensor:
        """Rt ``[G,T,B,H]`` where h has no tangent: what V itself does at every step."""
        h = at.states.h
        u = times(at.part.x, V.W_hx.mT) + V.b_h[:, None, None]
        u[:, 1:] += self.W.carried(h[:, :-1], V.W_hh)
        u[:, 0] += V.b_init.unsqueeze(1)
        return u

    def _read(self, at: Pass, V: RnnWeights) -> Tensor:
        """Rs ``[G,T_out,B,k]`` where h has no tangent."""
        return times(at_outputs(at.states.h, at.part.steps), V.W_yh.mT) + V.b_y[:, None, None]

    def _through_time(self, at: Pass, gs: Tensor, add: Tensor | None = None) -> Tensor:
        """BPTT: gt ``[G,T,B,H]`` from ``gs``; ``add`` joins every step."""
        w, h = at.states.w, at.states.h
        u = scattered(times(gs, w.W_yh), at.part.steps, h.shape[1])
        return self.W.scan_back(u, self._slope(h), w.W_hh, add)

    def _gradient(self, at: Pass, gt: Tensor, gs: Tensor, h: Tensor, x: Tensor | None) -> Tensor:
        """gtᵀ·[x, h_{t-1}, 1] and gsᵀ·[h, 1] over time and cases, ``[G,N]``; x None: 0 for x, 1."""
        weights = [self.W.outer(gt[:, 1:], h[:, :-1]), outer(gs, at_outputs(h, at.part.steps))]
        if x is None:
            inputs = gt.new_zeros(1, gt.shape[-1] * at.part.x.shape[-1])
            biases = [gt.new_zeros(1, 2 * gt.shape[-1] + gs.shape[-1])]
        else:
            inputs = outer(gt, x)
            biases = [gt.sum((1, 2)), gt[:, 0].sum(1), gs.sum((1, 2))]
        G = max(len(gt), len(h))
        return torch.cat([p.expand(G, -1) for p in (inputs, *weights, *biases)], dim=1)
