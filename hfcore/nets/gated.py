"""LSTM and GRU nets on the gated ops, from hf.LSTM and hf.GRU and from torch's own modules.

Layer l = 0 .. L-1 takes ``ys[l] [G,T,B,n]`` to the states h = ``ys[l+1] [G,T,B,H]``; ``ys[0]`` are
the inputs. ga are ∂L/∂(pre-activations of a layer's blocks) ``[G,4,T,B,H]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from hfcore.bindings import gated as ops
from hfcore.bindings.gated import GatedStates, GatedWeights
from hfcore.bindings.threads import among_kernels
from hfcore.losses import Loss
from hfcore.nets.data import Data
from hfcore.nets.gated_layout import GatedLayout, NetWeights
from hfcore.nets.net import FusedNet, Into, Pass, Tangent, blocks
from hfcore.nets.recognition import ReadOut
from hfcore.nets.recurrent import CASE_BYTES, SEQUENCES_AT_ONCE
from hfcore.nets.through_time import at_outputs, case_squares, outer, times

R = TypeVar("R")


@dataclass(frozen=True)
class NetStates:
    """Parameters ``theta [G,N]`` of a pass, the same as weights, and every layer's states.

    ``ys``: inputs ``[1,T,B,n]``, then every layer's h ``[G,T,B,H]``.
    """

    theta: Tensor
    w: NetWeights
    ys: list[Tensor]
    at: list[GatedStates]


class GatedAdjoint(NamedTuple):
    """The gradient ``[1,N]`` of ⟨gs, s⟩ at parameters ``theta [1,N]``, differentiable by them."""

    gradient: Tensor
    theta: Tensor


class GatedNet(GatedLayout, FusedNet):
    """Nets shaped like a module of nn.LSTM or nn.GRU and nn.Linear.

    The R-op of the gradient goes through autograd, on the plain torch form of the ops.

    Args:
        read: the module.
        loss: see :class:`FusedNet`.

    Structural damping is that of the states h of every layer, D'' = I (M&S 2011, section 3.2).
    """

    timed = True
    supports_structural = True
    passes_are_kernels = True
    replays_passes = True

    def __init__(self, read: ReadOut, loss: Loss) -> None:
        self.lay_out(read)
        FusedNet.__init__(
            self, read.model, loss, numel=sum(self.lengths), output_size=self.sizes[1]
        )

    def bytes_per_case(self, part: Data) -> int:
        kept = 7 if self.cell == "lstm" else 5
        return kept * part.x.shape[1] * self.layers * self.hidden_size * part.x.element_size()

    def chunk_size(self, part: Data) -> int:
        return SEQUENCES_AT_ONCE

    # ---- passes

    def outputs(self, theta: Tensor, part: Data) -> Tensor:
        return self.forward(theta, part, fresh=False, states=False).s

    def forward(self, theta: Tensor, part: Data, *, fresh: bool, states: bool = True) -> Pass:
        """A pass; without ``states`` what derivatives need is not made."""
        w, ys, at = self.split(theta), [part.x], []
        with among_kernels(theta):
            for l, layer in enumerate(w.layers):
                out = None if fresh or not states else self._buffers(l, theta, part)
                at.append(ops.gated_forward(ys[-1], layer, cell=self.cell, states=states, out=out))
                ys.append(at[-1].h)
            s = self._read(ys[-1], w, part)
        return Pass(part, s, NetStates(theta, w, ys, at))

    def _buffers(self, l: int, theta: Tensor, part: Data) -> GatedStates:
        """Those of a pass, kept from call to call."""
        size, like = (*part.x.shape[1:3], self.hidden_size), theta
        G = max(len(theta), len(part.x))
        take = self.work.take
        cells = take(f"cells{l}", like, G, 2, *size) if self.cell == "lstm" else None
        return GatedStates(
            take(f"h{l}", like, G, *size), take(f"gates{l}", like, G, 4, *size), cells
        )

    def _read(self, h: Tensor, w: NetWeights, part: Data) -> Tensor:
        """W_yh h + b_y ``[G,T_out,B,k]``."""
        return times(at_outputs(h, part.steps), w.W_yh.mT) + w.b_y[:, None, None]

    def tangent(self, at: Pass, v: Tensor, *, keep: bool, stop: Tensor | None = None) -> Tangent:
        """Rh of every layer and Rs; ``stop`` is not looked at."""
        w, V, states = at.states.w, self.split(v), at.states
        Rhs: list[Tensor] = []
        for l, layer in enumerate(w.layers):
            Rx = Rhs[-1] if l else None
            G = max(len(v), len(at.s))
            out = self.work.take(f"Rh{l}", v, G, *states.ys[l + 1].shape[1:])
            options: dict[str, Any] = {"cell": self.cell, "Rx": Rx, "out": out}
            Rhs.append(ops.gated_tangent(states.ys[l], states.at[l], layer, V.layers[l], **options))
        Rs = times(at_outputs(Rhs[-1], at.part.steps), w.W_yh.mT)
        return Tangent(Rs + self._read(states.ys[-1], V, at.part), Rhs)

    def backward(self, at: Pass, gs: Tensor, into: Into) -> Tensor:
        with among_kernels(gs):
            return into.out.copy_(self._gradient(at, gs, into.add or {}).mul_(into.scale))

    def structural_term(
        self, at: Pass, R: Tangent, structural: float | Tensor
    ) -> dict[int, Tensor]:
        """structural·Rh ``[G,T,B,H]`` of every layer."""
        return {l: structural * Rh for l, Rh in enumerate(R.states)}

    def adjoint(self, at: Pass, gs: Tensor, *, bends: bool) -> GatedAdjoint:
        """A graph of the gradient, which products go through."""
        with torch.enable_grad():
            theta = at.states.theta.detach().clone().requires_grad_()
            w, y = self.split(theta), at.part.x
            for layer in w.layers:
                y = ops.differentiable_h(y, layer, cell=self.cell)
            along = (self._read(y, w, at.part) * gs).sum()
            (gradient,) = torch.autograd.grad(along, theta, create_graph=True)
        return GatedAdjoint(gradient, theta)

    def rbackward(
        self, at: Pass, adjoint: Any, R: Tangent, Rgs: Tensor, v: Tensor, into: Into
    ) -> Tensor:
        self.backward(at, Rgs, into)
        for row, out in zip(v, into.out, strict=True):
            (bent,) = torch.autograd.grad(
                adjoint.gradient, adjoint.theta, row[None], retain_graph=True
            )
            out.add_(bent[0], alpha=into.scale)
        return into.out

    def squares(self, at: Pass, gs: Tensor, into: Into) -> Tensor:
        states, gas = at.states, self._through_time(at, gs)
        read = at_outputs(states.ys[-1], at.part.steps)[0]
        widest = max(*self.sizes, self.hidden_size) * 4 * self.hidden_size
        size = max(1, CASE_BYTES // (widest * gs.element_size()))
        for net, total in enumerate(into.out.zero_()):
            for b in blocks(gs.shape[2], size):
                layers = [
                    self._case_squares(
                        ga[net, :, :, b], *(y[0, :, b] for y in states.ys[l : l + 2])
                    )
                    for l, ga in enumerate(gas)
                ]
                o = gs[net, :, b]
                W_yh, b_y = case_squares(o, read[:, b]), o.sum(0).square().sum(0)
                total += self.joined(W_yh.reshape(1, -1), b_y[None], layers)[0]
        return into.out.mul_(into.scale)

    def _case_squares(self, ga: Tensor, x: Tensor, h: Tensor) -> GatedWeights:
        """Of one layer, from ``ga [4,T,b,H]``, ``x [T,b,n]``, ``h [T,b,H]``."""
        W_ih = torch.stack([case_squares(ga[k], x) for k in self.input_blocks])
        W_hh = torch.stack([case_squares(ga[k, 1:], h[:-1]) for k in self.hidden_blocks])
        b = ga.sum(1).square().sum(1)
        return GatedWeights(W_ih.flatten(0, 1)[None], W_hh.flatten(0, 1)[None], b[None])

    # ---- pieces of the passes

    def _gradient(self, at: Pass, gs: Tensor, add: Mapping[int, Tensor]) -> Tensor:
        """``[G,N]`` from ``gs``; ``add[l]`` joins what flows back at the states of layer l."""
        states = at.states

        def of_layer(l: int, gh: Tensor) -> tuple[GatedWeights, Tensor | None]:
            ga = self._ga_buffer(l, gh, at) if l else None
            options: dict[str, Any] = {"cell": self.cell, "ga": ga}
            layer = states.ys[l], states.at[l], states.w.layers[l].W_hh
            return ops.gated_gradient(gh, *layer, **options), ga

        layers = self._down(at, gs, add, of_layer)
        W_yh = outer(gs, at_outputs(states.ys[-1], at.part.steps))
        return self.joined(W_yh, gs.sum((1, 2)), layers)

    def _through_time(self, at: Pass, gs: Tensor) -> list[Tensor]:
        """BPTT: ga of every layer from ``gs``."""
        states = at.states

        def of_layer(l: int, gh: Tensor) -> tuple[Tensor, Tensor]:
            options: dict[str, Any] = {"cell": self.cell, "out": self._ga_buffer(l, gh, at)}
            ga = ops.gated_backward(gh, states.at[l], states.w.layers[l].W_hh, **options)
            return ga, ga

        return self._down(at, gs, {}, of_layer)

    def _down(
        self,
        at: Pass,
        gs: Tensor,
        add: Mapping[int, Tensor],
        of_layer: Callable[[int, Tensor], tuple[R, Tensor | None]],
    ) -> list[R]:
        """What ``of_layer(l, gh)`` gives beside ga, which the layer below needs, of every layer."""
        w, found = at.states.w, list[R]()
        gh = self._at_states(at, gs, w.W_yh)
        for l in reversed(range(self.layers)):
            if l in add:
                gh = gh + add[l]
            result, ga = of_layer(l, gh)
            found.insert(0, result)
            if l:
                assert ga is not None
                W = w.layers[l].W_ih.unflatten(1, (-1, self.hidden_size))
                parts = [times(ga[:, k], W[:, r]) for r, k in enumerate(self.input_blocks)]
                gh = torch.stack(parts).sum(0)
        return found

    def _ga_buffer(self, l: int, gh: Tensor, at: Pass) -> Tensor:
        """``[G,4,T,B,H]``, kept from call to call."""
        G = max(len(gh), len(at.s))
        return self.work.take(f"ga{l}", gh, G, 4, *at.states.ys[l + 1].shape[1:])

    def _at_states(self, at: Pass, gs: Tensor, W_yh: Tensor) -> Tensor:
        """gs W_yh ``[G,T,B,H]`` at every step, zeros where there is no output."""
        read, steps = times(gs, W_yh), at.part.steps
        if steps is None:
            return read
        gh = read.new_zeros(len(read), at.part.x.shape[1], *read.shape[2:])
        gh[:, steps] = read
        return gh
