"""Which net serves a module that :mod:`hfcore.nets.recognition` found, with which losses."""

from __future__ import annotations

from typing import Any

from torch import nn

from hfcore.losses import Loss
from hfcore.losses.from_torch import converted
from hfcore.models.gated import GatedRecurrentNet
from hfcore.nets.gated import GatedNet
from hfcore.nets.net import FusedNet
from hfcore.nets.recognition import ReadOut
from hfcore.nets.torch_recurrent import TorchRecurrentNet, TorchRnnNet


def loss_of_outputs(loss: Any) -> Loss | None:
    """The loss that stands for ``loss``: itself, or that of torch's own with ``reduction="mean"``.

    None for any other.
    """
    if isinstance(loss, Loss):
        return loss
    return converted(loss) if getattr(loss, "reduction", None) == "mean" else None


def why_other_axes(read: ReadOut, loss: Any) -> str | None:
    """Why a loss takes the numbers of an output along another axis than the module has them.

    Losses of hf.losses take them last; torch's cross-entropy along axis 1, and its other losses of
    any shape, with weights along the last axis.
    """
    served = loss_of_outputs(loss)
    assert served is not None
    if served is loss:
        if read.classes_second:
            return f"its outputs are [B,k,T], and {type(loss).__name__} takes [B,T,k]"
        return None
    along_last = not (read.last_only or read.classes_second)
    if served.takes_classes and along_last:
        shape = "[B,T,k]" if read.batch_first else "[T,B,k]"
        return (
            f"nn.{type(loss).__name__} takes the classes of its outputs {shape} along axis 1; need "
            "hf.losses.from_torch, which takes them last, or outputs [B,k,T]"
        )
    if served.has_weights and not served.takes_classes and read.classes_second:
        return f"nn.{type(loss).__name__} has weights along the last axis of outputs [B,k,T]"
    return None


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
