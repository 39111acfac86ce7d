"""nn.RNN with nn.Linear on the recurrence ops: the module keeps its parameters, as torch has them.

torch has two biases where the ops have one, b_h = bias_ih + bias_hh, and none of the first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfcore.bindings.checks import check_choice
from hfcore.bindings.recurrence import RnnShape
from hfcore.losses import Loss
from hfcore.nets.recognition import ReadOut
from hfcore.nets.recurrence import Recurrence
from hfcore.nets.recurrent import RecurrentNet
from hfcore.nets.recurrent_parts import Layer, Weights
from hfcore.nets.rnn import STRUCTURAL_FACTOR, StructuralDistance
from hfcore.nets.single_layer import SingleLayerNet
from hfcore.nets.torch_layout import LAYER, TorchLayout, of_layer


class TorchRecurrentNet(TorchLayout, RecurrentNet):
    """Nets shaped like a module of torch's nn.RNN and nn.Linear.

    Args:
        read: the module.
        loss: see :class:`FusedNet`.
        structural_distance: as of :class:`RnnNet`, at the hidden state of every layer.
    """

    def __init__(
        self, read: ReadOut, loss: Loss, *, structural_distance: StructuralDistance = "matching"
    ) -> None:
        check_choice("structural_distance", structural_distance, tuple(STRUCTURAL_FACTOR))
        rnn, layers = read.rnn, range(read.rnn.num_layers)
        self.lay_out(read)
        n, k = self.sizes
        self.shape, self.factor = (
            RnnShape(n, rnn.hidden_size, k),
            STRUCTURAL_FACTOR[structural_distance],
        )
        self.rearranged = True
        e = str(rnn.nonlinearity)
        super().__init__(
            read.model,
            loss,
            sizes=self.sizes,
            nonlinearity=e,
            shapes=self.shapes,
            hidden_sizes=[rnn.hidden_size for _ in layers],
            forms=[Recurrence(e) for _ in layers],
            damped=dict.fromkeys(layers, self.factor),
        )

    def split(self, theta: Tensor) -> Weights:
        named = self.named(theta)
        layers = []
        for l, H in enumerate(self.hidden_sizes):
            W_hx, W_hh, *biases = of_layer(named, l)
            none = theta.new_zeros(1, H)
            b_h = none if biases[0] is None else biases[0] + biases[1]
            layers.append(Layer(W_hx, W_hh, b_h, none))
        b_y = named.get("bias", theta.new_zeros(1, self.output_size))
        return Weights(named["weight"], b_y, layers)

    def joined(self, g: Weights) -> Tensor:
        named = {"weight": g.W_yh, "bias": g.b_y}
        for l, layer in enumerate(g.layers):
            pieces = layer.W_hx, layer.W_hh, layer.b_h, layer.b_h
            named |= {name.format(l): piece for name, piece in zip(LAYER, pieces, strict=True)}
        return self.in_order(named)


class TorchRnnNet(TorchRecurrentNet, SingleLayerNet):
    """The same of one layer, by one op, whose vectors are gathered."""

    walks_cases = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._places: tuple[torch.device, _Places] | None = None

    def _at(self, device: torch.device) -> _Places:
        if self._places is None or self._places[0] != device:
            named = self.named(torch.arange(self.numel, device=device)[None])
            self._places = device, _places({name: t.flatten() for name, t in named.items()}, self)
        return self._places[1]

    def _to_ops(self, v: Tensor) -> Tensor:
        at = self._at(v.device)
        there = v.index_select(1, at.source).mul_(at.kept)
        if at.second is not None:
            there[:, at.biases] += v.index_select(1, at.second)
        return there

    def _from_ops(self, g: Tensor) -> Tensor:
        return g.index_select(1, self._at(g.device).back)


class _Places(NamedTuple):
    """Where the ops' vectors ``[N_ops]`` and θ ``[N]`` have the same parameter.

    ``source`` of each entry of the ops, ``kept`` 0 where θ has none; ``second`` those of bias_hh,
    which are added at ``biases``; ``back`` the ops' entry of each of θ.
    """

    source: Tensor
    kept: Tensor
    second: Tensor | None
    biases: slice
    back: Tensor


def _places(named: Mapping[str, Tensor], net: TorchRnnNet) -> _Places:
    n, H, k = net.shape
    W_ih, W_hh, b_ih, b_hh = of_layer(named, 0)
    pieces = [
        (W_ih, H * n), (W_hh, H * H), (named["weight"], k * H), (b_ih, H), (None, H),
        (named.get("bias"), k),
    ]  # fmt: skip
    none = W_ih.new_zeros
    source = torch.cat([none(size) if at is None else at for at, size in pieces])
    kept = torch.cat([none(size) + (at is not None) for at, size in pieces])
    back, entries = none(net.numel), torch.arange(len(source), device=source.device)
    back[source[kept > 0]] = entries[kept > 0]
    start = H * (n + H + k)
    biases = slice(start, start + H)
    if b_hh is not None:
        back[b_hh] = entries[biases]
    return _Places(source, kept.to(net.dtype), b_hh, biases, back)
