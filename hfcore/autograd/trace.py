"""A linear map made of autograd calls, written down once as a straight list of torch ops.

:func:`trace` runs the map once on a sample tangent and records the ops that depend on it, below
autograd; whatever depends on data and parameters alone was computed then and is a constant of the
program. Later products run the list: no forward pass, no autograd graph, no Python loop of the
model. Recording costs one product, not seconds, whatever the model's Python does; the passes of
``autograd/trace_passes.py`` then merge what a loop over time steps repeats.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten


class NotTraceable(RuntimeError):
    """The map does something that a list of ops cannot repeat; the message says what."""


@dataclass(eq=False)
class Node:
    """One op of a program, or (``op`` None) one of its inputs.

    ``args`` hold Nodes, tensors (constants), lists of these, and plain values. ``shape`` and
    ``dtype`` are those of the result; None for an op that gives several.
    """

    op: Callable[..., Any] | None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    shape: torch.Size | None = None
    dtype: torch.dtype | None = None

    def operands(self) -> Iterator[Node]:
        """The nodes this one reads, with repetition."""
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Node):
                yield value
            elif isinstance(value, (list, tuple)):
                yield from (item for item in value if isinstance(item, Node))


@dataclass
class Program:
    """Inputs, and what is returned: nodes, constants, or None for no contribution."""

    inputs: list[Node]
    outputs: list[Any]
    _order: list[Node] | None = field(default=None, init=False, repr=False)

    def order(self) -> list[Node]:
        """Every op the outputs need, after what it reads; looked for once."""
        if self._order is None:
            self._order = self._ordered()
        return self._order

    def has(self, *ops: Any) -> bool:
        """Whether each of these ops is among them."""
        return not {*ops} - {node.op for node in self.order()}

    def _ordered(self) -> list[Node]:
        done: set[int] = {id(node) for node in self.inputs}
        ordered: list[Node] = []
        stack: list[tuple[Node, bool]] = [
            (node, False) for node in reversed(self.outputs) if isinstance(node, Node)
        ]
        while stack:
            node, ready = stack.pop()
            if id(node) in done:
                continue
            if ready:
                done.add(id(node))
                ordered.append(node)
            else:
                stack.append((node, True))
                stack.extend((operand, False) for operand in reversed([*node.operands()]))
        return ordered

    def constants(self) -> list[Tensor]:
        """The tensors ``[…]`` that the ops read and no op gives, each once."""
        found: dict[int, Tensor] = {}
        values: list[Any] = [*self.outputs]
        for node in self.order():
            values += [*node.args, *node.kwargs.values()]
        while values:
            value = values.pop()
            if isinstance(value, Tensor):
                found[id(value)] = value
            elif isinstance(value, (list, tuple)):
                values.extend(value)
        return list(found.values())


def trace(
    function: Callable[[list[Tensor]], Sequence[Tensor | None]], inputs: Sequence[Tensor]
) -> Program:
    """The program of ``function`` at ``inputs``, tensors ``[…]``. Raises :class:`NotTraceable`."""
    recorder = _Recorder(inputs)
    with recorder:
        results = function(list(inputs))
    return Program(recorder.inputs, [recorder.lookup(r) for r in results])


OVERWRITTEN = object()


class _Recorder(TorchDispatchMode):
    """Writes down every op that reads a tensor computed from the inputs."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inputs = [Node(None, shape=t.shape, dtype=t.dtype) for t in inputs]
        # Weak, so that recording needs no more memory than the product itself.
        self._nodes: Any = WeakTensorKeyDictionary()
        # What the program holds, by the storage: alive, so that no address is used twice.
        self._constants: dict[int, Tensor] = {}
        for tensor, node in zip(inputs, self.inputs, strict=True):
            self._nodes[tensor] = node

    def lookup(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            node = self._nodes.get(value, value)
            if node is OVERWRITTEN:
                raise NotTraceable("an op writes into memory that is read again")
            return node
        if isinstance(value, (list, tuple)):
            return [self.lookup(item) for item in value]
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        args = tuple(map(self._filled, args))
        node = Node(
            func,
            tuple(self.lookup(a) for a in args),
            {name: self.lookup(a) for name, a in kwargs.items()},
        )
        depends = next(node.operands(), None) is not None
        if depends:
            self._note_constants(node)
            if func._schema.is_mutable:
                node = self._out_of_place(node, args)
        result = func(*args, **kwargs)
        if depends:
            self._record(node, result)
        return result

    def _filled(self, value: Any) -> Any:
        """An argument that is :func:`filled`, and what it is in the program."""
        made = filled(value)
        if made is not value and isinstance(value, Tensor) and value in self._nodes:
            self._nodes[made] = self._nodes[value]
        return made

    def _note_constants(self, node: Node) -> None:
        for value in (*node.args, *node.kwargs.values()):
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, Tensor):
                    self._constants[_storage(item)] = item

    def _out_of_place(self, node: Node, args: tuple[Any, ...]) -> Node:
        """``x.op_(…)`` as ``op(x, …)``; other recorded views of x's memory are lost."""
        func: Any = node.op
        name = func._schema.name.removeprefix("aten::")
        packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
        overload = getattr(packet, func._overloadname, None)
        where = _storage(args[0])
        if overload is None or where in self._constants:
            raise NotTraceable(f"{func} writes into its arguments")
        for other in [t for t in self._nodes if _storage(t) == where]:
            self._nodes[other] = OVERWRITTEN
        return Node(overload, node.args, node.kwargs)

    def _record(self, node: Node, result: Any) -> None:
        if isinstance(result, Tensor):
            node.shape, node.dtype = result.shape, result.dtype
            self._nodes[result] = node
        elif isinstance(result, (list, tuple)):
            for i, item in enumerate(result):
                if isinstance(item, Tensor):
                    part = Node(operator.getitem, (node, i), {}, item.shape, item.dtype)
                    self._nodes[item] = part
        else:
            raise NotTraceable(f"{node.op} reads the values of a tangent")


def filled(value: Any) -> Any:
    """An op's argument with numbers where it is one of torch's zeros ``[…]`` without any.

    Forward and double backward mode make those, and some ops (``aten.mul.Scalar`` in torch 2.13)
    end the process on them where they are called by their overloads.
    """
    if isinstance(value, Tensor):
        if not value._is_zerotensor():
            return value
        return torch.zeros(value.shape, dtype=value.dtype, device=value.device)
    if isinstance(value, list) and any(isinstance(v, Tensor) and v._is_zerotensor() for v in value):
        return [filled(v) for v in value]
    return value


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
