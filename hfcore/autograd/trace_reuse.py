"""Which ops of a recorded product may write their result over an operand that nobody reads after.

A value that no input and no constant shares memory with, and whose last reader is the op, gives its
memory to the result. Views of a value are readers of it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hfcore.autograd.trace import Node, Program, aten

# Ops of element by element, the operands whose memory the result may take, and how it is written.
Written = Callable[..., Any]


def _through_out(op: Any, name: str) -> Callable[[int], Written]:
    """An op with a keyword for where it writes."""

    def at(i: int) -> Written:
        return lambda *args, **kwargs: op(*args, **kwargs, **{name: args[i]})

    return at


def _method(method: Any) -> Callable[[int], Written]:
    """A method that overwrites; of two operands either one, which may be exchanged."""

    def at(i: int) -> Written:
        if i == 0:
            return method  # type: ignore[no-any-return]
        return lambda a, b, **kwargs: method(b, a, **kwargs)

    return at


IN_PLACE: dict[Any, tuple[Sequence[int], Callable[[int], Written]]] = {
    aten.mul.Tensor: ((0, 1), _method(Tensor.mul_)),
    aten.add.Tensor: ((0,), _method(Tensor.add_)),
    aten.sub.Tensor: ((0,), _method(Tensor.sub_)),
    aten.div.Tensor: ((0,), _method(Tensor.div_)),
    aten.neg.default: ((0,), _method(Tensor.neg_)),
    aten.addcmul.default: ((0,), _method(Tensor.addcmul_)),
    aten.addmm.default: ((0,), _method(Tensor.addmm_)),
    aten.baddbmm.default: ((0,), _method(Tensor.baddbmm_)),
    aten.threshold_backward.default: (
        (0,), _through_out(aten.threshold_backward.grad_input, "grad_input"),
    ),
    aten.tanh_backward.default: ((0,), _through_out(aten.tanh_backward.grad_input, "grad_input")),
    aten.sigmoid_backward.default: (
        (0,), _through_out(aten.sigmoid_backward.grad_input, "grad_input"),
    ),
}  # fmt: skip

# Ops that give a view without saying so.
VIEWS = (
    aten._unsafe_view.default, aten._reshape_alias.default, aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
)  # fmt: skip
# Views that show no number twice.
ONE_TO_ONE = (
    aten.view.default, aten._unsafe_view.default, aten.t.default, aten.transpose.int,
    aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim, aten.select.int,
    aten.slice.Tensor, aten.reshape.default, aten.split.Tensor, aten.split_with_sizes.default,
    aten.unbind.int, aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default,
)  # fmt: skip


class Reuse:
    """Where the ops of a program, in their ``order``, may write."""

    def __init__(self, program: Program, order: Sequence[Node]) -> None:
        self._fresh: set[int] = set()
        # The values whose memory each may share, and the last op that reads any of it.
        self._roots: dict[int, set[int]] = {id(node): {id(node)} for node in program.inputs}
        self._last: dict[int, int] = {}
        for place, node in enumerate(order):
            self._read(place, node)
        for value in program.outputs:
            if isinstance(value, Node):
                self._last |= dict.fromkeys(self._roots[id(value)], len(order))
        self._ops = {id(node): self._op(place, node) for place, node in enumerate(order)}

    def op(self, node: Node) -> Any:
        """The op that gives a node, which may write over one of its operands."""
        return self._ops[id(node)]

    def _read(self, place: int, node: Node) -> None:
        roots = {id(node)}
        for operand in node.operands():
            above = self._roots[id(operand)]
            self._last |= dict.fromkeys(above, place)
            if not _is_fresh(node, operand):
                roots |= above
        if len(roots) == 1:
            self._fresh.add(id(node))
        elif node.op is operator.getitem or _is_view(node.op):
            roots.discard(id(node))  # no memory of its own
        self._roots[id(node)] = roots
        self._last |= dict.fromkeys(roots - {id(node)}, place)

    def _op(self, place: int, node: Node) -> Any:
        served = IN_PLACE.get(node.op)
        if served is None or node.shape is None:
            return node.op
        takes, written = served
        for i in takes:
            if self._may_take(place, node, i):
                return written(i)
        return node.op

    def _may_take(self, place: int, node: Node, i: int) -> bool:
        operand = node.args[i]
        if not isinstance(operand, Node) or operand.shape != node.shape:
            return False
        roots = self._roots[id(operand)]
        if len(roots) != 1 or operand.dtype != node.dtype:
            return False
        (root,) = roots
        if root not in self._fresh or self._last[root] != place or not _shows_once(operand):
            return False
        others = (a for j, a in enumerate(node.args) if j != i and isinstance(a, Node))
        return all(root not in self._roots[id(other)] for other in others)


def _is_fresh(node: Node, operand: Node) -> bool:
    """Whether the result has no memory of this operand."""
    if node.op is operator.getitem:  # one of several results
        return not _is_view(operand.op)
    return isinstance(node.op, torch._ops.OpOverload) and not _is_view(node.op)


def _is_view(op: Any) -> bool:
    if op in VIEWS:
        return True
    returns = op._schema.returns if isinstance(op, torch._ops.OpOverload) else ()
    return any(r.alias_info is not None for r in returns)


def _shows_once(node: Node) -> bool:
    """Whether a value shows no number of its memory twice."""
    while node.op is operator.getitem or _is_view(node.op):
        if node.op is not operator.getitem and node.op not in ONE_TO_ONE:
            return False
        (node,) = set(node.operands())
    return True
