"""The sparse ops on Triton kernels, float32 and float64.

Signatures and shapes: ``SparseForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings.checks import dense
from hfcore.bindings.triton_backend import serving
from hfcore.kernels.sparse import EllPattern, gpu_triton


def ell_matmul(x: Tensor, value: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
    flat = dense(value).flatten(1)
    with serving("sparse.ell_matmul", x.device):
        return gpu_triton.product(dense(x), flat, pattern.rows, out)


def ell_matmul_t(g: Tensor, value: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
    flat = dense(value).flatten(1)
    with serving("sparse.ell_matmul_t", g.device):
        return gpu_triton.product(dense(g), flat, pattern.transposed, out)


def ell_gradient(g: Tensor, x: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
    with serving("sparse.ell_gradient", g.device):
        return gpu_triton.gradient(dense(g), dense(x), pattern, out)


def ell_scan(
    u: Tensor, d: Tensor, value: Tensor, pattern: EllPattern, a: Tensor | None,
    transposed: bool, reverse: bool, out: Tensor,
) -> Tensor:  # fmt: skip
    rows = pattern.transposed if transposed else pattern.rows
    more = None if a is None else dense(a)
    with serving("sparse.ell_scan", u.device):
        flat = dense(value).flatten(1)
        return gpu_triton.scan(dense(u), dense(d), flat, rows, more, reverse, out)


def ell_hidden(
    u: Tensor, value: Tensor, pattern: EllPattern, nonlinearity: str, out: Tensor
) -> Tensor:
    flat = dense(value).flatten(1)
    with serving("sparse.ell_hidden", u.device):
        return gpu_triton.hidden(dense(u), flat, pattern.rows, nonlinearity, out)
