"""The dense ops on CUDA kernels.

Float32 under ``set_matmul_precision("ieee")``, the default, and ``"bf16x6"`` is CUDA C++
(``gpu.cu``) where its binary loads, in groups that its grid holds (65,535 nets); all else is
Triton: float64, TF32, an install without nvcc.

Signatures and shapes: ``DenseForm``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from hfcore.bindings import cuda
from hfcore.bindings.checks import nets
from hfcore.bindings.triton_backend import dot_precision, serving
from hfcore.kernels.dense import gpu
from hfcore.kernels.scratch import Scratch


def dense_forward(a: Tensor, W: Tensor, b: Tensor, activation: str, out: Tensor) -> Tensor:
    with _kernels("dense_forward", out) as run:
        run(nets(a), nets(W), nets(b), activation, out)
    return out


def dense_rforward(
    a: Tensor, Ra: Tensor | None, W: Tensor, V: Tensor, v_b: Tensor, y: Tensor, activation: str,
    out: Tensor, stop: Tensor | None,
) -> Tensor:  # fmt: skip
    with _kernels("dense_rforward", out) as run:
        moved = None if Ra is None else nets(Ra)
        run(nets(a), moved, nets(W), nets(V), nets(v_b), nets(y), activation, out, stop)
    return out


def dense_backward(
    delta: Tensor, W: Tensor, y: Tensor, activation: str, add: Tensor | None, out: Tensor,
    stop: Tensor | None,
) -> Tensor:  # fmt: skip
    with _kernels("dense_backward", out) as run:
        more = None if add is None else nets(add)
        run(nets(delta), nets(W), nets(y), activation, more, out, stop)
    return out


def dense_gradient(
    delta: Tensor, a: Tensor, scale: float, squared: bool, out: tuple[Tensor, Tensor],
    stop: Tensor | None, scratch: Scratch | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    take = None if scratch is None else partial(scratch.take, "dense_gradient", delta)
    with _kernels("dense_gradient", out[0]) as run:
        run(nets(delta), nets(a), scale, squared, *out, stop, take=take)
    return out


@contextmanager
def _kernels(op: str, out: Tensor) -> Iterator[Callable[..., object]]:
    """What makes ``out``, by the rule at the top."""
    if compiled_form(out):
        with cuda.serving(f"dense.{op}", "dense", out.device) as launch:
            yield partial(getattr(gpu, op), launch)
    else:
        from hfcore.kernels.dense import gpu_triton

        with serving(f"dense.{op}", out.device):
            yield partial(getattr(gpu_triton, op), precision=dot_precision())


def compiled_form(out: Tensor) -> bool:
    """Whether CUDA C++ makes ``out [G,...]``, and not Triton."""
    return (
        out.dtype == torch.float32
        and dot_precision() == "ieee"
        and out.shape[0] <= gpu.MOST_NETS
        and cuda.why_unavailable("dense", out.device) is None
    )
