"""What the nets of torch's recurrent modules share: parameters as torch has them, and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.batches import Batch
from hfcore.losses import Loss
from hfcore.nets.data import Data
from hfcore.nets.recognition import ReadOut
from hfcore.nets.recurrent_parts import concatenated
from hfcore.nets.torch_data import check_read_out

# Parameters of one layer, as torch names them.
LAYER = ("weight_ih_l{}", "weight_hh_l{}", "bias_ih_l{}", "bias_hh_l{}")


class TorchLayout:
    """Parameters by the names of their own modules, ``weight`` and ``bias`` those of the read-out.

    A net calls :meth:`lay_out` first: ``sizes`` are (n, k), ``shapes`` those of the parameters in
    the order of θ.
    """

    has_torch_axes = True
    model: nn.Module
    loss: Loss

    def lay_out(self, read: ReadOut) -> None:
        self.read = read
        self.sizes = read.rnn.input_size, read.out.out_features
        parameters = list(read.model.parameters())
        names = {
            id(p): name for part in (read.rnn, read.out) for name, p in part.named_parameters()
        }
        self.order = [names[id(p)] for p in parameters]
        self.shapes: Sequence[tuple[int, ...]] = [tuple(p.shape) for p in parameters]
        self.lengths = [p.numel() for p in parameters]

    def named(self, theta: Tensor) -> dict[str, Any]:
        """The parameters of ``theta [G,N]``, views with a group axis."""
        parts = zip(self.order, theta.split(self.lengths, dim=1), self.shapes, strict=True)
        return {name: part.view(-1, *shape) for name, part, shape in parts}

    def in_order(self, named: Mapping[str, Tensor]) -> Tensor:
        """The flat ``[G,N]`` of what belongs to each parameter, ``[G,·]`` or ``[1,·]``."""
        return concatenated([named[name] for name in self.order])

    def check(self, batch: Batch, dtype: torch.dtype | None = None) -> Data:
        like = next(self.model.parameters()) if dtype is None else None
        return check_read_out(self.read, batch, self.loss, self.sizes, like=like, dtype=dtype)

    def check_tested(self, batch: Batch, dtype: torch.dtype) -> Data:
        every = not self.read.last_only
        sizes = self.sizes
        return check_read_out(self.read, batch, self.loss, sizes, dtype=dtype, every_step=every)


def of_layer(named: Mapping[str, Any], l: int) -> tuple[Any, Any, Any, Any]:
    """W_ih, W_hh and two biases of layer l, None where there are none."""
    W_ih, W_hh, b_ih, b_hh = (named.get(name.format(l)) for name in LAYER)
    return W_ih, W_hh, b_ih, b_hh
