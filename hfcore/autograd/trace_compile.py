"""A recorded product as one Python function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hfcore.autograd.trace import Node, Program, aten
from hfcore.autograd.trace_reuse import Reuse

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
    aten.view.default: Tensor.view,
    aten._unsafe_view.default: Tensor.view,
    aten.expand.default: Tensor.expand,
    aten.permute.default: torch.permute,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.squeeze.dim: torch.squeeze,
    aten._softmax_backward_data.default: torch._softmax_backward_data,
}


def compile_program(
    program: Program, *, reuse: bool = True
) -> Callable[..., tuple[Tensor | None, ...]]:
    """The program as one Python function of its inputs; a value is dropped after its last use.

    ``reuse``: results may be written over values that nobody reads after, which vmap cannot.
    """
    order = program.order()
    written = Reuse(program, order) if reuse else None
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

    lines = [f"def product({', '.join(names[id(node)] for node in program.inputs)}):"]
    for node in order:
        op = node.op if written is None else written.op(node)
        called = bind("f", BINDINGS.get(op, op))
        arguments = [text(a) for a in node.args]
        arguments += [f"{name}={text(a)}" for name, a in node.kwargs.items()]
        lines.append(f"    {names[id(node)]} = {called}({', '.join(arguments)})")
        if id(node) in ending:
            lines.append(f"    del {', '.join(ending[id(node)])}")
    lines.append(f"    return ({''.join(text(value) + ', ' for value in program.outputs)})")
    exec("\n".join(lines), scope)
    product: Callable[..., tuple[Tensor | None, ...]] = scope["product"]
    return product
