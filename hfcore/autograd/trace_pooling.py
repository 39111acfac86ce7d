"""What stands between a nonlinearity and max pooling in a traced product, in the smaller order.

A nonlinearity's tangent is a product with constants, number by number; pooling takes some of the
numbers, and its transpose puts them back. So the products are done where there are fewer numbers:

    pool(c ⊙ R)                →  pool(c) ⊙ pool(R)
    c ⊙ poolᵀ(g)               →  poolᵀ(pool(c) ⊙ g)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hfcore.autograd.trace import Node, Program, aten
from hfcore.autograd.trace_rewriter import Rewriter

# Products number by number: op(R, c, …) is linear in R.
BY_NUMBER = (
    aten.threshold_backward.default, aten.tanh_backward.default, aten.sigmoid_backward.default,
)  # fmt: skip
POOL_BACK = aten.max_pool2d_with_indices_backward.default


def pool_first(program: Program) -> Program:
    rewriter = Rewriter(program)

    def is_product(value: Any) -> bool:
        return rewriter.once(value, *BY_NUMBER) and _are_alike(value)

    def visit(node: Node) -> Any:
        if node.op is aten.gather.default and isinstance(node.args[2], Tensor):
            flat = node.args[0]
            if rewriter.once(flat, aten.view.default) and is_product(flat.args[0]):
                return _gathered(rewriter, node, flat, flat.args[0])
        if node.op in BY_NUMBER and _are_alike(node) and rewriter.once(node.args[0], POOL_BACK):
            return _put_back(rewriter, node, node.args[0])
        return None

    return rewriter.run(visit)


def _are_alike(product: Node) -> bool:
    """Whether R and the constants have one shape."""
    R, c = product.args[:2]
    return isinstance(R, Node) and isinstance(c, Tensor) and R.shape == c.shape == product.shape


def _gathered(rewriter: Rewriter, node: Node, flat: Node, product: Node) -> Any:
    R, c, *rest = product.args
    _, dim, index = node.args
    viewed = rewriter.make(flat.op, (rewriter.new(R), flat.args[1]), {}, flat)
    taken = rewriter.make(node.op, (viewed, dim, index), {}, node)
    constants = c.reshape(flat.shape).gather(dim, index)
    return rewriter.make(product.op, (taken, constants, *rest), {}, node)


def _put_back(rewriter: Rewriter, node: Node, back: Node) -> Any:
    g, x, *window, index = back.args
    if not isinstance(g, Node) or not isinstance(index, Tensor) or not isinstance(x, Tensor):
        return None
    c, *rest = node.args[1:]
    constants = c.flatten(-2).gather(-1, index.flatten(-2)).view(index.shape)
    smaller = rewriter.make(node.op, (rewriter.new(g), constants, *rest), {}, g)
    return rewriter.make(back.op, (smaller, x, *window, index), {}, node)
