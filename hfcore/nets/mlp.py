"""hf.MLP on the dense ops; its passes are those of :class:`hfcore.nets.layers.Layers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from hfcore.batches import Batch
from hfcore.bindings.momentum import Step
from hfcore.bindings.net import Net, net_gradient, net_update
from hfcore.losses import Loss
from hfcore.models.mlp import MLP
from hfcore.nets.cases import Cases, check_cases
from hfcore.nets.layers import Layers
from hfcore.nets.mlp_structural import structural_layers, structural_product
from hfcore.nets.net import FusedNet, Pass, Tangent

# Cases up to which whole nets are one call on the CPU, if their activations fill no more than that;
# above, the layers' own ops share the cases out among more threads.
MINIBATCH = 4096
WHOLE_BYTES = 8 << 20

Added = dict[int, Tensor]  # what joins δ of a layer


@dataclass(frozen=True)
class MlpStates:
    """The layers at θ and the activations ``ys [G,B,·]``, inputs first."""

    layers: Layers
    ys: list[Tensor]


@dataclass(frozen=True)
class MlpTangents:
    """Ry ``[G,B,m]`` of every layer, and Rz of those that structural damping asks for."""

    Rys: list[Tensor]
    Rzs: Added


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

    def __init__(
        self, model: MLP, loss: Loss, *, structural: float | Mapping[str, Any] = 0.0
    ) -> None:
        numel = sum(m * (n + 1) for n, m in pairwise(model.sizes))
        super().__init__(model, loss, numel=numel, output_size=model.sizes[-1])
        self.sizes, self.activations = model.sizes, model.activations
        self.damped = structural_layers(model, structural)
        self.raw = frozenset(l for l, d in self.damped.items() if d.distance != "matching")
        self._net = Net(loss.kind, model.sizes, model.activations)
        self._first = cast(nn.Linear, next(iter(model.layers)))

    # ---- data

    def check(self, batch: Batch, dtype: torch.dtype | None = None) -> Cases:
        # Not parameters(), which goes through all modules.
        like = self._first.weight if dtype is None else None
        sizes = (self.sizes[0], self.sizes[-1])
        return check_cases(batch, self.loss, sizes, like=like, dtype=dtype)

    def bytes_per_case(self, part: Cases) -> int:
        return sum(self.sizes[1:]) * part.x.element_size()

    # ---- passes

    def _layers(self, theta: Tensor) -> Layers:
        return Layers(theta, self.sizes, self.activations, self.work)

    def outputs(self, theta: Tensor, part: Cases) -> Tensor:
        return self._layers(theta).outputs(part.x).unsqueeze(1)

    def forward(self, theta: Tensor, part: Cases, *, fresh: bool) -> Pass:
        layers = self._layers(theta)
        ys = layers.states(part.x, None if fresh else "state")
        return Pass(part, ys[-1].unsqueeze(1), MlpStates(layers, ys))

    def tangent(self, at: Pass, v: Tensor, *, keep: bool, stop: Tensor | None = None) -> Tangent:
        raw = self.raw if keep else frozenset()
        Rys, Rzs = at.states.layers.tangents(at.states.ys, v, keep=keep, raw=raw, stop=stop)
        return Tangent(Rys[-1].unsqueeze(1), MlpTangents(Rys, Rzs))

    def backward(
        self,
        at: Pass,
        gs: Tensor,
        out: Tensor,
        *,
        scale: float,
        add: Added | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        layers, ys = _states(at)
        delta = _joined(layers.through_output(gs[:, 0], ys), layers, add)
        return layers.backward(ys, delta, out, scale=scale, add=add, stop=stop)

    def squares(self, at: Pass, gs: Tensor, out: Tensor, *, scale: float) -> Tensor:
        """As (δ²)ᵀ(y²) per layer."""
        layers, ys = _states(at)
        delta = layers.through_output(gs[:, 0], ys)
        return layers.backward(ys, delta, out, scale=scale, squared=True)

    def structural_term(self, at: Pass, R: Tangent, structural: float) -> Added:
        add, Rys, Rzs = {}, R.states.Rys, R.states.Rzs
        for l, damped in self.damped.items():
            out = self.work.take(f"structural{l}", Rys[l], *Rys[l].shape)
            term = structural_product(damped, at.states.ys[l + 1], Rys[l], Rzs.get(l), out)
            add[l] = term.mul_(structural * damped.mu)
        return add

    def adjoint(self, at: Pass, gs: Tensor) -> tuple[list[Tensor], Added]:
        """δ of every layer, and (δ W) ⊙ φ''/φ' where φ'' is not 0."""
        layers, ys = _states(at)
        return layers.deltas(ys, gs[:, 0])

    def rbackward(
        self,
        at: Pass,
        adjoint: tuple[list[Tensor], Added],
        R: Tangent,
        Rgs: Tensor,
        v: Tensor,
        out: Tensor,
        *,
        scale: float,
        add: Added | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        (layers, ys), Rys = _states(at), R.states.Rys
        (deltas, bends), add = adjoint, dict(add or {})
        for l, bend in bends.items():
            bent = bend * Rys[l]
            add[l] = add[l].add_(bent) if l in add else bent
        Rdelta = _joined(layers.through_output(Rgs[:, 0], ys), layers, add)
        return layers.rbackward(ys, deltas, Rys, Rdelta, v, out, scale=scale, add=add, stop=stop)

    # ---- whole nets in one call

    def whole_gradient(
        self, theta: Tensor, part: Cases, scale: float, out: Tensor
    ) -> Tensor | None:
        if not self._is_small(theta, part):
            return None
        return net_gradient(self._net, part.x, part.y, theta, scale=scale, out=out)[0]

    def whole_update(
        self,
        theta: Tensor,
        velocity: Tensor,
        part: Cases,
        step: Step,
        *,
        active: Tensor | None,
        out: Tensor | None,
    ) -> Tensor | None:
        if not self._is_small(theta, part):
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

    def _is_small(self, theta: Tensor, part: Cases) -> bool:
        fits = sum(self.sizes) * part.count * theta.element_size() <= WHOLE_BYTES
        return theta.device.type == "cpu" and part.count <= MINIBATCH and fits


def _states(at: Pass) -> tuple[Layers, list[Tensor]]:
    return at.states.layers, at.states.ys


def _joined(delta: Tensor, layers: Layers, add: Added | None) -> Tensor:
    """δ of the last layer with what joins it."""
    last = len(layers) - 1
    return delta if add is None or last not in add else delta.add_(add[last])
