"""Where the parameters of nn.LSTM and nn.GRU stand, and in which blocks they are heard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hfcore.bindings.gated import GatedWeights, rows_of
from hfcore.nets.recognition import ReadOut
from hfcore.nets.torch_layout import LAYER, TorchLayout, of_layer

CELLS = {"LSTM": "lstm", "GRU": "gru"}


class NetWeights(NamedTuple):
    """Those of the read-out, ``W_yh [G,k,H]`` and ``b_y [G,k]``, and of every layer."""

    W_yh: Tensor
    b_y: Tensor
    layers: list[GatedWeights]


class GatedLayout(TorchLayout):
    """Parameters in θ, and the blocks: ``input_blocks[r]`` hears row r of W_ih, and so on."""

    def lay_out(self, read: ReadOut) -> None:
        super().lay_out(read)
        self.cell = CELLS[type(read.rnn).__name__]
        self.hidden_size, self.layers = read.rnn.hidden_size, read.rnn.num_layers
        rows = rows_of(self.cell)
        self.input_blocks = [rows.input.index(r) for r in range(rows.blocks)]
        self.hidden_blocks = [rows.hidden.index(r) for r in range(rows.blocks)]

    def split(self, theta: Tensor) -> NetWeights:
        """``theta [G,N]`` as parameters with a group axis."""
        named, H, layers = self.named(theta), self.hidden_size, []
        for l in range(self.layers):
            W_ih, W_hh, *biases = of_layer(named, l)
            layers.append(GatedWeights(W_ih, W_hh, self._biases(biases, theta.new_zeros(1, H))))
        b_y = named.get("bias", theta.new_zeros(1, self.sizes[1]))
        return NetWeights(named["weight"], b_y, layers)

    def _biases(self, given: Sequence[Tensor | None], none: Tensor) -> Tensor:
        """``b [G,4,H]`` of the blocks from bias_ih and bias_hh; ``none [1,H]`` where they are."""
        sums: list[Tensor] = [none] * 4
        for bias, heard in zip(given, (self.input_blocks, self.hidden_blocks), strict=True):
            for r, k in enumerate(heard) if bias is not None else ():
                assert bias is not None
                sums[k] = sums[k] + bias[:, r * none.shape[1] : (r + 1) * none.shape[1]]
        G = max(map(len, sums))
        return torch.stack([b.expand(G, -1) for b in sums], dim=1)

    def joined(self, W_yh: Tensor, b_y: Tensor, layers: list[GatedWeights]) -> Tensor:
        """The flat ``[G,N]`` of gradients: ``W_yh [G,·]``, ``b_y [G,k]`` and those of layers."""
        named = {"weight": W_yh, "bias": b_y}
        for l, g in enumerate(layers):
            # Slices: an index from a list would be copied to a GPU, which no graph records.
            biases = (
                torch.cat([g.b[:, k] for k in heard], dim=1)
                for heard in (self.input_blocks, self.hidden_blocks)
            )
            pieces = g.W_ih.flatten(1), g.W_hh.flatten(1), *biases
            named |= {name.format(l): piece for name, piece in zip(LAYER, pieces, strict=True)}
        return self.in_order(named)
