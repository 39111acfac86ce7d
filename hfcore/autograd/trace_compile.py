"""A recorded product as one Python function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any, Protocol

import torch
from torch import Tensor

from hfcore.autograd.trace import Node, Program, aten
from hfcore.autograd.trace_reuse import Reuse
from hfcore.autograd.trace_rewriter import RESHAPES, shape_of
from hfcore.flat_memory import copied_if_odd


def _as_complex(t: Tensor) -> Tensor:
    return torch.view_as_complex(copied_if_odd(t))


# The same op through torch's own binding, which is called faster than the dispatcher's.
BINDINGS: dict[Any, Callable[..., Any]] = {
    aten.mm.default: torch.mm,
    aten.addmm.default: torch.addmm,
    aten.bmm.default: torch.bmm,
    aten.t.default: torch.t,
    aten.add.Tensor: torch.add,
    aten.mul.Tensor: torch.mul,
    aten.select.int: torch.select,
    aten.cat.default: torch.cat,
    aten.stack.default: torch.stack,
    aten.baddbmm.default: torch.baddbmm,
    aten.addcmul.default: torch.addcmul,
    aten.sub.Tensor: torch.sub,
    aten.div.Tensor: torch.div,
    aten.neg.default: torch.neg,
    aten.sum.dim_IntList: torch.sum,
    aten.gather.default: torch.gather,
    aten.clone.default: torch.clone,
    # What was written over another value lies as that did, and may have no such view.
    aten.view.default: torch.reshape,
    aten._unsafe_view.default: torch.reshape,
    aten.expand.default: Tensor.expand,
    aten.permute.default: torch.permute,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.squeeze.dim: torch.squeeze,
    aten._softmax_backward_data.default: torch._softmax_backward_data,
    aten.view_as_complex.default: _as_complex,
}

# Those that write a gradient where it is asked for.
GRADIENTS = (
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
    aten.sum.dim_IntList,
)  # fmt: skip


class Compiled(Protocol):
    """A program as a function of its inputs."""

    def __call__(
        self, *inputs: Tensor, into: Sequence[Tensor] | None = None
    ) -> tuple[Tensor | None, ...]:
        """The outputs ``[…]``; some are in ``into``, contiguous memory of the inputs' shapes."""


def compile_program(program: Program, *, reuse: bool = True) -> Compiled:
    """The program as one Python function of its inputs; a value is dropped after its last use.

    ``reuse``: results may be written over values that nobody reads after, and into memory that is
    given, neither of which vmap can.
    """
    order = program.order()
    written = Reuse(program, order) if reuse else None
    given = _gradients(program) if reuse else {}
    scope: dict[str, Any] = {}
    names = {id(node): f"i{i}" for i, node in enumerate(program.inputs)}
    names |= {id(node): f"x{i}" for i, node in enumerate(order)}
    last = {id(operand): node for node in order for operand in node.operands()}
    kept = {id(value) for value in program.outputs}
    ending: dict[int, list[str]] = {}
    for operand, node in last.items():
        if operand not in kept:
            ending.setdefault(id(node), []).append(names[operand])

    def bind(prefix: str, value: Any) -> str:
        name = bound.get(id(value))
        if name is None:
            name = bound[id(value)] = f"{prefix}{len(scope)}"
            scope[name] = value
        return name

    bound: dict[int, str] = {}

    def text(value: Any) -> str:
        if isinstance(value, Node):
            return names[id(value)]
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(map(text, value)) + "]"
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        return bind("c", value)

    lines = [f"def product({', '.join(names[id(node)] for node in program.inputs)}, *, into=None):"]
    for node in order:
        place = given.get(id(node))
        op = node.op if written is None or place is not None else written.op(node)
        called = bind("f", BINDINGS.get(op, op))
        arguments = [text(a) for a in node.args]
        arguments += [f"{name}={text(a)}" for name, a in node.kwargs.items()]
        if place is not None:
            same = shape_of(node) == program.inputs[place].shape
            part = f"into[{place}]" + ("" if same else f".view({list(shape_of(node))})")
            arguments.append(f"out=None if into is None else {part}")
        lines.append(f"    {names[id(node)]} = {called}({', '.join(arguments)})")
        if id(node) in ending:
            lines.append(f"    del {', '.join(ending[id(node)])}")
    lines.append(f"    return ({''.join(text(value) + ', ' for value in program.outputs)})")
    exec(_code("\n".join(lines)), scope)
    product: Compiled = scope["product"]
    return product


@lru_cache(maxsize=32)
def _code(source: str) -> CodeType:
    """Compiled once: the programs of an optimiser's steps are alike but for their constants."""
    return compile(source, "<product>", "exec")


def _gradients(program: Program) -> dict[int, int]:
    """Which output an op may write where it is asked for, reshaped or not: those read once."""
    nodes = program.order()
    uses = Counter(id(operand) for node in nodes for operand in node.operands())
    uses.update(id(value) for value in program.outputs)
    found = {}
    for place, (value, like) in enumerate(zip(program.outputs, program.inputs, strict=False)):
        node = value
        while isinstance(node, Node) and node.op in RESHAPES and uses[id(node)] == 1:
            node = node.args[0]
        if not isinstance(node, Node) or node.op not in GRADIENTS or uses[id(node)] != 1:
            continue
        if (value.shape, node.dtype) == (like.shape, like.dtype):
            found[id(node)] = place
    return found
