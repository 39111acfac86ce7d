"""hf.MLP on the dense ops: forward, R-op and backward in memory that is reused.

Layer l = 0 .. K-1 takes ``ys[l] [G,B,n]`` to ``ys[l+1] [G,B,m]``, y = φ(z), z = W a + b; ``ys[0]``
are the inputs. Tangents and δ = ∂L/∂z carry the group axis of the vectors they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from hfcore.batches import Batch
from hfcore.bindings.dense import (
    activation_derivative,
    dense_backward,
    dense_forward,
    dense_gradient,
    dense_rforward,
    split_layers,
)
from hfcore.bindings.net import Net, net_gradient, net_update
from hfcore.losses import Loss
from hfcore.losses.applied import check_applied_once
from hfcore.models.mlp import MLP
from hfcore.nets.data import Data, check_cases
from hfcore.nets.mlp_structural import structural_layers, structural_product
from hfcore.nets.net import FusedNet, Into, Pass, Tangent, Update
from hfcore.nets.through_time import activation_bend

# Cases up to which whole nets are one call on the CPU, if their activations fill no more than that;
# above, the layers' own ops share the cases out among more threads.
MINIBATCH = 4096
WHOLE_BYTES = 8 << 20

ByLayer = dict[int, Tensor]


@dataclass(frozen=True)
class MlpStates:
    """(W, b) of every layer at θ, and the activations ``ys [G,B,·]``, inputs first."""

    layers: list[tuple[Tensor, Tensor]]
    ys: list[Tensor]


@dataclass(frozen=True)
class MlpTangents:
    """Ry ``[G,B,m]`` of every layer, and Rz of those that structural damping asks for."""

    Rys: list[Tensor]
    Rzs: ByLayer


class MlpNet(FusedNet):
    """Nets shaped like one :class:`hfcore.MLP`.

    Args:
        model, loss: see :class:`FusedNet`.
        structural: a number (every hidden layer's z, D'' = φ'(z); μ reaches the products as part of
            λμ), or a mapping ``{"layers.0": D or (D, μ)}`` with D ``"identity"`` or the layer's own
            nonlinearity (on linear units ``"tanh"``, ``"logistic"`` and ``"softmax"`` as well).
    """

    supports_structural = True
    looks_at_stop = True
    passes_are_kernels = True
    replays_passes = True

    def __init__(
        self, model: MLP, loss: Loss, *, structural: float | Mapping[str, Any] = 0.0
    ) -> None:
        numel = sum(m * (n + 1) for n, m in pairwise(model.sizes))
        super().__init__(model, loss, numel=numel, output_size=model.sizes[-1])
        check_applied_once(model.activations[-1], loss)
        self.sizes, self.activations = model.sizes, model.activations
        self.damped = structural_layers(model, structural)
        self.raw = frozenset(l for l, d in self.damped.items() if d.distance != "matching")
        self._last = len(model.activations) - 1
        # None: the op on whole nets does not know the loss.
        known = loss.net_kind
        self._net = None if known is None else Net(known, model.sizes, model.activations)
        self._first = cast(nn.Linear, next(iter(model.layers)))

    # ---- data

    def check(self, batch: Batch, dtype: torch.dtype | None = None) -> Data:
        # Not parameters(), which goes through all modules.
        like = self._first.weight if dtype is None else None
        sizes = (self.sizes[0], self.sizes[-1])
        return check_cases(batch, self.loss, sizes, like=like, dtype=dtype)

    def bytes_per_case(self, part: Data) -> int:
        return sum(self.sizes[1:]) * part.x.element_size()

    # ---- passes

    def outputs(self, theta: Tensor, part: Data) -> Tensor:
        y = part.x
        for l, (W, b) in enumerate(split_layers(theta, self.sizes)):
            out = self._buffer(f"pass{l % 2}", len(theta), y, W.shape[1])
            y = dense_forward(y, W, b, activation=self.activations[l], out=out)
        return y.unsqueeze(1)

    def forward(self, theta: Tensor, part: Data, *, fresh: bool) -> Pass:
        layers, ys = split_layers(theta, self.sizes), [part.x]
        for l, (W, b) in enumerate(layers):
            out = None if fresh else self._buffer(f"state{l}", len(theta), part.x, W.shape[1])
            ys.append(dense_forward(ys[-1], W, b, activation=self.activations[l], out=out))
        return Pass(part, ys[-1].unsqueeze(1), MlpStates(layers, ys))

    def tangent(self, at: Pass, v: Tensor, *, keep: bool, stop: Tensor | None = None) -> Tangent:
        """Rz = Ra Wᵀ + a Vᵀ + v_b and Ry = φ' ⊙ Rz; without ``keep`` the last Ry alone holds."""
        ys, G = at.states.ys, len(v)
        raw = self.raw if keep else frozenset()
        Rys: list[Tensor] = []
        Rzs: ByLayer = {}
        Ry: Tensor | None = None
        layers = zip(at.states.layers, split_layers(v, self.sizes), strict=True)
        for l, ((W, _), (V, v_b)) in enumerate(layers):
            activation, arrays = self.activations[l], (ys[l], Ry, W, V, v_b, ys[l + 1])
            Ry = self._buffer(f"R{l if keep else l % 2}", G, ys[0], W.shape[1])
            if l in raw and activation != "linear":
                Rzs[l] = self._buffer(f"Rz{l}", G, ys[0], W.shape[1])
                dense_rforward(*arrays, activation="linear", out=Rzs[l], stop=stop)
                torch.mul(Rzs[l], activation_derivative(activation, ys[l + 1]), out=Ry)
            else:
                dense_rforward(*arrays, activation=activation, out=Ry, stop=stop)
                if l in raw:
                    Rzs[l] = Ry
            Rys.append(Ry)
        return Tangent(Rys[-1].unsqueeze(1), MlpTangents(Rys, Rzs))

    def squares(self, at: Pass, gs: Tensor, into: Into) -> Tensor:
        """As (δ²)ᵀ(y²) per layer."""
        return self.backward(at, gs, into, squared=True)

    def backward(self, at: Pass, gs: Tensor, into: Into, *, squared: bool = False) -> Tensor:
        ys, add = at.states.ys, into.add or {}
        delta, gradients = self._last_delta(at, gs, add), split_layers(into.out, self.sizes)
        for l in reversed(range(len(gradients))):
            dense_gradient(
                delta,
                ys[l],
                scale=into.scale,
                squared=squared,
                out=gradients[l],
                stop=into.stop,
                scratch=self.work,
            )
            if l:
                delta = self._below(at, l, delta, add.get(l - 1), into.stop)
        return into.out

    def structural_term(self, at: Pass, R: Tangent, structural: float | Tensor) -> ByLayer:
        add, Rys, Rzs = {}, R.states.Rys, R.states.Rzs
        for l, damped in self.damped.items():
            out = self.work.take(f"structural{l}", Rys[l], *Rys[l].shape)
            term = structural_product(damped, at.states.ys[l + 1], Rys[l], Rzs.get(l), out)
            add[l] = term.mul_(structural * damped.mu)
        return add

    def adjoint(self, at: Pass, gs: Tensor, *, bends: bool) -> tuple[list[Tensor], ByLayer]:
        """δ of every layer from ``gs [1,1,B,k]``, and what bends it.

        The bend of layer l is (δ W) ⊙ φ''/φ' with δ, W of the layer above: times Ry it is
        (δ W) ⊙ φ'' ⊙ Rz. Layers without φ'' have none.
        """
        ys, above = at.states.ys, gs[:, 0]
        deltas: list[Tensor] = []
        bend_of: ByLayer = {}
        for l in reversed(range(len(self.activations))):
            y, activation = ys[l + 1], self.activations[l]
            bend = activation_bend(y, activation)
            if bend is not None:
                bend_of[l] = bend.mul_(above)
            deltas.insert(0, above * activation_derivative(activation, y))
            if l:
                above = dense_backward(
                    deltas[0], at.states.layers[l][0], ys[l], activation="linear"
                )
        return deltas, bend_of

    def rbackward(
        self, at: Pass, adjoint: Any, R: Tangent, Rgs: Tensor, v: Tensor, into: Into
    ) -> Tensor:
        """Rδ' = (Rδ W + δ V) ⊙ φ' + bends + add, and R(δᵀa) = Rδᵀa + δᵀRa."""
        (deltas, bend_of), ys, Rys = adjoint, at.states.ys, R.states.Rys
        add, work, stop = dict(into.add or {}), self.work, into.stop
        for l, bend in bend_of.items():
            bent = bend * Rys[l]
            add[l] = add[l].add_(bent) if l in add else bent
        Rdelta = self._last_delta(at, Rgs, add)
        directions, gradients = split_layers(v, self.sizes), split_layers(into.out, self.sizes)
        options: dict[str, Any] = {"scale": into.scale, "stop": stop, "scratch": work}
        for l in reversed(range(len(gradients))):
            gW, gb = gradients[l]
            dense_gradient(Rdelta, ys[l], out=(gW, gb), **options)
            if not l:
                break
            cross = work.take("crossW", gW, *gW.shape), work.take("crossb", gb, *gb.shape)
            gW += dense_gradient(deltas[l], Rys[l - 1], out=cross, **options)[0]
            V, e = directions[l][0], self.activations[l - 1]
            bent = self._buffer("bent", len(v), ys[0], V.shape[2])
            dense_backward(
                deltas[l], V, ys[l], activation=e, add=add.get(l - 1), out=bent, stop=stop
            )
            Rdelta = self._below(at, l, Rdelta, bent, stop)
        return into.out

    # ---- whole nets in one call

    def whole_gradient(self, theta: Tensor, part: Data, into: Into) -> Tensor | None:
        if self._net is None or not self._is_small(theta, part):
            return None
        scale, out = into.scale, into.out
        return net_gradient(self._net, part.x, part.y, theta, scale=scale, out=out)[0]

    def whole_update(self, update: Update) -> Tensor | None:
        theta, velocity, part, step, active, out = update
        if self._net is None or not self._is_small(theta, part):
            return None
        return net_update(
            self._net,
            part.x,
            part.y,
            theta,
            velocity,
            step,
            scale=1.0 / part.count,
            active=active,
            out=out,
            checked=True,
        )

    def _is_small(self, theta: Tensor, part: Data) -> bool:
        fits = sum(self.sizes) * part.count * theta.element_size() <= WHOLE_BYTES
        plain = theta.device.type == "cpu" and part.w is None
        return plain and part.count <= MINIBATCH and fits

    # ---- pieces of the passes

    def _last_delta(self, at: Pass, gs: Tensor, add: ByLayer) -> Tensor:
        """δ of the last layer from ``gs [G,1,B,k]``, in its place, with what joins it."""
        delta, activation = gs[:, 0], self.activations[-1]
        if activation != "linear":
            delta = delta.mul_(activation_derivative(activation, at.states.ys[-1]))
        return delta.add_(add[self._last]) if self._last in add else delta

    def _below(
        self, at: Pass, l: int, delta: Tensor, add: Tensor | None, stop: Tensor | None
    ) -> Tensor:
        """δ of layer l-1 from that of layer l."""
        W, y, e = at.states.layers[l][0], at.states.ys[l], self.activations[l - 1]
        G = len(delta) if add is None else max(len(delta), len(add))
        out = self._buffer(f"delta{l % 2}", G, y, W.shape[2])
        return dense_backward(delta, W, y, activation=e, add=add, out=out, stop=stop)

    def _buffer(self, name: str, G: int, x: Tensor, width: int) -> Tensor:
        return self.work.take(name, x, G, x.shape[1], width)
