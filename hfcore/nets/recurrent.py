"""Passes through recurrent nets of one or several layers, for any form of their W_hh.

Layer l = 0 .. L-1 takes ``ys[l] [G,T,B,n]`` to the states h = ``ys[l+1] [G,T,B,H]``; ``ys[0]`` are
the inputs. t are its pre-activations, h = e(t), gt = ∂L/∂t. An axis G of length 1 is shared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from hfcore.batches import Batch
from hfcore.bindings.recurrence import RnnWeights, activation_derivative
from hfcore.losses import Loss
from hfcore.nets.data import Data, check_sequences
from hfcore.nets.net import FusedNet, Into, Pass, Tangent, blocks
from hfcore.nets.recurrence import Recurrence, SparseRecurrence
from hfcore.nets.recurrent_parts import (
    Adjoint,
    Layer,
    RecurrentStates,
    Weights,
    case_sums,
    row,
    summed,
)
from hfcore.nets.through_time import (
    activation_bend,
    add_times,
    at_outputs,
    case_squares,
    joined_steps,
    outer,
    times,
)

# Sequences whose states are held at once while a gradient is accumulated.
SEQUENCES_AT_ONCE = 1024
# Bytes of single cases' weight gradients held at once.
CASE_BYTES = 32 << 20


class RecurrentNet(FusedNet):
    """The passes; a subclass says where parameters stand in θ.

    Args:
        model, loss: see :class:`FusedNet`.
        sizes: (n, k).
        nonlinearity: e.
        shapes: those of the parameters, as they stand in θ.
        hidden_sizes: units of every layer.
        forms: its W_hh.
        damped: factor of structural damping of every layer that has it, D'' = e'(t).
    """

    timed = True
    supports_structural = True
    has_fisher = True

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        sizes: tuple[int, int],
        nonlinearity: str,
        shapes: Sequence[tuple[int, ...]],
        hidden_sizes: Sequence[int],
        forms: list[Recurrence],
        damped: dict[int, float],
    ) -> None:
        self.shapes, self._numels = shapes, [torch.Size(shape).numel() for shape in shapes]
        super().__init__(model, loss, numel=sum(self._numels), output_size=sizes[1])
        self.sizes, self.nonlinearity = sizes, nonlinearity
        self.hidden_sizes, self.forms, self.damped = tuple(hidden_sizes), forms, damped
        self.replays_passes = not any(isinstance(form, SparseRecurrence) for form in forms)

    def views(self, theta: Tensor) -> list[Tensor]:
        """Every parameter of ``theta [G,N]``, with a group axis."""
        parts = theta.split(self._numels, dim=1)
        return [p.view(-1, *shape) for p, shape in zip(parts, self.shapes, strict=True)]

    @abstractmethod
    def split(self, theta: Tensor) -> Weights:
        """``theta [G,N]`` as parameters, W_hh as its form takes it."""

    @abstractmethod
    def joined(self, g: Weights) -> Tensor:
        """The flat ``[G,N]`` of what belongs to each parameter, ``[G,·]`` or ``[1,·]``."""

    def apart(self) -> Self:
        other = super().apart()
        other.forms = [form.pinned() for form in self.forms]
        return other

    # ---- data

    def check(self, batch: Batch, dtype: torch.dtype | None = None) -> Data:
        like = next(self.model.parameters()) if dtype is None else None
        return check_sequences(batch, self.loss, self.sizes, like=like, dtype=dtype)

    def check_tested(self, batch: Batch, dtype: torch.dtype) -> Data:
        return check_sequences(batch, self.loss, self.sizes, dtype=dtype, every_step=True)

    def bytes_per_case(self, part: Data) -> int:
        return part.x.shape[1] * sum(self.hidden_sizes) * part.x.element_size()

    def chunk_size(self, part: Data) -> int:
        return SEQUENCES_AT_ONCE

    # ---- passes

    def outputs(self, theta: Tensor, part: Data) -> Tensor:
        return self.forward(theta, part, fresh=False, states=False).s

    def forward(self, theta: Tensor, part: Data, *, fresh: bool, states: bool = True) -> Pass:
        """A pass; without ``states`` those of the last layer are not made."""
        w, ys = self.split(theta), [part.x]
        for l, (form, layer, H) in enumerate(
            zip(self.forms, w.layers, self.hidden_sizes, strict=True)
        ):
            is_last, out = l == len(self.forms) - 1, None
            if not fresh and (states or not is_last):  # fresh pages cost as much as the arithmetic
                out = self.work.take(f"states{l}", theta, len(theta), *part.x.shape[1:3], H)
            # Below the last layer nobody reads: one output of weight zero.
            read = (w.W_yh, w.b_y) if is_last else (theta.new_zeros(1, 1, H), theta.new_zeros(1, 1))
            arrays = RnnWeights(layer.W_hx, layer.W_hh, read[0], layer.b_h, layer.b_init, read[1])
            wanted = states or not is_last
            h, s = form.forward(ys[-1], arrays, part.steps, states=wanted, out=out)
            if h is not None:
                ys.append(h)
        return Pass(part, s, RecurrentStates(w, ys, fresh))

    def complete(self, at: Pass) -> None:
        for l in range(len(self.forms)):
            self._slope(at, l)

    def tangent(self, at: Pass, v: Tensor, *, keep: bool, stop: Tensor | None = None) -> Tangent:
        """Rh of every layer and Rs (M&S 2011, Algorithm 1); ``stop`` is not looked at."""
        w, ys, V = at.states.w, at.states.ys, self.split(v)
        Rhs: list[Tensor] = []
        for l, form in enumerate(self.forms):
            u = self._direct(at, V, l)
            if l:
                add_times(u, Rhs[-1], w.layers[l].W_hx.mT)
            out = self.work.take(f"Rh{l}", u, len(v), *ys[l + 1].shape[1:])
            Rhs.append(form.scan(u, self._slope(at, l), w.layers[l].W_hh, out))
        Rs = times(at_outputs(Rhs[-1], at.part.steps), w.W_yh.mT)
        return Tangent(self._add_read(Rs, at, V), Rhs)

    def backward(self, at: Pass, gs: Tensor, into: Into) -> Tensor:
        gts = self._through_time(at, gs, into.add or {}, fresh=False)
        return into.out.copy_(self._gradient(at, gts, gs).mul_(into.scale))

    def structural_term(
        self, at: Pass, R: Tangent, structural: float | Tensor
    ) -> dict[int, Tensor]:
        """structural·D''Rt ``[G,T,B,H]`` of every layer that is damped, by its number."""
        # D'' = e' makes D''Rt = Rh.
        return {
            l: torch.mul(Rh, factor * structural, out=self.work.take(f"damped{l}", Rh, *Rh.shape))
            for l, factor in self.damped.items()
            for Rh in [R.states[l]]
        }

    def adjoint(self, at: Pass, gs: Tensor, *, bends: bool) -> Adjoint:
        w, ys = at.states.w, at.states.ys
        gts = self._through_time(at, gs, {}, fresh=True)
        bent: dict[int, Tensor] = {}
        gh = self._at_states(at, gs, w.W_yh) if bends else gs
        for l in reversed(range(len(gts))) if bends else ():
            bend = activation_bend(ys[l + 1], self.nonlinearity)
            if bend is not None:
                self.forms[l].add_returned(gh[:, :-1], gts[l][:, 1:], w.layers[l].W_hh, self.work)
                bent[l] = bend.mul_(gh)
            if l:
                gh = times(gts[l], w.layers[l].W_hx)
        return Adjoint(gs, gts, bent)

    def rbackward(
        self, at: Pass, adjoint: Any, R: Tangent, Rgs: Tensor, v: Tensor, into: Into
    ) -> Tensor:
        """Rgt_t = e' ⊙ (Rgt_{t+1} W_hh + gt_{t+1} V_hh + R(what comes from above)) + bend + add."""
        (gs, gts, bends), w, V, Rhs = adjoint, at.states.w, self.split(v), R.states
        add, Rgts = dict(into.add or {}), list(gts)
        for l, bend in bends.items():
            out = self.work.take(f"damped{l}", bend, *Rhs[l].shape)
            add[l] = out.addcmul_(bend, Rhs[l]) if l in add else torch.mul(bend, Rhs[l], out=out)
        u = self._at_states(at, Rgs, w.W_yh, gs, V.W_yh)
        for l, form in reversed(list(enumerate(self.forms))):
            layer, R_layer = w.layers[l], V.layers[l]
            form.add_returned(u[:, :-1], gts[l][:, 1:], R_layer.W_hh, self.work)
            out = self.work.take(f"gt{l}", u, *Rhs[l].shape)
            Rgts[l] = form.scan_back(u, self._slope(at, l), layer.W_hh, add.get(l), out)
            if l:
                u = self.work.take("u", u, *Rhs[l - 1].shape)
                add_times(times(Rgts[l], layer.W_hx, u), gts[l], R_layer.W_hx)
        curved = self._gradient(at, Rgts, Rgs)
        # The same with Rh in h's place; inputs and ones have no tangent.
        cross = self._gradient(at, gts, gs, Rhs)
        return torch.add(curved, cross, out=into.out).mul_(into.scale)

    def squares(self, at: Pass, gs: Tensor, into: Into) -> Tensor:
        ys, gts = at.states.ys, self._through_time(at, gs, {}, fresh=False)
        read = at_outputs(ys[-1], at.part.steps)[0]
        widest = max(*self.sizes, *self.hidden_sizes) * max(self.hidden_sizes)
        size = max(1, CASE_BYTES // (widest * gs.element_size()))
        for net, total in enumerate(into.out.zero_()):
            for b in blocks(gs.shape[2], size):
                o, layers = gs[net, :, b], []
                for l, gt in enumerate(gts):
                    g, x, before = gt[net, :, b], ys[l][0, :, b], ys[l + 1][0, :-1, b]
                    W_hx, W_hh = case_squares(g, x), self.forms[l].squares(g[1:], before)
                    b_h, b_init = g.sum(0).square().sum(0), g[0].square().sum(0)
                    layers.append(Layer(*(row(p) for p in (W_hx, W_hh, b_h, b_init))))
                W_yh, b_y = case_squares(o, read[:, b]), o.sum(0).square().sum(0)
                total += self.joined(Weights(row(W_yh), row(b_y), layers))[0]
        return into.out.mul_(into.scale)

    def fisher(self, at: Pass, adjoint: Any, v: Tensor, into: Into) -> Tensor:
        """From ⟨g_i, v⟩ ``[G,B]``, the sum of gt·(direct tangent of t) and gs·(of s): no scan."""
        (gs, gts, _), V, take = adjoint, self.split(v), self.work.take
        weight = case_sums(self._add_read(torch.zeros_like(gs), at, V).mul_(gs))
        for l, gt in enumerate(gts):
            weight += case_sums(self._direct(at, V, l).mul_(gt))
        weight = weight[:, None, :, None]
        shapes = [(len(v), *gt.shape[1:]) for gt in gts]
        weighted = [
            torch.mul(weight, gt, out=take(f"gt{l}", gt, *shape))
            for l, (gt, shape) in enumerate(zip(gts, shapes, strict=True))
        ]
        return into.out.copy_(self._gradient(at, weighted, weight * gs).mul_(into.scale))

    # ---- pieces of the passes

    def _slope(self, at: Pass, l: int) -> Tensor:
        """e'(t) of layer l, made once for a pass."""
        states = at.states
        if l not in states.slopes:
            d = activation_derivative(states.ys[l + 1], self.nonlinearity)
            kept = d if states.fresh else self.work.take(f"slope{l}", d, *d.shape).copy_(d)
            states.slopes[l] = kept
        slope: Tensor = states.slopes[l]
        return slope

    def _at_states(self, at: Pass, g: Tensor, W: Tensor, *also: Tensor) -> Tensor:
        """g W at every step, ``[G,T,B,H]``, zeros where there is no output; till the next.

        ``g [G,T_out,B,k]``, ``W [G,k,H]``; ``also`` another such pair, which is added.
        """
        steps, (T, B, H) = at.part.steps, at.states.ys[-1].shape[1:]
        G = max(map(len, (g, W, *also)))
        u = self.work.take("u", g, G, T, B, H)
        read = u if steps is None else u.new_empty(G, len(steps), B, H)
        times(g, W, read)
        if also:
            add_times(read, *also)
        if steps is not None:
            u.zero_()[:, steps] = read
        return u

    def _direct(self, at: Pass, V: Weights, l: int) -> Tensor:
        """Rt ``[G,T,B,H]`` of layer l where no state has a tangent: what V does; till the next."""
        ys, layer = at.states.ys, V.layers[l]
        G = max(len(ys[l]), len(layer.W_hx))
        u = self.work.take("u", layer.W_hx, G, *ys[l + 1].shape[1:])
        x, W_hx = ys[l].flatten(1, 2).expand(G, -1, -1), layer.W_hx.mT.expand(G, -1, -1)
        torch.baddbmm(layer.b_h[:, None], x, W_hx, out=joined_steps(u))
        self.forms[l].add_carried(u[:, 1:], ys[l + 1][:, :-1], layer.W_hh, self.work)
        u[:, 0] += layer.b_init.unsqueeze(1)
        return u

    def _add_read(self, Rs: Tensor, at: Pass, V: Weights) -> Tensor:
        """``Rs [G,T_out,B,k]`` and what V does to s where h has no tangent."""
        h = at_outputs(at.states.ys[-1], at.part.steps)
        Rs = Rs.expand(len(V.W_yh), -1, -1, -1).contiguous() if len(Rs) < len(V.W_yh) else Rs
        add_times(Rs, h, V.W_yh.mT)
        return Rs.add_(V.b_y[:, None, None])

    def _through_time(
        self, at: Pass, gs: Tensor, add: Mapping[int, Tensor], *, fresh: bool
    ) -> list[Tensor]:
        """BPTT: gt ``[G,T,B,H]`` of every layer from ``gs``; ``add[l]`` joins every step.

        They are in memory of their own (``fresh``), or hold until the next call.
        """
        w, gts, take = at.states.w, list[Tensor](), self.work.take
        u = self._at_states(at, gs, w.W_yh)
        for l, form in reversed(list(enumerate(self.forms))):
            out = None if fresh else take(f"gt{l}", u, *u.shape)
            gts.insert(0, form.scan_back(u, self._slope(at, l), w.layers[l].W_hh, add.get(l), out))
            if l:
                u = times(
                    gts[0], w.layers[l].W_hx, take("u", u, len(u), *at.states.ys[l].shape[1:])
                )
        return gts

    def _gradient(
        self, at: Pass, gts: list[Tensor], gs: Tensor, Rhs: list[Tensor] | None = None
    ) -> Tensor:
        """gsᵀ·[h, 1] and gtᵀ·[x, h_{t-1}, 1] of every layer over time and cases, ``[G,N]``.

        With ``Rhs`` those stand for the states, and there is nothing for inputs and ones.
        """
        hs, ones = at.states.ys[1:] if Rhs is None else Rhs, Rhs is None
        layers = []
        for l, gt in enumerate(gts):
            if l or ones:
                W_hx = outer(gt, hs[l - 1] if l else at.part.x)
            else:
                W_hx = gt.new_zeros(1, gt.shape[-1] * at.part.x.shape[-1])
            W_hh = self.forms[l].outer(gt[:, 1:], hs[l][:, :-1])
            layers.append(Layer(W_hx, W_hh, summed(gt, ones), summed(gt[:, :1], ones)))
        W_yh = outer(gs, at_outputs(hs[-1], at.part.steps))
        return self.joined(Weights(W_yh, summed(gs, ones), layers))
