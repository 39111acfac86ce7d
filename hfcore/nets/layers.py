"""Passes through an MLP on the dense ops: forward, R-op and backward, in memory that is reused.

Layer l = 0 .. K-1 takes ``ys[l] [1,B,n]`` to ``ys[l+1] [1,B,m]``; ``ys[0]`` are the inputs.
Tangents and deltas carry the group axis G of the vectors they belong to. With the parameters of
several nets, ``theta [G,N]``, states have that axis too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hfcore.bindings.dense import (
    Scratch,
    activation_derivative,
    dense_backward,
    dense_forward,
    dense_gradient,
    dense_rforward,
    split_layers,
)
from hfcore.nets.through_time import activation_bend


class Layers:
    """The layers of G MLPs at fixed parameters ``theta [G,N]``."""

    def __init__(
        self, theta: Tensor, sizes: Sequence[int], activations: Sequence[str], work: Scratch
    ) -> None:
        self.sizes = sizes
        self.activations = activations
        self.work = work
        self.nets = theta.shape[0]
        self._layers = split_layers(theta, sizes)

    def __len__(self) -> int:
        return len(self._layers)

    def outputs(self, x: Tensor) -> Tensor:
        """The last layer's outputs ``[nets,B,k]`` alone, in two buffers that take turns."""
        for l, (W, b) in enumerate(self._layers):
            out = self.work.take(f"pass{l % 2}", x, self.nets, x.shape[1], W.shape[1])
            x = dense_forward(x, W, b, activation=self.activations[l], out=out)
        return x

    def states(self, x: Tensor, name: str | None) -> list[Tensor]:
        """``ys``, in the buffers ``name``, or in memory of their own with None."""
        ys = [x]
        for l, (W, b) in enumerate(self._layers):
            out = None if name is None else self._buffer(f"{name}{l}", self.nets, x, W.shape[1])
            ys.append(dense_forward(ys[-1], W, b, activation=self.activations[l], out=out))
        return ys

    def tangents(
        self,
        ys: Sequence[Tensor],
        v: Tensor,
        *,
        keep: bool,
        raw: frozenset[int] = frozenset(),
        stop: Tensor | None = None,
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        """R-op: Ry of every layer for ``v [G,N]``, and Rz (before φ') of the layers in ``raw``.

        Without ``keep`` only the last Ry holds its value.
        """
        G = v.shape[0]
        Rys: list[Tensor] = []
        Rzs: dict[int, Tensor] = {}
        Ra: Tensor | None = None
        for l, ((W, _), (V, v_b)) in enumerate(
            zip(self._layers, split_layers(v, self.sizes), strict=True)
        ):
            activation = self.activations[l]
            Ry = self._buffer(f"R{l if keep else l % 2}", G, ys[0], W.shape[1])
            if l in raw and activation != "linear":
                Rz = self._buffer(f"Rz{l}", G, ys[0], W.shape[1])
                dense_rforward(
                    ys[l], Ra, W, V, v_b, ys[l + 1], activation="linear", out=Rz, stop=stop
                )
                torch.mul(Rz, activation_derivative(activation, ys[l + 1]), out=Ry)
                Rzs[l] = Rz
            else:
                dense_rforward(
                    ys[l], Ra, W, V, v_b, ys[l + 1], activation=activation, out=Ry, stop=stop
                )
                if l in raw:
                    Rzs[l] = Ry
            Rys.append(Ry)
            Ra = Ry
        return Rys, Rzs

    def through_output(self, gs: Tensor, ys: Sequence[Tensor]) -> Tensor:
        """δ of the last layer from ``gs = ∂L/∂y_K [G,B,k]``, in place."""
        if self.activations[-1] == "linear":
            return gs
        return gs.mul_(activation_derivative(self.activations[-1], ys[-1]))

    def backward(
        self,
        ys: Sequence[Tensor],
        delta: Tensor,
        out: Tensor,
        *,
        scale: float,
        squared: bool = False,
        add: Mapping[int, Tensor] | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """The gradient ``[G,N]`` from the last layer's ``delta [G,B,k]``, written to ``out``.

        ``squared`` sums squares over cases; ``add[l]`` joins layer l's delta.
        """
        add = add or {}
        gradients = split_layers(out, self.sizes)
        for l in reversed(range(len(self))):
            dense_gradient(
                delta,
                ys[l],
                scale=scale,
                squared=squared,
                out=gradients[l],
                stop=stop,
                scratch=self.work,
            )
            if l:
                delta = self._below(l, delta, ys, add.get(l - 1), stop)
        return out

    def _below(
        self, l: int, delta: Tensor, ys: Sequence[Tensor], add: Tensor | None, stop: Tensor | None
    ) -> Tensor:
        """δ of layer l-1 from that of layer l."""
        W = self._layers[l][0]
        G = delta.shape[0] if add is None else max(delta.shape[0], add.shape[0])
        out = self._buffer(f"delta{l % 2}", G, ys[0], W.shape[2])
        activation = self.activations[l - 1]
        return dense_backward(delta, W, ys[l], activation=activation, add=add, out=out, stop=stop)

    def deltas(self, ys: Sequence[Tensor], gs: Tensor) -> tuple[list[Tensor], dict[int, Tensor]]:
        """δ of every layer from ``gs = ∂L/∂y_K [1,B,k]``, and what bends it.

        The bend of layer l is (δ W) ⊙ φ''/φ' with δ, W of the layer above: times Ry it is
        (δ W) ⊙ φ'' ⊙ Rz. Layers without φ'' have none.
        """
        deltas: list[Tensor] = []
        bends: dict[int, Tensor] = {}
        above = gs
        for l in reversed(range(len(self))):
            y, activation = ys[l + 1], self.activations[l]
            bend = activation_bend(y, activation)
            if bend is not None:
                bends[l] = bend.mul_(above)
            deltas.insert(0, above * activation_derivative(activation, y))
            if l:
                above = dense_backward(deltas[0], self._layers[l][0], ys[l], activation="linear")
        return deltas, bends

    def rbackward(
        self,
        ys: Sequence[Tensor],
        deltas: Sequence[Tensor],
        Rys: Sequence[Tensor],
        Rdelta: Tensor,
        v: Tensor,
        out: Tensor,
        *,
        scale: float,
        add: Mapping[int, Tensor] | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """R of :meth:`backward` in the direction ``v [G,N]``, from the last layer's Rδ.

        Rδ' = (Rδ W + δ V) ⊙ φ' + add and R(δᵀa) = Rδᵀa + δᵀRa; ``add[l]`` holds what bends,
        (δ W) ⊙ φ'' ⊙ Rz.
        """
        add = add or {}
        directions, gradients = split_layers(v, self.sizes), split_layers(out, self.sizes)
        for l in reversed(range(len(self))):
            gW, gb = gradients[l]
            dense_gradient(Rdelta, ys[l], scale=scale, out=(gW, gb), stop=stop, scratch=self.work)
            if not l:
                break
            cross = (
                self.work.take("crossW", gW, *gW.shape),
                self.work.take("crossb", gb, *gb.shape),
            )
            gW += dense_gradient(
                deltas[l], Rys[l - 1], scale=scale, out=cross, stop=stop, scratch=self.work
            )[0]
            V = directions[l][0]
            bent = dense_backward(
                deltas[l],
                V,
                ys[l],
                activation=self.activations[l - 1],
                add=add.get(l - 1),
                out=self._buffer("bent", v.shape[0], ys[0], V.shape[2]),
                stop=stop,
            )
            Rdelta = self._below(l, Rdelta, ys, bent, stop)
        return out

    def _buffer(self, name: str, G: int, x: Tensor, width: int) -> Tensor:
        return self.work.take(name, x, G, x.shape[1], width)
