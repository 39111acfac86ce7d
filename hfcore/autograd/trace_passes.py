"""What makes a traced product fast: one large matrix product where a loop over time made many.

A model that loops in Python over T steps uses each weight T times, so its traced product holds T
products with the same tangent matrix, sums of T small weight gradients and T gradients scattered
into zeros. The passes are algebra on sums and products of matrices and change rounding only:

    x_t V                for all t     →  [x_1; x_2; …] V, cut into its rows
    Σ_t A_t B_t                        →  [A_1, A_2, …] [B_1; B_2; …]
    Σ_t sum of the rows of g_t         →  sum of the rows of [g_1; g_2; …]
    Σ_t g_t placed at step t of zeros  →  the stack of the g_t
    A B + c                            →  addmm

Those for convolutional nets are in ``trace_convolutions.py`` and ``trace_pooling.py``.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from hfcore.autograd.trace import Node, Program, aten
from hfcore.autograd.trace_convolutions import by_patches
from hfcore.autograd.trace_copies import smaller_copies
from hfcore.autograd.trace_fusion import fuse_passes, sum_below_views
from hfcore.autograd.trace_norms import norms_by_backward
from hfcore.autograd.trace_pooling import pool_first
from hfcore.autograd.trace_rewriter import Rewriter, shape_of

# From this many products on a sum of them is one product of concatenated factors. Two would copy
# as much as they save.
MERGE_FROM = 3


def optimise(program: Program) -> Program:
    """The same linear map with fewer and larger ops."""
    program = simple = Rewriter(program).simplified()
    for merge in (pool_first, by_patches, _batch_products, sum_below_views, _merge_sums):
        program = merge(program)
    if program is not simple:
        program = Rewriter(program).simplified()
    for fuse in (_fuse_addmm, norms_by_backward, fuse_passes, smaller_copies):
        program = fuse(program)
    return program


def _batch_products(program: Program) -> Program:
    """x_t V for constants x_t and one V: a single product, cut into rows."""
    groups: dict[tuple[int, torch.Size], list[Node]] = {}
    for node in program.order():
        if node.op is aten.mm.default and isinstance(node.args[0], Tensor):
            groups.setdefault((id(node.args[1]), node.args[0].shape), []).append(node)
    group_of = {
        id(node): members
        for members in groups.values()
        if len(members) >= MERGE_FROM
        for node in members
    }
    rewriter = Rewriter(program)
    splits: dict[int, Node] = {}

    def visit(node: Node) -> Any:
        members = group_of.get(id(node))
        if members is None:
            return None
        first = id(members[0])
        if first not in splits:
            splits[first] = _one_product(members, rewriter.new(node.args[1]))
        index = next(i for i, member in enumerate(members) if member is node)
        return Node(operator.getitem, (splits[first], index), {}, node.shape, node.dtype)

    return rewriter.run(visit)


def _one_product(members: list[Node], right: Any) -> Node:
    """The products ``x_t right`` of all members as one, split into theirs."""
    rows, columns = shape_of(members[0])
    left = torch.cat([member.args[0] for member in members])
    shape = torch.Size((len(left), columns))
    product = Node(aten.mm.default, (left, right), {}, shape, members[0].dtype)
    return Node(aten.split.Tensor, (product, rows))


def _is_sum(node: object) -> bool:
    """a + b of equal shapes, without a factor."""
    if not (isinstance(node, Node) and node.op is aten.add.Tensor and not node.kwargs):
        return False
    return all(isinstance(a, (Node, Tensor)) and a.shape == node.shape for a in node.args)


def _merge_sums(program: Program) -> Program:
    """Trees of additions as one sum over their leaves, alike leaves merged."""
    rewriter = Rewriter(program)
    inner = {
        id(a)
        for node in program.order()
        if _is_sum(node)
        for a in node.args
        if _is_sum(a) and rewriter.once(a, aten.add.Tensor)
    }

    def visit(node: Node) -> Any:
        if id(node) in inner or not _is_sum(node):
            return None
        leaves = [rewriter.new(leaf) for leaf in _leaves(node, inner)]
        total = _Sum(rewriter, node)
        terms = total.terms(leaves)
        return None if len(terms) == len(leaves) else total.of(terms)

    return rewriter.run(visit)


def _leaves(root: Node, inner: set[int]) -> list[Any]:
    """What a tree of additions adds, from left to right."""
    leaves, stack = [], [*reversed(root.args)]
    while stack:
        value = stack.pop()
        if isinstance(value, Node) and id(value) in inner:
            stack.extend(reversed(value.args))
        else:
            leaves.append(value)
    return leaves


class _Sum:
    """One sum of many leaves, of the shape of ``like``."""

    def __init__(self, rewriter: Rewriter, like: Node) -> None:
        self._rewriter = rewriter
        self._like = like

    def terms(self, leaves: list[Any]) -> list[Any]:
        """What is left to add; as many as the leaves where none were merged."""
        merged = [self._merge(kind, group) for kind, group in self._groups(leaves).items()]
        return [term for group in merged for term in group]

    def of(self, terms: list[Any]) -> Any:
        total = terms[0]
        for term in terms[1:]:
            total = Node(aten.add.Tensor, (total, term), {}, self._like.shape, self._like.dtype)
        return total

    def _groups(self, leaves: list[Any]) -> dict[Any, list[Any]]:
        """Leaves that can be merged with each other share a key."""
        groups: dict[Any, list[Any]] = {}
        for leaf in leaves:
            groups.setdefault(_mergekey_of(leaf), []).append(leaf)
        return groups

    def _merge(self, key: Any, leaves: list[Any]) -> list[Any]:
        """The terms that ``leaves`` of one key come to."""
        kind = key[0]
        if kind == "scatter" and len({leaf.args[3] for leaf in leaves}) == len(leaves) > 1:
            return [self._stack(leaves)]
        if len(leaves) < MERGE_FROM or kind in ("other", "scatter"):
            return leaves
        if kind == "view":
            inner = leaves[0].args[0]
            total = _Sum(self._rewriter, inner)
            whole = total.of(total.terms([leaf.args[0] for leaf in leaves]))
            return [self._node(aten.view.default, whole, leaves[0].args[1])]
        if kind == "rows":
            whole = self._cat([leaf.args[0] for leaf in leaves], 0)
            return [self._node(aten.sum.dim_IntList, whole, *leaves[0].args[1:])]
        left = self._cat([leaf.args[0] for leaf in leaves], 1)
        right = self._cat([leaf.args[1] for leaf in leaves], 0)
        return [self._node(aten.mm.default, left, right)]

    def _node(self, op: Any, *args: Any) -> Any:
        return self._rewriter.make(op, args, {}, self._like)

    def _cat(self, parts: list[Any], dim: int) -> Any:
        """Concatenated; transposed matrices side by side are the transpose of them stacked."""
        if dim == 1 and all(isinstance(p, Node) and p.op is aten.t.default for p in parts):
            return self._rewriter.transpose(self._cat([p.args[0] for p in parts], 0))
        shape = list(parts[0].shape)
        shape[dim] = sum(part.shape[dim] for part in parts)
        like = Node(None, (), {}, torch.Size(shape), self._like.dtype)
        return self._rewriter.make(aten.cat.default, (parts, dim), {}, like)

    def _stack(self, leaves: list[Node]) -> Any:
        """Σ of slices scattered into zeros: the stack of the slices, zeros where there is none."""
        _, sizes, dim, _ = leaves[0].args
        slices = {leaf.args[3] % sizes[dim]: leaf.args[0] for leaf in leaves}
        some = next(iter(slices.values()))
        zero = None
        if len(slices) < sizes[dim]:
            zero = self._rewriter.make(aten.zeros_like.default, (some,), {}, some)
        placed = [slices.get(i, zero) for i in range(sizes[dim])]
        return self._node(aten.stack.default, placed, dim)


def _mergekey_of(leaf: Any) -> Any:
    if isinstance(leaf, Node) and not leaf.kwargs:
        first = leaf.args[0] if leaf.args else None
        if leaf.op is aten.mm.default:
            return ("product",)
        if leaf.op is aten.select_backward.default:
            return ("scatter", tuple(leaf.args[1]), leaf.args[2])
        if leaf.op is aten.view.default and isinstance(first, Node) and first.shape is not None:
            inner = _mergekey_of(first)
            if inner[0] != "other":
                return ("view", first.shape, inner)
        if leaf.op is aten.sum.dim_IntList and isinstance(first, Node) and first.shape is not None:
            rows_only = len(first.shape) == 2 and list(leaf.args[1]) == [0]
            if rows_only:
                return ("rows", first.shape[1], tuple(leaf.args[2:]))
    return ("other",)


def _fuse_addmm(program: Program) -> Program:
    """A B + c where the product is read once."""
    rewriter = Rewriter(program)

    def visit(node: Node) -> Any:
        if _is_sum(node):
            for product, other in (node.args, reversed(node.args)):
                if rewriter.once(product, aten.mm.default):
                    args = (rewriter.new(other), *(rewriter.new(a) for a in product.args))
                    return Node(aten.addmm.default, args, {}, node.shape, node.dtype)
        return None

    return rewriter.run(visit)
