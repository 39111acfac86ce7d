"""The tangent of layer normalisation in a traced product: one op where autograd has eight.

With d = x − μ, σ and the weights γ of N numbers a row, autograd differentiates the backward pass to

    γ/(Nσ) ⊙ (N R − Σ R − d/σ² ⊙ Σ (R ⊙ d))       sums along a row

which is γ ⊙ the backward pass for R without weights: the projection is its own transpose.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfcore.autograd.trace import Node, Program, aten
from hfcore.autograd.trace_rewriter import Rewriter

# Rounding, in units of the last place, of constants that are found again from others.
ROUNDING = 256


def norms_by_backward(program: Program) -> Program:
    if not program.has(aten.sub.Tensor, aten.mul.Tensor):
        return program
    rewriter = Rewriter(program)

    def visit(node: Node) -> Any:
        found = _projection(node)
        return None if found is None else _by_backward(rewriter, node, found)

    return rewriter.run(visit)


class _Projection(NamedTuple):
    """R ``[M,N]`` and the constants d ``[M,N]``, 1/σ ``[M,1]``, γ ``[N]``."""

    R: Node
    d: Tensor
    rstd: Tensor
    weight: Tensor


def _projection(node: Node) -> _Projection | None:
    """What a node is, where it is the formula above."""
    factors = _product(node)
    if factors is None or len(node.shape or ()) != 2:
        return None
    outer, difference = factors
    inner, along = _difference(difference)
    scaled, total = _difference(inner)
    factors = _product(along)
    if factors is None or not _is_scaled(scaled):
        return None
    slope, weighted = factors
    R, N = scaled.args
    if not isinstance(R, Node) or R.shape != node.shape or _row(R) != N:
        return None
    dotted = _product(_summed(weighted))
    if _summed(total) is not R or dotted is None or dotted[1] is not R:
        return None
    return _with_constants(R, outer, slope, dotted[0])


def _with_constants(R: Node, outer: Tensor, slope: Tensor, d: Tensor) -> _Projection | None:
    """1/σ and γ from γ/(Nσ), d/σ² and d; None where these are no such constants."""
    if not all(c.shape == R.shape and c.dtype == R.dtype for c in (outer, slope, d)):
        return None
    rstd = ((slope * d).sum(1, keepdim=True) / d.square().sum(1, keepdim=True)).sqrt()
    N = d.shape[1]
    weight = outer[0] * N / rstd[0]
    if not _are_close(slope, d * rstd.square()) or not _are_close(outer, weight * rstd / N):
        return None
    return _Projection(R, d, rstd, weight)


def _by_backward(rewriter: Rewriter, node: Node, found: _Projection) -> Any:
    R, d, rstd, weight = found
    args = (
        rewriter.new(R), d, [d.shape[1]], torch.zeros_like(rstd), rstd, None, None,
        [True, False, False],
    )  # fmt: skip
    whole = Node(None, dtype=node.dtype)
    back = rewriter.make(aten.native_layer_norm_backward.default, args, {}, whole)
    projected = rewriter.make(operator.getitem, (back, 0), {}, node)
    if bool((weight == 1).all()):
        return projected
    return rewriter.make(aten.mul.Tensor, (projected, weight), {}, node)


def _is(value: Any, op: Any) -> bool:
    return isinstance(value, Node) and value.op is op and not value.kwargs


def _row(node: Node) -> int:
    """How many numbers a row has."""
    return 0 if node.shape is None else node.shape[-1]


def _is_scaled(value: Any) -> bool:
    """Whether it is R times a number."""
    return _is(value, aten.mul.Scalar) or _is(value, aten.mul.Tensor)


def _product(value: Any) -> tuple[Tensor, Node] | None:
    """(c, R) of c ⊙ R with a constant."""
    if not _is(value, aten.mul.Tensor):
        return None
    for c, R in (value.args, value.args[::-1]):
        if isinstance(c, Tensor) and isinstance(R, Node):
            return c, R
    return None


def _difference(value: Any) -> tuple[Any, Any]:
    return value.args if _is(value, aten.sub.Tensor) else (None, None)


def _summed(value: Any) -> Any:
    """R of the sums of its rows, kept as a column."""
    if not _is(value, aten.sum.dim_IntList) or len(value.args) != 3:
        return None
    R, dims, keeps = value.args
    return R if keeps and list(dims) in ([1], [-1]) else None


def _are_close(a: Tensor, b: Tensor) -> bool:
    """Up to rounding of the largest of each row; not where there is a NaN."""
    size = b.abs().amax(1, keepdim=True)
    return bool(((a - b).abs() <= ROUNDING * torch.finfo(a.dtype).eps * size).all())
