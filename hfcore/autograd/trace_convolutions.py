"""Convolutions with a constant input in a traced product: matrix products with its patches.

The tangent of a kernel meets the layer's input, which no product changes, and so does the gradient
of the kernel. With the patches of that input at hand, ``[B,cᵢ·kh·kw,P]`` at the P positions of the
output, both are one matrix product each:

    conv(x, V)                 →  V [c,cᵢ·kh·kw] · patches
    gradient of the kernel     →  Σ_b g_b [c,P] · patchesᵀ

A row of ones beneath the patches takes the bias along. Where max pooling follows with few channels,
the patches are those of the positions that it takes, ``[c,cᵢ·kh·kw,B·P']``, one row of V for each:

    pool(conv(x, V))           →  V_c · patches_c                   for every channel c
    kernel's part of poolᵀ(g)  →  g_c · patches_cᵀ
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hfcore.autograd.trace import Node, Program, aten
from hfcore.autograd.trace_rewriter import Rewriter, shape_of

# Bytes of the patches of one layer: above, reading them costs more than the library's convolution.
PATCH_BYTES = 6 << 20
# With fewer input channels the library fills a part of its vectors alone, and more bytes pay.
FEW_CHANNELS, FEW_CHANNELS_BYTES = 4, 64 << 20
# Patches at the positions that pooling takes pay up to this many times those of all positions.
POOLED = 2

Window = tuple[Any, ...]  # stride, padding and dilation


def by_patches(program: Program) -> Program:
    """The same product with the convolutions of constants done by patches, on the CPU."""
    return _Convolutions(program).run()


class _Patches:
    """Patches of constants, each made once."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Tensor, Tensor]] = {}
        self._pooled: dict[Any, tuple[Tensor, Tensor]] = {}

    def of(self, x: Any, kernel: tuple[int, ...], window: Window) -> tuple[Tensor, Tensor] | None:
        """``[B,cᵢ·kh·kw+1,P]`` of ``x [B,cᵢ,h,w]``, ones in the last row, which biases meet; and
        its transpose, always the same one.

        None for what is no constant, or too large.
        """
        if not isinstance(x, Tensor) or x.ndim != 4 or x.device.type != "cpu":
            return None
        stride, padding, dilation = window
        positions = 1
        for i, size in enumerate(x.shape[2:]):
            reach = dilation[i] * (kernel[i] - 1) + 1
            positions *= (size + 2 * padding[i] - reach) // stride[i] + 1
        count = len(x) * x.shape[1] * kernel[0] * kernel[1] * positions * x.element_size()
        if count > (FEW_CHANNELS_BYTES if x.shape[1] <= FEW_CHANNELS else PATCH_BYTES):
            return None
        key = id(x), kernel, tuple(map(tuple, window))
        if key not in self._made:
            with torch.no_grad():
                options = {"dilation": dilation, "padding": padding, "stride": stride}
                U = F.unfold(x, kernel, **options)
                U = torch.cat([U, torch.ones_like(U[:, :1])], 1)
                self._made[key] = U, U.mT
        return self._made[key]

    def pooled(self, U: Tensor, index: Any) -> tuple[Tensor, Tensor] | None:
        """The patches ``U [B,K,P]`` where ``index [B,c,…]`` points, ``[c,K,B·P']``, and transposed.

        None for what is no constant, or where they are too large.
        """
        if not isinstance(index, Tensor) or not index.is_contiguous() or len(index) != len(U):
            return None
        flat = index.flatten(2)
        if flat[0].numel() > POOLED * U.shape[2]:
            return None
        key = id(U), index.data_ptr(), flat.shape  # the same indices as two tensors
        if key not in self._pooled:
            rows = [
                U.gather(2, at.unsqueeze(1).expand(-1, U.shape[1], -1)).transpose(0, 1).flatten(1)
                for at in flat.unbind(1)
            ]
            taken = torch.stack(rows)
            self._pooled[key] = taken, taken.mT
        return self._pooled[key]


