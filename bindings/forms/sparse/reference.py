"""The sparse ops in plain torch: any device, any floating dtype.

Signatures and shapes: ``SparseForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.kernels.sparse import EllPattern, reference


def ell_matmul(x: Tensor, value: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
    return out.copy_(reference.ell_matmul(x.detach(), value.detach(), pattern))


def ell_matmul_t(g: Tensor, value: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
    return out.copy_(reference.ell_matmul_t(g.detach(), value.detach(), pattern))


def ell_gradient(g: Tensor, x: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
    return out.copy_(reference.ell_gradient(g.detach(), x.detach(), pattern))


def ell_scan(
    u: Tensor, d: Tensor, value: Tensor, pattern: EllPattern, a: Tensor | None,
    transposed: bool, reverse: bool, out: Tensor,
) -> Tensor:  # fmt: skip
    more = None if a is None else a.detach()
    arrays = u.detach(), d.detach(), value.detach()
    return out.copy_(reference.ell_scan(*arrays, pattern, more, transposed, reverse))


def ell_hidden(
    u: Tensor, value: Tensor, pattern: EllPattern, nonlinearity: str, out: Tensor
) -> Tensor:
    return out.copy_(reference.ell_hidden(u.detach(), value.detach(), pattern, nonlinearity))
