"""The dense ops on CUDA kernels.

True float32 is CUDA C++ (``gpu.cu``) where its binary loads, in groups that its grid holds (65,535
nets); all else is Triton: float64, TF32, six bfloat16 products, an install without nvcc. Under
``set_matmul_precision("bf16x6")`` the faster of the two serves float32 (``measured.py``).

Signatures and shapes: ``DenseForm``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hfcore.bindings import cuda
from hfcore.bindings.checks import nets
from hfcore.bindings.forms.dense import measured
from hfcore.bindings.forms.dense.measured import Float32, Size
from hfcore.bindings.triton_backend import MatmulPrecision, serving
from hfcore.kernels.dense import gpu
from hfcore.kernels.dense.reference import TANH
from hfcore.kernels.scratch import Scratch


def dense_forward(a: Tensor, W: Tensor, b: Tensor, activation: str, out: Tensor) -> Tensor:
    _run("dense_forward", a, W.shape[1], out, nets(a), nets(W), nets(b), activation, out)
    return out


def dense_rforward(
    a: Tensor, Ra: Tensor | None, W: Tensor, V: Tensor, v_b: Tensor, y: Tensor, activation: str,
    out: Tensor, stop: Tensor | None,
) -> Tensor:  # fmt: skip
    moved = None if Ra is None else nets(Ra)
    arrays = nets(a), moved, nets(W), nets(V), nets(v_b), nets(y)
    _run("dense_rforward", a, W.shape[1], out, *arrays, activation, out, stop)
    return out


def dense_backward(
    delta: Tensor, W: Tensor, y: Tensor, activation: str, add: Tensor | None, out: Tensor,
    stop: Tensor | None,
) -> Tensor:  # fmt: skip
    arrays = nets(delta), nets(W), nets(y)
    more = None if add is None else nets(add)
    _run("dense_backward", y, W.shape[1], out, *arrays, activation, more, out, stop)
    return out


def dense_gradient(
    delta: Tensor, a: Tensor, scale: float, squared: bool, out: tuple[Tensor, Tensor],
    stop: Tensor | None, scratch: Scratch | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    take = None if scratch is None else partial(scratch.take, "dense_gradient", delta)
    arrays = nets(delta), nets(a)
    _run(
        "dense_gradient", a, delta.shape[2], out[0], *arrays, scale, squared, *out, stop, take=take
    )
    return out


def _run(op: str, below: Tensor, m: int, out: Tensor, *arguments: Any, **options: Any) -> None:
    """``arguments`` to the kernels of the rule at the top: m units above ``below [G,B,n]``."""
    precision: MatmulPrecision = "ieee"
    if out.dtype == torch.float32:
        B, n = below.shape[1:]
        size = Size.of(op, B, n, m)
        precision = measured.precision(size, out.device, partial(_work, out.device))
    _start(op, precision, out, *arguments, **options)


def _start(
    op: str, precision: MatmulPrecision, out: Tensor, *arguments: Any, **options: Any
) -> None:
    """``arguments`` to the kernels that make ``out [G,...]`` in this precision."""
    if compiled_form(out, precision):
        with cuda.serving(f"dense.{op}", "dense", out.device) as launch:
            getattr(gpu, op)(launch, *arguments, **options)
    else:
        from hfcore.kernels.dense import gpu_triton

        with serving(f"dense.{op}", out.device):
            getattr(gpu_triton, op)(*arguments, precision=precision, **options)


def compiled_form(out: Tensor, precision: str = "ieee") -> bool:
    """Whether CUDA C++ makes ``out [G,...]`` in this precision, and not Triton."""
    return (
        out.dtype == torch.float32
        and precision == "ieee"
        and out.shape[0] <= gpu.MOST_NETS
        and cuda.why_unavailable("dense", out.device) is None
    )


def _work(device: torch.device, size: Size, precision: Float32) -> Callable[[], object]:
    """The op of a size for one net, to be timed: numbers of both signs, the longest form."""
    op, B, n, m = size

    def array(*shape: int) -> Tensor:
        return torch.linspace(-1.0, 1.0, math.prod(shape), device=device).view(1, *shape)

    below, above, W, b = array(B, n), array(B, m), array(m, n), array(m)
    outs = {name: torch.empty_like(t) for name, t in (("y", above), ("x", below), ("W", W))}
    arguments: dict[str, tuple[Tensor, tuple[Any, ...]]] = {
        "dense_forward": (outs["y"], (below, W, b, TANH, outs["y"])),
        "dense_rforward": (
            outs["y"], (below, below, W, W, b, above, TANH, outs["y"], None)
        ),
        "dense_backward": (outs["x"], (above, W, below, TANH, None, outs["x"], None)),
        "dense_gradient": (
            outs["W"], (above, below, 1.0, False, outs["W"], torch.empty_like(b), None)
        ),
    }  # fmt: skip
    out, given = arguments[op]
    return lambda: _start(op, precision, out, *given)
