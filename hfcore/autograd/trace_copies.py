"""Copies of a traced product that another order of its axes makes smaller, as attention has them.

copy(permute(stack(a, b, …)))      →  stack(permute(a), permute(b), …)
copy(transpose(R)) in a product    →  transpose(copy(R)), which products take as it lies
(R / s) in products with constants →  R, and the constants over s
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hfcore.autograd.trace import Node, Program, aten
from hfcore.autograd.trace_rewriter import RESHAPES, Rewriter, shape_of

PRODUCTS: dict[Any, int] = {
    aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1, aten.baddbmm.default: 1,
}  # fmt: skip
# What only looks at a value otherwise.
LOOKS = (*RESHAPES, aten.t.default, aten.transpose.int, aten.permute.default)


def smaller_copies(program: Program) -> Program:
    if program.has(aten.stack.default, aten.permute.default, aten.clone.default):
        program = _Copies(program).run(_Copies.of_stacks)
    if program.has(aten.transpose.int, aten.clone.default):
        program = _Copies(program).run(_Copies.of_transposed)
    if program.has(aten.div.Tensor) or program.has(aten.mul.Tensor):
        program = _Copies(program).run(_Copies.of_quotients)
    return program


class _Copies:
    def __init__(self, program: Program) -> None:
        self._rewriter = Rewriter(program)
        self._readers: dict[int, list[Node]] = {}
        for node in program.order():
            for operand in node.operands():
                self._readers.setdefault(id(operand), []).append(node)
        self._returned = {id(value) for value in program.outputs}
        # What the constants of a product are to be multiplied by.
        self._factors: dict[int, float] = {}

    def run(self, method: Any) -> Program:
        return self._rewriter.run(partial(method, self))

    def _made(self, op: Any, args: tuple[Any, ...], like: Node) -> Any:
        return self._rewriter.make(op, args, {}, like)

    def of_stacks(self, node: Node) -> Any:
        if not _is_copy(node) or not self._rewriter.once(node.args[0], aten.permute.default):
            return None
        permuted = node.args[0]
        stacked, order = permuted.args
        if not self._rewriter.once(stacked, aten.stack.default):
            return None
        parts, *dims = stacked.args
        if not all(isinstance(p, Node) and p.shape is not None for p in parts):
            return None
        order, axes = [axis % len(order) for axis in order], len(order)
        dim = (dims[0] if dims else 0) % axes
        rest = [axis - (axis > dim) for axis in order if axis != dim]
        moved = []
        for part in parts:
            shape = torch.Size(part.shape[axis] for axis in rest)
            like = Node(None, (), {}, shape, part.dtype)
            moved.append(self._made(aten.permute.default, (self._rewriter.new(part), rest), like))
        return self._made(aten.stack.default, (moved, order.index(dim)), node)

    def of_transposed(self, node: Node) -> Any:
        copied = node.args[0] if node.op in RESHAPES else None
        if (
            copied is None
            or not self._rewriter.once(copied, aten.clone.default)
            or not _is_copy(copied)
        ):
            return None
        turned = copied.args[0]
        if not self._rewriter.once(turned, aten.transpose.int) or not self._is_in_products(node):
            return None
        (R, *dims), shape = turned.args, shape_of(node)
        last = len(turned.shape) - 1
        if {dim % (last + 1) for dim in dims} != {last - 1, last}:
            return None
        if len(shape) != 3 or shape[1:] != turned.shape[-2:]:
            return None
        lies = Node(None, (), {}, R.shape, node.dtype)
        args = (self._rewriter.new(R),)
        copy = self._rewriter.make(aten.clone.default, args, copied.kwargs, lies)
        untransposed = torch.Size((shape[0], shape[2], shape[1]))
        like = Node(None, (), {}, untransposed, node.dtype)
        viewed = self._made(aten.view.default, (copy, list(untransposed)), like)
        return self._made(aten.transpose.int, (viewed, 1, 2), node)

    def _is_in_products(self, node: Node) -> bool:
        readers = self._readers.get(id(node), [])
        return id(node) not in self._returned and all(r.op in PRODUCTS for r in readers)

    def of_quotients(self, node: Node) -> Any:
        if id(node) in self._factors:
            return self._with_scaled_constant(node, self._factors[id(node)])
        if node.op not in (aten.div.Tensor, aten.mul.Tensor) or node.kwargs:
            return None
        R, by = node.args
        if not isinstance(R, Node) or not isinstance(by, (int, float)) or not by:
            return None
        products = list(self._products_of(node))
        if not products or any(p is None or id(p) in self._factors for p in products):
            return None
        held = sum(c.numel() for p in products if p is not None for c in _constants_of(p))
        if held > 2 * shape_of(node).numel():
            return None
        factor = 1.0 / by if node.op is aten.div.Tensor else float(by)
        self._factors |= {id(p): factor for p in products}
        return self._rewriter.new(R)

    def _products_of(self, value: Node) -> Iterator[Node | None]:
        """The products with constants that read a value; None for each other reader."""
        if id(value) in self._returned:
            yield None
        for reader in self._readers.get(id(value), ()):
            if reader.op in LOOKS:
                yield from self._products_of(reader)
            elif reader.op in PRODUCTS and len(_constants_of(reader)) == 1:
                added = reader.args[0] if PRODUCTS[reader.op] else None
                yield None if added is value else reader
            else:
                yield None

    def _with_scaled_constant(self, node: Node, factor: float) -> Any:
        first = PRODUCTS[node.op]
        args = [
            a * factor if isinstance(a, Tensor) and i >= first else self._rewriter.new(a)
            for i, a in enumerate(node.args)
        ]
        kwargs = {name: self._rewriter.new(value) for name, value in node.kwargs.items()}
        return self._rewriter.make(node.op, tuple(args), kwargs, node)


def _is_copy(value: Any) -> bool:
    """Whether it is a copy that lies in the order of its axes."""
    if not isinstance(value, Node) or value.op is not aten.clone.default:
        return False
    return value.kwargs.get("memory_format") is torch.contiguous_format


def _constants_of(product: Node) -> list[Tensor]:
    """Those among its two factors."""
    return [a for a in product.args[PRODUCTS[product.op] :] if isinstance(a, Tensor)]