class _Convolutions:
    def __init__(self, program: Program) -> None:
        self._rewriter, self._patches = Rewriter(program), _Patches()

    def run(self) -> Program:
        return self._rewriter.run(self._visit)

    def _visit(self, node: Node) -> Any:
        if node.op is aten.convolution.default:
            return self._forward(node)
        if node.op is aten.add.Tensor and not node.kwargs:
            return self._with_bias(node)
        if node.op is aten.gather.default:
            return self._pooled(node)
        if node.op is operator.getitem and _is(node.args[0], aten.convolution_backward.default):
            return self._backward(node)
        return None

    def _with_bias(self, node: Node) -> Any:
        """conv(x, V) + b, or conv(R, W) + conv(x, V) + b, b the same at every position."""
        terms, bias = node.args
        b = _bias(bias, node)
        if b is None:
            return None
        if self._rewriter.once(terms, aten.convolution.default):
            return self._forward(terms, b)
        if not self._rewriter.once(terms, aten.add.Tensor) or terms.kwargs:
            return None
        for one, other in (terms.args, terms.args[::-1]):
            if self._rewriter.once(one, aten.convolution.default):
                sum_of_both = self._forward(one, b, other)
                if sum_of_both is not None:
                    return sum_of_both
        return None

    def _forward(self, node: Node, bias: Node | None = None, added: Any = None) -> Any:
        """V·patches, + b and + ``added``."""
        U = self._patches_of(node)
        if U is None:
            return None
        rows, new = self._rows(node, bias), self._rewriter.new
        U, c = U[:, : rows.shape[1]], rows.shape[0]
        shape = (U.shape[0], c, U.shape[2])
        if added is None:
            product = self._made(aten.matmul.default, rows, U, shape=shape, like=node)
        else:
            flat = self._made(aten.reshape.default, new(added), list(shape), shape=shape, like=node)
            many = (shape[0], *shape_of(rows))
            each = self._made(aten.expand.default, rows, list(many), shape=many, like=node)
            product = self._made(aten.baddbmm.default, flat, each, U, shape=shape, like=node)
        wanted = shape_of(node)
        return self._made(aten.view.default, product, list(wanted), shape=wanted, like=node)

    def _patches_of(self, node: Node) -> Tensor | None:
        """Those ``[B,cᵢ·kh·kw+1,P]`` that the kernel V of conv(x, V) meets; None: none are made."""
        x, V, own_bias, stride, padding, dilation, transposed, _, groups = node.args
        if not isinstance(V, Node) or own_bias is not None or transposed or groups != 1:
            return None
        made = self._patches.of(x, tuple(shape_of(V)[2:]), (stride, padding, dilation))
        return None if made is None else made[0]

    def _rows(self, node: Node, bias: Node | None) -> Any:
        """V ``[c,cᵢ·kh·kw]`` of conv(x, V), with b as a last column."""
        V, new = node.args[1], self._rewriter.new
        c, K = shape_of(V)[0], shape_of(V)[1:].numel()
        rows = self._made(aten.reshape.default, new(V), [c, K], shape=(c, K), like=node)
        if bias is None:
            return rows
        column = self._made(aten.view.default, new(bias), [c, 1], shape=(c, 1), like=node)
        return self._made(aten.cat.default, [rows, column], 1, shape=(c, K + 1), like=node)

    def _pooled(self, node: Node) -> Any:
        """What max pooling takes ``[B,c,P']`` out of conv(x, V) + b."""
        flat, _, index = node.args
        if not self._rewriter.once(flat, aten.view.default) or len(shape_of(node)) != 3:
            return None
        conv, bias = flat.args[0], None
        if self._rewriter.once(conv, aten.add.Tensor) and not conv.kwargs:
            bias = _bias(conv.args[1], conv)
            conv = conv.args[0] if bias is not None else None
        if not self._rewriter.once(conv, aten.convolution.default):
            return None
        U = self._patches_of(conv)
        made = None if U is None else self._patches.pooled(U, index)
        if made is None:
            return None
        rows, (B, c, P) = self._rows(conv, bias), shape_of(node)
        K = rows.shape[1]
        each = self._made(aten.view.default, rows, [c, 1, K], shape=(c, 1, K), like=node)
        taken = made[0] if made[0].shape[1] == K else made[0][:, :K]
        products = self._made(aten.bmm.default, each, taken, shape=(c, 1, B * P), like=node)
        apart = self._made(aten.view.default, products, [c, B, P], shape=(c, B, P), like=node)
        return self._swapped(apart, (B, c, P), node)

    def _swapped(self, value: Any, shape: tuple[int, ...], like: Node) -> Any:
        """A copy with its first two axes exchanged, of this ``shape``."""
        turned = self._made(aten.transpose.int, value, 0, 1, shape=shape, like=like)
        plain = {"memory_format": torch.contiguous_format}
        size = Node(None, (), {}, torch.Size(shape), like.dtype)
        return self._rewriter.make(aten.clone.default, (turned,), plain, size)

    def _pooled_sums(self, g: Node, U: Tensor, like: Node) -> Any:
        """Σ over cases of g [c,P] · patchesᵀ ``[c,K]`` for g = poolᵀ(R), from R; or None."""
        if g.op is not aten.max_pool2d_with_indices_backward.default:
            return None
        R, index = g.args[0], g.args[-1]
        made = self._patches.pooled(U, index) if isinstance(R, Node) else None
        if made is None:
            return None
        (B, c), P, K = shape_of(R)[:2], shape_of(R)[2:].numel(), U.shape[1]
        back, shape = self._rewriter.new(R), (B, c, P)
        flat = self._made(aten.reshape.default, back, list(shape), shape=shape, like=like)
        apart = self._swapped(flat, (c, B, P), like)
        one = (c, 1, B * P)
        rows = self._made(aten.view.default, apart, list(one), shape=one, like=like)
        sums = self._made(aten.bmm.default, rows, made[1], shape=(c, 1, K), like=like)
        return self._made(aten.view.default, sums, [c, K], shape=(c, K), like=like)

    def _backward(self, node: Node) -> Any:
        """One of the three results of a convolution's backward pass."""
        whole, which = node.args
        g, x, W, biases, *window, transposed, output_padding, groups, _ = whole.args
        if not isinstance(g, Node) or not isinstance(W, Tensor) or transposed or groups != 1:
            return None
        made = self._patches.of(x, tuple(W.shape[2:]), tuple(window))
        if made is None:
            return None
        U, transposed_U = made
        back, new_shape = self._rewriter.new(g), node.shape
        if which == 0:  # the others are not wanted of it any more
            masks = [True, False, False]
            call = (back, x, W, biases, *window, False, output_padding, groups, masks)
            op = aten.convolution_backward.default
            only = self._rewriter.make(op, call, {}, Node(None, dtype=node.dtype))
            return self._made(operator.getitem, only, 0, shape=new_shape, like=node)
        c, K = shape_of(g)[1], U.shape[1] - 1
        total = self._pooled_sums(g, U, node) or self._sums(g, U, transposed_U, node)
        if which == 2:
            return self._made(aten.select.int, total, 1, K, shape=(c,), like=node)
        kernel = self._made(aten.slice.Tensor, total, 1, 0, K, shape=(c, K), like=node)
        wanted = shape_of(node)
        return self._made(aten.reshape.default, kernel, list(wanted), shape=wanted, like=node)

    def _sums(self, g: Node, U: Tensor, transposed_U: Tensor, node: Node) -> Any:
        """Σ over cases of g [c,P] · patchesᵀ ``[c,K]``."""
        (B, c), back = shape_of(g)[:2], self._rewriter.new(g)
        shape, each = (B, c, U.shape[2]), (B, c, U.shape[1])
        rows = self._made(aten.reshape.default, back, list(shape), shape=shape, like=node)
        products = self._made(aten.bmm.default, rows, transposed_U, shape=each, like=node)
        return self._made(aten.sum.dim_IntList, products, [0], shape=each[1:], like=node)

    def _made(self, op: Any, *args: Any, shape: Any, like: Node) -> Any:
        size = None if shape is None else torch.Size(shape)
        return self._rewriter.make(op, args, {}, Node(None, (), {}, size, like.dtype))


def _is(value: Any, op: Any) -> bool:
    return isinstance(value, Node) and value.op is op


def _bias(value: Any, like: Node) -> Node | None:
    """b of b ``[c]``, viewed ``[1,c,1,1]`` and expanded."""
    if not _is(value, aten.expand.default) or value.shape != like.shape:
        return None
    (viewed, *_) = value.args
    if not _is(viewed, aten.view.default) or len(shape_of(like)) != 4:
        return None
    b = viewed.args[0]
    c = shape_of(like)[1]
    fits = isinstance(b, Node) and b.shape == (c,) and viewed.shape == (1, c, 1, 1)
    return b if fits else None
