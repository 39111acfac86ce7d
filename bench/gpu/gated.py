"""LSTM and GRU layers on the GPU: each op beside its plain form, and cuDNN's layers.

Bytes and flops as in ``ops.py``: every array once, 2 flops a term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.gpu.measurements import Work
from bench.gpu.ops import Bench, against_reference
from bench.gpu.timing import Call
from hfcore.bindings import gated
from hfcore.bindings.gated import GatedStates, GatedWeights
from hfcore.kernels.gated import reference

CUDNN = "torch's own layer (cuDNN, TF32 off)"


@dataclass
class Layer:
    """One layer with data, states, a tangent and what reaches its states."""

    cell: str
    B: int
    T: int
    H: int
    n: int = 2
    device: str = "cuda"

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(0)

        def normal(*size: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(size, generator=draw)).to(self.device)

        def weights() -> GatedWeights:
            rows, scale = self.R * self.H, self.H**-0.5
            return GatedWeights(
                normal(1, rows, self.n, scale=scale),
                normal(1, rows, self.H, scale=scale),
                normal(1, 4, self.H, scale=scale),
            )

        self.w, self.v = weights(), weights()
        self.x, self.gh = normal(1, self.T, self.B, self.n), normal(1, self.T, self.B, self.H)
        self.at: GatedStates = gated.gated_forward(self.x, self.w, cell=self.cell)

    @property
    def R(self) -> int:
        """Blocks of rows."""
        return gated.rows_of(self.cell).blocks

    @property
    def case(self) -> str:
        return f"B{self.B}-T{self.T}-H{self.H}-n{self.n}"


def gated_ops(net: Layer, *, compiled: bool) -> list[Bench]:
    """Forward pass, R-op and backpropagation through time of one layer."""
    x, w, v, at, cell, gh = net.x, net.w, net.v, net.at, net.cell, net.gh
    states, product = 4.0 * net.B * net.T * net.H, 2.0 * net.B * net.T * net.R * net.H
    # Arrays of states: all that there are, and what passes on the way back.
    kept, back = (7, 11) if cell == "lstm" else (5, 10)
    Rh, ga = torch.empty_like(at.h), torch.empty_like(at.gates)
    # Name, arrays of states that pass, terms of a row's products, both forms, cuDNN's.
    ops: list[tuple[str, int, int, Call, Call, dict[str, Callable[[], Call]]]] = [
        (
            "forward", kept, net.H + net.n,
            lambda: gated.gated_forward(x, w, cell=cell, out=at),
            lambda: reference.gated_forward(x, w, cell),
            {CUDNN: lambda: _cudnn_forward(net)},
        ),
        (
            "tangent", kept + 1, 2 * net.H + net.n,
            lambda: gated.gated_tangent(x, at, w, v, cell=cell, out=Rh),
            lambda: reference.gated_tangent(x, at, None, w, v, cell),
            {},
        ),
        (
            "backward", back, net.H,
            lambda: gated.gated_backward(gh, at, w.W_hh, cell=cell, out=ga),
            lambda: reference.gated_backward(gh, at, w.W_hh, cell),
            {},
        ),
    ]  # fmt: skip
    return [
        Bench(
            f"{cell}_{name}",
            net.case,
            Work(passing * states, terms * product, net.T),
            against_reference(ours, plain, compiled=compiled) | more,
        )
        for name, passing, terms, ours, plain, more in ops
    ]


def _cudnn_forward(net: Layer) -> Call:
    kind = nn.LSTM if net.cell == "lstm" else nn.GRU
    layer, x = kind(net.n, net.H, device=net.device), net.x[0]

    @torch.no_grad()
    def forward() -> object:
        return layer(x)

    forward()
    return forward
