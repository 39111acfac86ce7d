"""Which net serves a module that :mod:`hfcore.nets.recognition` found."""

from __future__ import annotations

from typing import Any

from torch import nn

from hfcore.losses import Loss
from hfcore.models.gated import GatedRecurrentNet
from hfcore.nets.gated import GatedNet
from hfcore.nets.net import FusedNet
from hfcore.nets.recognition import ReadOut
from hfcore.nets.torch_recurrent import TorchRecurrentNet, TorchRnnNet


def net_of_read_out(
    read: ReadOut, loss: Loss, *, structural_distance: Any = "matching"
) -> FusedNet:
    """The net of a module. Raises ValueError for a bad option."""
    if not isinstance(read.rnn, nn.RNN):
        return GatedNet(read, loss)
    kind = TorchRnnNet if read.rnn.num_layers == 1 else TorchRecurrentNet
    return kind(read, loss, structural_distance=structural_distance)


def gated_net(model: GatedRecurrentNet, loss: Loss) -> FusedNet:
    """The net of hf.LSTM and hf.GRU. Raises ValueError for parameters that are tied or frozen."""
    return GatedNet(ReadOut(model, model.rnn, model.out, last_only=False), loss)
