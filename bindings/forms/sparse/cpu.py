"""The sparse ops of the compiled module: CPU, float32 and float64.

Signatures and shapes: ``SparseForm``.
"""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings import _native
from hfcore.bindings.checks import dense
from hfcore.bindings.native_calls import call
from hfcore.bindings.threads import kernel_threads
from hfcore.kernels.recurrence import NONLINEARITIES
from hfcore.kernels.sparse import EllPattern, Rows


def ell_matmul(x: Tensor, value: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
    flat, rows = dense(value).flatten(1), _arrays(pattern.rows)
    call(_native.ell_product, dense(x), flat, *rows, out, kernel_threads())
    return out


def ell_matmul_t(g: Tensor, value: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
    flat, rows = dense(value).flatten(1), _arrays(pattern.transposed)
    call(_native.ell_product, dense(g), flat, *rows, out, kernel_threads())
    return out


def ell_gradient(g: Tensor, x: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
    rows = _arrays(pattern.rows)
    call(_native.ell_gradient, dense(g), dense(x), *rows, out.flatten(1), kernel_threads())
    return out


def ell_scan(
    u: Tensor, d: Tensor, value: Tensor, pattern: EllPattern, a: Tensor | None,
    transposed: bool, reverse: bool, out: Tensor,
) -> Tensor:  # fmt: skip
    call(
        _native.ell_scan,
        dense(u),
        dense(d),
        dense(value).flatten(1),
        *_arrays(pattern.transposed if transposed else pattern.rows),
        None if a is None else dense(a),
        bool(reverse),
        out,
        kernel_threads(),
    )
    return out


def ell_hidden(
    u: Tensor, value: Tensor, pattern: EllPattern, nonlinearity: str, out: Tensor
) -> Tensor:
    flat, rows = dense(value).flatten(1), _arrays(pattern.rows)
    e = NONLINEARITIES.index(nonlinearity)
    call(_native.ell_hidden, dense(u), flat, *rows, e, out, kernel_threads())
    return out


def _arrays(rows: Rows) -> tuple[Tensor, Tensor, Tensor | None]:
    return rows.start, rows.column, rows.place
