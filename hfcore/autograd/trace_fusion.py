"""Additions and factors that another op of a traced product can take along: one pass less each.

(R ⊙ c) ⊙ d                →  R ⊙ (c ⊙ d)                      c, d constants
y ± a ⊙ b                  →  addcmul(y, a, b)
view(a) + view(b)          →  view(a + b)
y + A B, stacks of them    →  baddbmm(y, A, B)
(y + A B) / s              →  baddbmm(y, A, B), both divided
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hfcore.autograd.trace import Node, Program, aten
from hfcore.autograd.trace_rewriter import RESHAPES, Rewriter


def fuse_passes(program: Program) -> Program:
    """The same linear map with fewer passes over the numbers."""
    if program.has(aten.mul.Tensor):
        program = _Fusion(program).run(_Fusion.with_factors)
    if program.has(aten.mul.Tensor) or program.has(aten.bmm.default):
        program = _Fusion(program).run(_Fusion.with_sums)
    if program.has(aten.baddbmm.default):
        program = _Fusion(program).run(_Fusion.with_quotients)
    return program


def sum_below_views(program: Program) -> Program:
    """Sums of reshaped values as reshaped sums, which products can then take along."""
    return _Fusion(program).run(_Fusion.with_views)


class _Fusion:
    def __init__(self, program: Program) -> None:
        self._rewriter = Rewriter(program)

    def run(self, method: Any) -> Program:
        return self._rewriter.run(partial(method, self))

    def _made(self, op: Any, args: tuple[Any, ...], like: Node, **kwargs: Any) -> Any:
        return self._rewriter.make(op, args, kwargs, like)

    # ---- factors

    def with_factors(self, node: Node) -> Any:
        """Constants that follow each other are multiplied now, where that holds no more numbers."""
        if node.op is not aten.mul.Tensor:
            return None
        outer, second = _with_constant(node)
        if second is None or not self._rewriter.once(outer, aten.mul.Tensor):
            return None
        inner, first = _with_constant(outer)
        if first is None or first.dtype != second.dtype:
            return None
        shape = torch.broadcast_shapes(first.shape, second.shape)
        if shape.numel() > max(first.numel(), second.numel()):
            return None
        return self._made(aten.mul.Tensor, (self._rewriter.new(inner), first * second), node)

    # ---- sums

    def with_sums(self, node: Node) -> Any:
        if node.op not in (aten.add.Tensor, aten.sub.Tensor) or node.kwargs:
            return None
        left, right = node.args
        if node.op is aten.sub.Tensor:
            return self._with_product(node, left, right, -1)
        return (
            self._with_stacks(node, left, right)
            or self._with_stacks(node, right, left)
            or self._with_product(node, left, right, 1)
            or self._with_product(node, right, left, 1)
        )

    def _with_product(self, node: Node, y: Any, product: Any, sign: int) -> Any:
        if not (isinstance(y, Node) and self._rewriter.once(product, aten.mul.Tensor)):
            return None
        a, b = product.args
        if product.kwargs or not all(isinstance(f, (Node, Tensor)) for f in (a, b)):
            return None
        if any(f.dtype != node.dtype for f in (y, a, b)):
            return None
        args = tuple(map(self._rewriter.new, (y, a, b)))
        kwargs = {} if sign == 1 else {"value": sign}
        return self._made(aten.addcmul.default, args, node, **kwargs)

    def _with_stacks(self, node: Node, y: Any, product: Any) -> Any:
        if not (_is_full(y, node) and self._rewriter.once(product, aten.bmm.default)):
            return None
        args = tuple(map(self._rewriter.new, (y, *product.args)))
        return self._made(aten.baddbmm.default, args, node)

    def with_views(self, node: Node) -> Any:
        if node.op is not aten.add.Tensor or node.kwargs:
            return None
        if not all(_is_full(x, node) for x in node.args):
            return None
        if not any(self._rewriter.once(x, *RESHAPES) for x in node.args):
            return None
        left, right = map(self._rewriter.new, node.args)
        if not all(isinstance(x, Node) and x.op in RESHAPES for x in (left, right)):
            return None
        a, b = left.args[0], right.args[0]
        if a.shape != b.shape or a.dtype != b.dtype:
            return None
        total = self._made(aten.add.Tensor, (a, b), Node(None, (), {}, a.shape, a.dtype))
        return self._made(aten.view.default, (total, list(node.shape or ())), node)

    # ---- quotients

    def with_quotients(self, node: Node) -> Any:
        """A stack of products, reshaped or not, over a number."""
        if node.op not in (aten.div.Tensor, aten.mul.Tensor) or node.kwargs:
            return None
        value, by = node.args
        if not isinstance(by, (int, float)) or isinstance(by, bool):
            return None
        view = value if self._rewriter.once(value, *RESHAPES) else None
        stacks = value if view is None else view.args[0]
        if not self._rewriter.once(stacks, aten.baddbmm.default) or stacks.kwargs:
            return None
        factor = 1.0 / by if node.op is aten.div.Tensor else float(by)
        args = tuple(map(self._rewriter.new, stacks.args))
        made = self._made(aten.baddbmm.default, args, stacks, beta=factor, alpha=factor)
        return made if view is None else self._made(view.op, (made, view.args[1]), node)


def _with_constant(node: Node) -> tuple[Any, Tensor | None]:
    """(the other factor, the constant) of a product with one; None where there is none."""
    for value, constant in (node.args, node.args[::-1]):
        if isinstance(value, Node) and isinstance(constant, Tensor) and constant.ndim:
            return value, constant
    return node, None


def _is_full(value: Any, node: Node) -> bool:
    """Whether an operand has the shape and dtype of the result."""
    return isinstance(value, Node) and value.shape == node.shape and value.dtype == node.dtype
