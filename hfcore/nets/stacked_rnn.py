"""hf.StackedRNN: its passes are sequences of calls of the recurrence ops, a layer at a time.

Arrays are ``[G,T,B,·]``; an axis G of length 1 is shared. t are the hidden pre-activations of a
layer, h = e(t), gt = ∂L/∂t; the layer below gives its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.bindings import recurrence as ops
from hfcore.bindings.recurrence import RnnWeights, activation_derivative, linear_scan
from hfcore.losses import Loss
from hfcore.models.stacked_rnn import StackedRNN
from hfcore.nets.mlp_structural import check_mu
from hfcore.nets.net import FusedNet, Into, Pass, Tangent
from hfcore.nets.rnn import SEQUENCES_AT_ONCE
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


class Layer(NamedTuple):
    """Parameters of one layer, or their tangents, with a group axis."""

    W_hx: Tensor
    W_hh: Tensor
    b_h: Tensor
    b_init: Tensor


class Weights(NamedTuple):
    """Those of the read-out, and of all layers."""

    W_yh: Tensor
    b_y: Tensor
    layers: list[Layer]


@dataclass(frozen=True)
class StackedStates:
    """Weights, and the inputs with the states of every layer: ``ys[l+1] [G,T,B,H_l]``."""

    w: Weights
    ys: list[Tensor]


class StackedRnnNet(FusedNet):
    """Nets shaped like one :class:`hfcore.StackedRNN`.

    Args:
        model, loss: see :class:`FusedNet`.
        structural: a number (the hidden state of every layer, D'' = e'(t); μ reaches the products
            as part of λμ), or a mapping ``{"layers.0": D or (D, μ)}``, D their own nonlinearity.
    """

    timed = True
    supports_structural = True

    def __init__(
        self, model: StackedRNN, loss: Loss, *, structural: float | Mapping[str, Any] = 0.0
    ) -> None:
        k, below = model.output_size, model.input_size
        self.shapes: list[tuple[int, ...]] = [(k, model.hidden_sizes[-1]), (k,)]
        for H in model.hidden_sizes:
            self.shapes += [(H, below), (H, H), (H,), (H,)]
            below = H
        numel = sum(torch.Size(shape).numel() for shape in self.shapes)
        super().__init__(model, loss, numel=numel, output_size=k)
        self.sizes = (model.input_size, k)
        self.hidden_sizes, self.nonlinearity = model.hidden_sizes, model.nonlinearity
        self.damped = damped_layers(model, structural)

    def split(self, flat: Tensor) -> Weights:
        """``flat [G,N]`` as parameters with a group axis."""
        parts = flat.split([torch.Size(shape).numel() for shape in self.shapes], dim=1)
        views = [p.view(-1, *shape) for p, shape in zip(parts, self.shapes, strict=True)]
        layers = [Layer(*views[at : at + 4]) for at in range(2, len(views), 4)]
        return Weights(views[0], views[1], layers)

    # ---- data

    def check(self, batch: Batch, dtype: torch.dtype | None = None) -> Sequences:
        like = next(self.model.parameters()) if dtype is None else None
        return check_sequences(batch, self.loss, self.sizes, like=like, dtype=dtype)

    def check_tested(self, batch: Batch, dtype: torch.dtype) -> Sequences:
        return check_sequences(batch, self.loss, self.sizes, dtype=dtype, every_step=True)

    def bytes_per_case(self, part: Sequences) -> int:
        return part.x.shape[1] * sum(self.hidden_sizes) * part.x.element_size()

    def chunk_size(self, part: Sequences) -> int:
        return SEQUENCES_AT_ONCE

    # ---- passes

    def outputs(self, theta: Tensor, part: Sequences) -> Tensor:
        return self.forward(theta, part, fresh=False).s

    def forward(self, theta: Tensor, part: Sequences, *, fresh: bool) -> Pass:
        w, ys = self.split(theta), [part.x]
        for l, layer in enumerate(w.layers):
            x, G, H = ys[-1], len(theta), layer.W_hh.shape[1]
            out = None if fresh else self.work.take(f"states{l}", theta, G, *x.shape[1:3], H)
            # The read-out of this op is not used: one output of weight zero.
            zero = x.new_zeros(1, 1, H), x.new_zeros(1, 1)
            arrays = RnnWeights(layer.W_hx, layer.W_hh, zero[0], layer.b_h, layer.b_init, zero[1])
            h, _ = ops.rnn_forward(
                x, arrays, nonlinearity=self.nonlinearity, steps=part.steps, out=out
            )
            assert h is not None
            ys.append(h)
        s = times(at_outputs(ys[-1], part.steps), w.W_yh.mT) + w.b_y[:, None, None]
        return Pass(part, s, StackedStates(w, ys))

    def tangent(self, at: Pass, v: Tensor, *, keep: bool, stop: Tensor | None = None) -> Tangent:
        """Rh of every layer (M&S 2011, Algorithm 1, a layer at a time) and Rs."""
        w, ys, V = at.states.w, at.states.ys, self.split(v)
        Rhs: list[Tensor] = []
        for l, (layer, R) in enumerate(zip(w.layers, V.layers, strict=True)):
            u = times(ys[l], R.W_hx.mT) + R.b_h[:, None, None]
            if l:
                u += times(Rhs[-1], layer.W_hx.mT)
            u[:, 1:] += times(ys[l + 1][:, :-1], R.W_hh.mT)
            u[:, 0] += R.b_init.unsqueeze(1)
            Rhs.append(linear_scan(u, self._slope(ys[l + 1]), layer.W_hh.mT))
        read = (at_outputs(y, at.part.steps) for y in (Rhs[-1], ys[-1]))
        Rs = times(next(read), w.W_yh.mT) + times(next(read), V.W_yh.mT) + V.b_y[:, None, None]
        return Tangent(Rs, Rhs)

    def backward(self, at: Pass, gs: Tensor, into: Into) -> Tensor:
        gts = self._through_time(at, gs, into.add or {})
        return into.out.copy_(self._gradient(at, gts, gs).mul_(into.scale))

    def structural_term(self, at: Pass, R: Tangent, structural: float) -> dict[int, Tensor]:
        # D'' = e' makes D''Rt = Rh.
        return {l: structural * mu * R.states[l] for l, mu in self.damped.items()}

    def adjoint(
        self, at: Pass, gs: Tensor, *, bends: bool
    ) -> tuple[Tensor, list[Tensor], dict[int, Tensor]]:
        """(gs, gt of every layer, ∂L/∂h ⊙ e''/e' of those where e'' is not 0)."""
        w, ys, gts = at.states.w, at.states.ys, self._through_time(at, gs, {})
        bend_of: dict[int, Tensor] = {}
        gh = self._at_states(at, times(gs, w.W_yh))
        for l, layer in reversed(list(enumerate(w.layers))):
            bend = activation_bend(ys[l + 1], self.nonlinearity)
            if bend is not None:
                gh[:, :-1] += times(gts[l][:, 1:], layer.W_hh)
                bend_of[l] = bend.mul_(gh)
            gh = times(gts[l], layer.W_hx)
        return gs, gts, bend_of

    def rbackward(
        self, at: Pass, adjoint: Any, R: Tangent, Rgs: Tensor, v: Tensor, into: Into
    ) -> Tensor:
        (gs, gts, bend_of), w, V, Rhs = adjoint, at.states.w, self.split(v), R.states
        add, Rgts = dict(into.add or {}), list(gts)
        for l, bend in bend_of.items():
            bent = bend * Rhs[l]
            add[l] = add[l].add_(bent) if l in add else bent
        u = self._at_states(at, times(Rgs, w.W_yh) + times(gs, V.W_yh))
        for l, (layer, direction) in reversed(
            list(enumerate(zip(w.layers, V.layers, strict=True)))
        ):
            u[:, :-1] += times(gts[l][:, 1:], direction.W_hh)
            slope = self._slope(at.states.ys[l + 1])
            Rgts[l] = linear_scan(u, slope, layer.W_hh, add.get(l), reverse=True)
            u = times(Rgts[l], layer.W_hx) + times(gts[l], direction.W_hx)
        curved = self._gradient(at, Rgts, Rgs)
        # The same with Rh in h's place; inputs and ones have no tangent.
        cross = self._gradient(at, gts, gs, Rhs)
        return torch.add(curved, cross, out=into.out).mul_(into.scale)

    def squares(self, at: Pass, gs: Tensor, into: Into) -> Tensor:
        ys, gts = at.states.ys, self._through_time(at, gs, {})
        read = at_outputs(ys[-1], at.part.steps)[0]
        widest = max(max(shape) for shape in self.shapes) * max(self.hidden_sizes)
        for net, total in enumerate(into.out.zero_()):
            for b in case_slices(gs.shape[2], widest, gs):
                o = gs[net, :, b]
                pieces = [case_squares(o, read[:, b]), o.sum(0).square().sum(0)]
                for l, gt in enumerate(gts):
                    g = gt[net, :, b]
                    pieces += [
                        case_squares(g, ys[l][0, :, b]),
                        case_squares(g[1:], ys[l + 1][0, :-1, b]),
                        g.sum(0).square().sum(0),
                        g[0].square().sum(0),
                    ]
                total += torch.cat([p.flatten() for p in pieces])
        return into.out.mul_(into.scale)

    # ---- pieces of the passes

    def _slope(self, h: Tensor) -> Tensor:
        """e'(t)."""
        return activation_derivative(h, self.nonlinearity)

    def _at_states(self, at: Pass, g: Tensor) -> Tensor:
        """``g [G,T_out,B,H]`` at every step of the last layer, zeros where there is no output."""
        return scattered(g, at.part.steps, at.part.x.shape[1])

    def _through_time(self, at: Pass, gs: Tensor, add: Mapping[int, Tensor]) -> list[Tensor]:
        """BPTT: gt ``[G,T,B,H]`` of every layer from ``gs``; ``add[l]`` joins every step."""
        w, ys = at.states.w, at.states.ys
        gts: list[Tensor] = []
        u = self._at_states(at, times(gs, w.W_yh))
        for l, layer in reversed(list(enumerate(w.layers))):
            slope = self._slope(ys[l + 1])
            gts.insert(0, linear_scan(u, slope, layer.W_hh, add.get(l), reverse=True))
            if l:
                u = times(gts[0], layer.W_hx)
        return gts

    def _gradient(
        self, at: Pass, gts: list[Tensor], gs: Tensor, Rhs: list[Tensor] | None = None
    ) -> Tensor:
        """gsᵀ·[h, 1] and gtᵀ·[x, h_{t-1}, 1] of every layer over time and cases, ``[G,N]``.

        With ``Rhs`` those stand for the states, and there is nothing for inputs and ones.
        """
        hs = at.states.ys[1:] if Rhs is None else Rhs
        pieces = [outer(gs, at_outputs(hs[-1], at.part.steps))]
        pieces += _zero_unless(Rhs is None, gs.sum((1, 2)))
        for l, gt in enumerate(gts):
            x = hs[l - 1] if l else at.part.x if Rhs is None else torch.zeros_like(at.part.x)
            pieces += [outer(gt, x), outer(gt[:, 1:], hs[l][:, :-1])]
            pieces += _zero_unless(Rhs is None, gt.sum((1, 2)), gt[:, 0].sum(1))
        G = max(map(len, pieces))
        return torch.cat([p.expand(G, -1) for p in pieces], dim=1)


def damped_layers(model: StackedRNN, structural: float | Mapping[str, Any]) -> dict[int, float]:
    """Layer → μ. Raises ValueError or TypeError for no layer, another D or a bad μ."""
    names, own = [f"layers.{l}" for l in range(len(model.layers))], model.nonlinearity
    if not isinstance(structural, Mapping):
        check_mu("structural", structural)
        return dict.fromkeys(range(len(names)), 1.0)
    damped = {}
    for name, value in structural.items():
        if name not in names:
            raise ValueError(
                f"structural: got submodule {name!r}, need one of {names[0]}..{names[-1]}"
            )
        distance, mu = value if isinstance(value, tuple) and len(value) == 2 else (value, 1.0)
        if distance != own:
            raise ValueError(f"structural[{name!r}]: got {distance!r}, need {own!r}, its units")
        check_mu(f"structural[{name!r}]", mu)
        damped[names.index(name)] = float(mu)
    return damped


def _zero_unless(there: bool, *values: Tensor) -> list[Tensor]:
    return [value if there else torch.zeros_like(value) for value in values]
