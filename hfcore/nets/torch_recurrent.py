"""nn.RNN with nn.Linear on the recurrence ops: the module keeps its parameters, as torch has them.

torch has two biases where the ops have one, b_h = bias_ih + bias_hh, and none of the first step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.bindings.checks import check_choice
from hfcore.bindings.recurrence import RnnShape
from hfcore.losses import Loss
from hfcore.nets.data import Data
from hfcore.nets.net import FusedNet
from hfcore.nets.recognition import ReadOut
from hfcore.nets.recurrence import Recurrence
from hfcore.nets.recurrent import Layer, RecurrentNet, Weights, concatenated
from hfcore.nets.rnn import STRUCTURAL_FACTOR, StructuralDistance
from hfcore.nets.single_layer import SingleLayerNet
from hfcore.nets.torch_data import check_read_out

# Those of one layer, as torch names them.
LAYER = ("weight_ih_l{}", "weight_hh_l{}", "bias_ih_l{}", "bias_hh_l{}")


class TorchRecurrentNet(RecurrentNet):
    """Nets shaped like a module of torch's nn.RNN and nn.Linear.

    Args:
        read: the module.
        loss: see :class:`FusedNet`.
        structural_distance: as of :class:`RnnNet`, at the hidden state of every layer.
    """

    has_torch_axes = True

    def __init__(
        self, read: ReadOut, loss: Loss, *, structural_distance: StructuralDistance = "matching"
    ) -> None:
        check_choice("structural_distance", structural_distance, tuple(STRUCTURAL_FACTOR))
        self.read, rnn = read, read.rnn
        self.order, layers = parameter_names(read), range(rnn.num_layers)
        n, H, k = rnn.input_size, rnn.hidden_size, read.out.out_features
        self.shape, self.factor = RnnShape(n, H, k), STRUCTURAL_FACTOR[structural_distance]
        self.rearranged = True
        e = str(rnn.nonlinearity)
        super().__init__(
            read.model,
            loss,
            sizes=(n, k),
            nonlinearity=e,
            shapes=[tuple(p.shape) for p in read.model.parameters()],
            hidden_sizes=[H for _ in layers],
            forms=[Recurrence(e) for _ in layers],
            damped=dict.fromkeys(layers, self.factor),
        )

    def check(self, batch: Batch, dtype: torch.dtype | None = None) -> Data:
        like = next(self.model.parameters()) if dtype is None else None
        return check_read_out(self.read, batch, self.loss, self.sizes, like=like, dtype=dtype)

    def check_tested(self, batch: Batch, dtype: torch.dtype) -> Data:
        every = not self.read.last_only
        return check_read_out(
            self.read, batch, self.loss, self.sizes, dtype=dtype, every_step=every
        )

    def split(self, theta: Tensor) -> Weights:
        named = dict(zip(self.order, self.views(theta), strict=True))
        layers = []
        for l, H in enumerate(self.hidden_sizes):
            W_hx, W_hh, b_ih, b_hh = (named.get(name.format(l)) for name in LAYER)
            none = theta.new_zeros(1, H)
            b_h = none if b_ih is None or b_hh is None else b_ih + b_hh
            assert W_hx is not None
            assert W_hh is not None
            layers.append(Layer(W_hx, W_hh, b_h, none))
        b_y = named.get("bias", theta.new_zeros(1, self.output_size))
        return Weights(named["weight"], b_y, layers)

    def joined(self, g: Weights) -> Tensor:
        named = {"weight": g.W_yh, "bias": g.b_y}
        for l, layer in enumerate(g.layers):
            pieces = layer.W_hx, layer.W_hh, layer.b_h, layer.b_h
            named |= {name.format(l): piece for name, piece in zip(LAYER, pieces, strict=True)}
        return concatenated([named[name] for name in self.order])


class TorchRnnNet(TorchRecurrentNet, SingleLayerNet):
    """The same of one layer, by one op."""

    walks_cases = True


def parameter_names(read: ReadOut) -> list[str]:
    """The parameters of the whole module in the order of θ, by the names their own modules use."""
    own = [*read.rnn.named_parameters(), *read.out.named_parameters()]
    names = {id(p): name for name, p in own}
    return [names[id(p)] for p in read.model.parameters()]


def net_of_read_out(
    read: ReadOut, loss: Loss, *, structural_distance: Any = "matching"
) -> FusedNet:
    """The net of a module that :func:`recognised` found. Raises ValueError for a bad option."""
    kind = TorchRnnNet if read.rnn.num_layers == 1 else TorchRecurrentNet
    return kind(read, loss, structural_distance=structural_distance)
