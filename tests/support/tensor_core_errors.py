"""Errors of the recurrence on tensor cores beside those of float32 products, without a GPU.

python tests/support/tensor_core_errors.py [T [H]]    prints the table; T = 200, H = 100 by default

h: states; Rh: their R-op at a random tangent; G: gradient, from a random gradient in the outputs.
Relative errors in the 2-norm against float64, at 8 sequences of a net of H units; above 128 they
run on clusters of blocks, above 512 by one kernel a step. The kernels run in the emulation of
tests/support/emulation, where tensor cores add 8 products at once and cut the sum one bit below
float32, and again 16 products and two bits.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from emulation import Emulator, build, gpu_source
from hfcore.kernels.gpu_launch import Launch
from hfcore.kernels.recurrence import (
    ForwardPass,
    RnnWeights,
    gpu,
    gpu_cluster,
    gpu_step,
    gpu_tensor,
    reference,
)
from hfcore.kernels.recurrence.gpu_launch import Run, TensorLaunch
from hfcore.kernels.scratch import Scratch

# How a tensor core adds: bits kept below float32, products at once.
CORES = ((1, 8), (2, 16))
NETS = ("sparse, spectral radius 1.1", "dense, gain 1.1", "dense, gain 1.6 (chaotic)")


class Net(NamedTuple):
    """What is computed with, in float32: net, tangent, inputs, covector of the outputs."""

    w: RnnWeights
    v: RnnWeights
    x: Tensor
    gs: Tensor


class Results(NamedTuple):
    """Of one arithmetic."""

    h: Tensor
    Rh: Tensor
    G: Tensor


def make(kind: str, T: int, B: int = 8, H: int = 100, n: int = 2) -> Net:
    """A net of one of the kinds of :data:`NETS`, from a fixed seed."""
    draw = torch.Generator().manual_seed(0)

    def array(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(1, *shape, generator=draw)

    W = array(H, H, scale=1 / math.sqrt(H))
    if kind.startswith("sparse"):  # 15 connections a unit: Martens & Sutskever (2011), section 5
        places = torch.rand(H, H, generator=draw).argsort(1)
        W = W * (places < 15)
        W = W * (1.1 / float(torch.linalg.eigvals(W[0].double()).abs().max()))
    else:
        W = W * float(kind.split()[2])
    others = [array(H, n, scale=0.3), array(1, H, scale=0.1), *(array(H, scale=0.1),) * 2]
    w = RnnWeights(others[0], W.contiguous(), others[1], *others[2:], array(1))
    v = RnnWeights(
        array(H, n), array(H, H, scale=1 / math.sqrt(H)), array(1, H), array(H), array(H), array(1)
    )
    return Net(w, v, array(T, B, n), array(T, B, 1))


def in_torch(net: Net, dtype: torch.dtype, h: Tensor | None = None) -> Results:
    """By torch's products on the CPU; derivatives at ``h`` if given."""
    w, v = (RnnWeights(*(p.to(dtype) for p in q)) for q in (net.w, net.v))
    x = net.x.to(dtype)
    states = reference.rnn_forward(x, w, "tanh", None)[0]
    at = states if h is None else h.to(dtype)
    Rh = reference.rnn_tangent(x, at, w, v, "tanh", None)[0]
    G = reference.rnn_backward(ForwardPass(x, at, w, "tanh", None), net.gs.to(dtype))
    return Results(states, Rh, G)


def on_tensor_cores(net: Net, tensor: TensorLaunch, others: Launch) -> Results:
    """By the kernels on tensor cores that serve the net."""
    limit = gpu.SHARED_LIMIT[90]
    h, _ = gpu.rnn_forward(others, net.x, net.w, "tanh", None, shared_limit=limit, tensor=tensor)
    assert h is not None
    run = Run(others, None, limit, Scratch(), tensor)
    own = gpu.own_products(h.shape[-1], limit)
    Rh = gpu._tangent(run, own, net.x, h, net.w, net.v, "tanh", None)
    at = ForwardPass(net.x, h, net.w, "tanh", None)
    G = gpu.rnn_backward(others, at, net.gs, shared_limit=limit, tensor=tensor)
    return Results(h, Rh, G)


def errors(got: Results, net: Net) -> dict[str, float]:
    """Relative errors by name; derivatives are taken at the states that were got."""
    want = in_torch(net, torch.float64)._replace(
        **{k: v for k, v in in_torch(net, torch.float64, got.h)._asdict().items() if k != "h"}
    )
    pairs = zip(Results._fields, got, want, strict=True)
    return {
        name: float((g.double() - w).norm() / w.norm()) for name, g, w in pairs if g.numel() > 0
    }


def serving(H: int) -> tuple[str, str]:
    """The source of the kernels that run a net of H units, and whose launch it is."""
    if H <= gpu_tensor.MOST_UNITS:
        return gpu_tensor.SOURCE, "block"
    return (
        (gpu_cluster.SOURCE, "cluster")
        if H <= gpu_cluster.MOST_UNITS
        else (gpu_step.SOURCE, "step")
    )


def main(arguments: list[str]) -> None:
    T, H = map(int, [*arguments, *("200", "100")[len(arguments) :]])
    with tempfile.TemporaryDirectory() as folder:
        source, form = serving(H)
        tensor, others = (
            Emulator(build(gpu_source("recurrence", name), Path(folder)))
            for name in (source, "gpu.cu")
        )
        launch = TensorLaunch(**{form: tensor.launch})
        for kind in NETS:
            net = make(kind, T, H=H)
            rows: dict[str, Callable[[], Results]] = {
                "float32 products of torch": lambda net=net: in_torch(net, torch.float32)
            }
            for bits, products in CORES:
                rows[f"tensor cores: {products} products, {bits} bits"] = (
                    lambda net=net, how=(bits, products): (
                        tensor.tensor_core(*how),
                        on_tensor_cores(net, launch, others.launch),
                    )[1]
                )
            for name, compute in rows.items():
                found = "  ".join(f"{k} {e:.1e}" for k, e in errors(compute(), net).items())
                print(f"{kind:28}  {name:36}  {found}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
