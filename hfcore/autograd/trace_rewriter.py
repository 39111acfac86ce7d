"""Rebuilds a recorded product node by node; what its passes share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hfcore.autograd.trace import Node, Program, aten

RESHAPES = (aten.view.default, aten._unsafe_view.default)


class Rewriter:
    """Rebuilds a program bottom-up: ``mapped`` holds what each old node has become."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.mapped: dict[int, Any] = {id(node): node for node in program.inputs}
        self._made: dict[Any, Any] = {}
        self._constants: list[Tensor] = []  # keeps ids in keys unique

    def new(self, value: Any) -> Any:
        """``value`` with old nodes replaced."""
        if isinstance(value, Node):
            return self.mapped[id(value)]
        if isinstance(value, (list, tuple)):
            return [self.new(item) for item in value]
        return value

    def make(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: Node) -> Any:
        """A node, simplified; equal ones are made once, and one without nodes is a constant."""
        key = (op, key_of(args), key_of(tuple(kwargs.items())))
        if key not in self._made:
            self._made[key] = self._make(op, args, kwargs, like)
            self._constants.append(self._made[key])
            self._constants.extend(a for a in args if isinstance(a, Tensor))
        return self._made[key]

    def _make(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: Node) -> Any:
        node = Node(op, args, kwargs, like.shape, like.dtype)
        if next(node.operands(), None) is None:
            with torch.no_grad():
                return op(*args, **kwargs)
        first = args[0]
        if op in (aten.detach.default, aten.alias.default):
            return first
        same_shape = isinstance(first, (Node, Tensor)) and first.shape == like.shape
        if op in (*RESHAPES, aten.expand.default) and same_shape:
            return first
        if op in RESHAPES and isinstance(first, Node) and first.op in RESHAPES:
            return self.make(aten.view.default, (first.args[0], *args[1:]), {}, like)
        if op is aten.t.default and isinstance(first, Node):
            if first.op is aten.t.default:
                return first.args[0]
            if first.op is aten.mm.default:
                left, right = (self.transpose(a) for a in first.args)
                return self.make(aten.mm.default, (right, left), {}, like)
        return node

    def transpose(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.t()
        shape = torch.Size(reversed(value.shape))
        return self.make(aten.t.default, (value,), {}, Node(None, (), {}, shape, value.dtype))

    @cached_property
    def _uses(self) -> Counter[int]:
        """How often each node is read, by others or as an output."""
        nodes = self.program.order()
        uses = Counter(id(operand) for node in nodes for operand in node.operands())
        uses.update(id(value) for value in self.program.outputs)
        return uses

    def once(self, value: Any, *ops: Any) -> bool:
        """Whether an old value is that of one of these ops, and read once."""
        return isinstance(value, Node) and value.op in ops and self._uses[id(value)] == 1

    def run(self, visit: Callable[[Node], Any]) -> Program:
        """``visit`` gives what an old node becomes; None: it stays, over what its operands became.

        The program itself where nothing changes.
        """
        for node in self.program.order():
            found = visit(node)
            if found is None:
                found = node if self._stays(node) else self._copy(node)
            self.mapped[id(node)] = found
        return self._result()

    def simplified(self) -> Program:
        """Every node made anew: views of views undone, equal ops made once, constants computed."""
        for node in self.program.order():
            self.mapped[id(node)] = self._copy(node)
        return self._result()

    def _result(self) -> Program:
        outputs = [self.new(value) for value in self.program.outputs]
        changed = any(a is not b for a, b in zip(outputs, self.program.outputs, strict=True))
        return Program(self.program.inputs, outputs) if changed else self.program

    def _stays(self, node: Node) -> bool:
        return all(self.mapped[id(operand)] is operand for operand in node.operands())

    def _copy(self, node: Node) -> Any:
        kwargs = {name: self.new(value) for name, value in node.kwargs.items()}
        return self.make(node.op, tuple(self.new(a) for a in node.args), kwargs, node)


def shape_of(node: Node) -> torch.Size:
    """That of a node which gives one array."""
    assert node.shape is not None
    return node.shape


def key_of(value: Any) -> Any:
    if isinstance(value, (Node, Tensor)):
        return id(value)
    if isinstance(value, (list, tuple)):
        return tuple(key_of(item) for item in value)
    return (type(value).__name__, repr(value))
