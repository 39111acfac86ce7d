"""The gated ops on CUDA C++ kernels, float32.

Signatures and shapes: ``GatedForm``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from hfcore.bindings import cuda
from hfcore.bindings.forms.gated.products import gradient_by_products
from hfcore.bindings.triton_backend import torch_matmul
from hfcore.kernels.gated import GatedStates, GatedWeights, gpu


def gated_forward(x: Tensor, w: GatedWeights, cell: str, states: bool, out: GatedStates) -> None:
    with _serving("gated.gated_forward", x) as launch:
        limit = launch.shared_limit
        gpu.gated_forward(launch, x, w, cell, states, out, shared_limit=limit)


def gated_tangent(
    x: Tensor, at: GatedStates, Rx: Tensor | None, w: GatedWeights, v: GatedWeights, cell: str,
    out: Tensor,
) -> None:  # fmt: skip
    with _serving("gated.gated_tangent", x) as launch:
        limit = launch.shared_limit
        gpu.gated_tangent(launch, x, at, Rx, w, v, cell, out, shared_limit=limit)


def gated_backward(gh: Tensor, at: GatedStates, W_hh: Tensor, cell: str, out: Tensor) -> None:
    with _serving("gated.gated_backward", gh) as launch:
        gpu.gated_backward(launch, gh, at, W_hh, cell, out, shared_limit=launch.shared_limit)


def gated_gradient(
    gh: Tensor, x: Tensor, at: GatedStates, W_hh: Tensor, cell: str, out: GatedWeights,
    ga: Tensor | None,
) -> None:  # fmt: skip
    gradient_by_products(gated_backward, gh, x, at, W_hh, cell, out, ga)


@contextmanager
def _serving(op: str, x: Tensor) -> Iterator[cuda.Launcher]:
    """The launcher for ``x``'s device; torch's products inside obey the precision policy."""
    with cuda.serving(op, "gated", x.device) as launch, torch_matmul():
        yield launch
