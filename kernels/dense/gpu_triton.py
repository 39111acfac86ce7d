"""Dense ops in Triton. Formulas and shapes: ``reference.py``; signatures too.

A program makes one tile of the result, over all of the product's depth: ``dense_rforward`` runs
through a·Vᵀ, then through Ra·Wᵀ into the same sums, and every activation and φ' is applied before
the tile is stored, so each array passes once. Every launch is on the current stream of the current
device.

Model (flop bound from some hundred units on, float32 bytes beside it for B cases):

==============  ==========  =======================================
op              flops       bytes
==============  ==========  =======================================
dense_forward   2 B n m     4 (B n + n m + B m)
dense_rforward  4 B n m     4 (2 B n + 2 n m + 2 B m)
dense_backward  2 B n m     4 (B m + n m + 2 B n), 4 B n for ``add``
dense_gradient  2 B n m     4 (B m + B n + n m)
==============  ==========  =======================================

The gradient of a narrow layer has few tiles, so its cases are split among programs and a second
pass adds their sums in order: the split depends on B, m and n alone, never on G.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hfcore.kernels.dense.reference import LINEAR, LOGISTIC, RELU, TANH
from hfcore.kernels.triton_math import float64_bits, from_bits, logistic, tanh
from hfcore.kernels.triton_stop import raised
from hfcore.kernels.triton_variant import Variant, variant

ACTIVATIONS = (LINEAR, LOGISTIC, TANH, RELU)
_LINEAR: tl.constexpr = tl.constexpr(0)
_LOGISTIC: tl.constexpr = tl.constexpr(1)
_TANH: tl.constexpr = tl.constexpr(2)
_RELU: tl.constexpr = tl.constexpr(3)

# bf16x6: every operand is the sum of three bfloat16, and the six largest of their nine products run
# on tensor cores; a step's sum joins the others by a float32 addition outside of them.
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16x6")

# Elements that a program of the second pass adds at once, rows of a column sum read at once.
FINISH = 1024
SUM_ROWS = 32
# A split of the gradient has at least this many cases; splits are made up to this many programs.
SPLIT_CASES = 256
PROGRAMS = 264
# fp fusion, maxnreg: kernels/loss.
FINISH_OPTIONS: dict[str, int | bool] = {"num_warps": 4, "enable_fp_fusion": True, "maxnreg": 255}


# ---------------------------------------------------------------------------- device functions


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr):
    """φ(z)."""
    if ACTIVATION == _LOGISTIC:
        return logistic(z)
    elif ACTIVATION == _TANH:
        return tanh(z)
    elif ACTIVATION == _RELU:
        return tl.where(z < 0.0, 0.0, z)  # keeps NaN
    else:
        return z


@triton.jit
def _derivative(y, ACTIVATION: tl.constexpr):
    """φ'(z) from y = φ(z)."""
    if ACTIVATION == _LOGISTIC:
        return y * (1.0 - y)
    elif ACTIVATION == _TANH:
        return 1.0 - y * y
    else:
        return tl.where(y > 0.0, 1.0, 0.0).to(y.dtype)


@triton.jit
def _corner(task, across, ROWS: tl.constexpr, COLS: tl.constexpr):
    """First row and column of a tile, numbered along the columns first: neighbours share rows."""
    return (task // across).to(tl.int64) * ROWS, (task % across).to(tl.int64) * COLS


@triton.jit
def _product(
    total, x, w, row, col, height, width, depth,
    LEFT_COLUMNS: tl.constexpr, RIGHT_ROWS: tl.constexpr, SQUARED: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """total + Σ x[row + i, k] w[k, col + j] over k < depth, for the tile's i and j.

    x is ``[height, depth]``, with LEFT_COLUMNS ``[depth, height]``; w is ``[width, depth]``, with
    RIGHT_ROWS ``[depth, width]``. Offsets within a tile are 32-bit: they take half the registers.
    """
    i, j, ks = tl.arange(0, ROWS), tl.arange(0, COLS), tl.arange(0, DEPTH)
    here, there = i < height - row, j < width - col
    if LEFT_COLUMNS:
        x += row
        left_at = ks[None, :] * height + i[:, None]
        x_step = height * DEPTH
    else:
        x += row * depth
        left_at = i[:, None] * depth + ks[None, :]
        x_step = DEPTH
    if RIGHT_ROWS:
        w += col
        right_at = ks[:, None] * width + j[None, :]
        w_step = width * DEPTH
    else:
        w += col * depth
        right_at = j[None, :] * depth + ks[:, None]
        w_step = DEPTH
    for k in range(0, depth, DEPTH):
        inside = ks < depth - k
        left = tl.load(x + left_at, mask=here[:, None] & inside[None, :], other=0.0)
        right = tl.load(w + right_at, mask=inside[:, None] & there[None, :], other=0.0)
        if SQUARED:
            left, right = left * left, right * right
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=total.dtype)
        x += x_step
        w += w_step
    return total


@triton.jit
def _place(row, col, height, width, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Offsets of a tile within a row-major ``[height, width]``, its columns, and what is inside."""
    i, cols = tl.arange(0, ROWS), col + tl.arange(0, COLS)
    here = (i < height - row)[:, None] & (cols < width)[None, :]
    return row * width + (i[:, None] * width + cols[None, :]), cols, here


# ---------------------------------------------------------------------------- kernels


@triton.jit
def dense_forward_kernel(
    a, W, b, out, B, n, m, tiles, across, a_net, W_net, b_net,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out = φ(a Wᵀ + b), one tile a program; grid G·tiles."""
    g = (tl.program_id(0) // tiles).to(tl.int64)
    row, col = _corner(tl.program_id(0) % tiles, across, ROWS, COLS)
    z = tl.zeros([ROWS, COLS], a.dtype.element_ty)
    z = _product(z, a + g * a_net, W + g * W_net, row, col, B, m, n,
                 False, False, False, PRECISION, ROWS, COLS, DEPTH)  # fmt: skip
    at, cols, here = _place(row, col, B, m, ROWS, COLS)
    z += tl.load(b + g * b_net + cols, mask=cols < m, other=0.0)[None, :]
    tl.store(out + g * B * m + at, _activate(z, ACTIVATION), mask=here)


@triton.jit
def dense_rforward_kernel(
    a, Ra, W, V, v_b, y, out, stop, B, n, m, tiles, across,
    a_net, Ra_net, W_net, V_net, v_b_net, y_net,
    ACTIVATION: tl.constexpr, HAS_RA: tl.constexpr, HAS_STOP: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out = φ'(z) ⊙ (Ra Wᵀ + a Vᵀ + v_b), one tile a program; grid G·tiles."""
    if raised(stop, HAS_STOP):
        return
    g = (tl.program_id(0) // tiles).to(tl.int64)
    row, col = _corner(tl.program_id(0) % tiles, across, ROWS, COLS)
    Rz = tl.zeros([ROWS, COLS], a.dtype.element_ty)
    Rz = _product(Rz, a + g * a_net, V + g * V_net, row, col, B, m, n,
                  False, False, False, PRECISION, ROWS, COLS, DEPTH)  # fmt: skip
    if HAS_RA:
        Rz = _product(Rz, Ra + g * Ra_net, W + g * W_net, row, col, B, m, n,
                      False, False, False, PRECISION, ROWS, COLS, DEPTH)  # fmt: skip
    at, cols, here = _place(row, col, B, m, ROWS, COLS)
    Rz += tl.load(v_b + g * v_b_net + cols, mask=cols < m, other=0.0)[None, :]
    if ACTIVATION != _LINEAR:
        Rz *= _derivative(tl.load(y + g * y_net + at, mask=here, other=0.0), ACTIVATION)
    tl.store(out + g * B * m + at, Rz, mask=here)


@triton.jit
def dense_backward_kernel(
    delta, W, y, add, out, stop, B, n, m, tiles, across, delta_net, W_net, y_net, add_net,
    ACTIVATION: tl.constexpr, HAS_ADD: tl.constexpr, HAS_STOP: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out = (δ W) ⊙ φ'(z) + add, one tile a program; grid G·tiles."""
    if raised(stop, HAS_STOP):
        return
    g = (tl.program_id(0) // tiles).to(tl.int64)
    row, col = _corner(tl.program_id(0) % tiles, across, ROWS, COLS)
    below = tl.zeros([ROWS, COLS], delta.dtype.element_ty)
    below = _product(below, delta + g * delta_net, W + g * W_net, row, col, B, n, m,
                     False, True, False, PRECISION, ROWS, COLS, DEPTH)  # fmt: skip
    at, _, here = _place(row, col, B, n, ROWS, COLS)
    if ACTIVATION != _LINEAR:
        below *= _derivative(tl.load(y + g * y_net + at, mask=here, other=0.0), ACTIVATION)
    if HAS_ADD:
        below += tl.load(add + g * add_net + at, mask=here, other=0.0)
    tl.store(out + g * B * n + at, below, mask=here)


@triton.jit
def dense_gradient_kernel(
    delta, a, gW, gb, stop, B, n, m, splits, per_split, tiles, across,
    delta_net, a_net, gW_net, gb_net, split_net, scale_bits,
    SQUARED: tl.constexpr, HAS_STOP: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, SUM_ROWS: tl.constexpr,
):  # fmt: skip
    """gW = scale·δᵀa and gb = scale·Σδ over the cases of one split.

    Grid G·splits·(tiles + rows of tiles): the programs behind the tiles sum the columns of δ.
    """
    if raised(stop, HAS_STOP):
        return
    programs = tiles + tl.cdiv(m, ROWS)
    task = tl.program_id(0) % programs
    split = (tl.program_id(0) // programs) % splits
    g = (tl.program_id(0) // programs // splits).to(tl.int64)
    first = split.to(tl.int64) * per_split
    count = tl.minimum(per_split, B - split * per_split)
    delta += g * delta_net + first * m
    scale = from_bits(scale_bits).to(delta.dtype.element_ty)
    if task < tiles:
        row, col = _corner(task, across, ROWS, COLS)
        total = tl.zeros([ROWS, COLS], delta.dtype.element_ty)
        total = _product(total, delta, a + g * a_net + first * n, row, col, m, n, count,
                         True, True, SQUARED, PRECISION, ROWS, COLS, DEPTH)  # fmt: skip
        at, _, here = _place(row, col, m, n, ROWS, COLS)
        tl.store(gW + g * gW_net + split.to(tl.int64) * split_net + at, total * scale, mask=here)
    else:
        units = (task - tiles) * ROWS + tl.arange(0, ROWS)
        sums = tl.zeros([SUM_ROWS, ROWS], delta.dtype.element_ty)
        for k in range(0, count, SUM_ROWS):
            ks = k + tl.arange(0, SUM_ROWS)
            counted = (ks < count)[:, None] & (units < m)[None, :]
            x = tl.load(
                delta + ks[:, None].to(tl.int64) * m + units[None, :], mask=counted, other=0.0
            )
            if SQUARED:
                x *= x
            sums += x
        gb += g * gb_net + split.to(tl.int64) * split_net
        tl.store(gb + units, tl.sum(sums, axis=0) * scale, mask=units < m)


@triton.jit
def dense_gradient_finish_kernel(
    partial, gW, gb, stop, size, weights, splits, blocks, gW_net, gb_net, split_net, scale_bits,
    HAS_STOP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """gW, gb = scale·Σ over the splits, in order; ``size`` elements a net; grid G·blocks."""
    if raised(stop, HAS_STOP):
        return
    g = (tl.program_id(0) // blocks).to(tl.int64)
    index = (tl.program_id(0) % blocks).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    total = tl.zeros([CHUNK], partial.dtype.element_ty)
    partial += g * size
    for _ in range(0, splits):
        total += tl.load(partial + index, mask=index < size, other=0.0)
        partial += split_net
    total *= from_bits(scale_bits).to(partial.dtype.element_ty)
    tl.store(gW + g * gW_net + index, total, mask=index < weights)
    bias = (index >= weights) & (index < size)
    tl.store(gb + g * gb_net + index - weights, total, mask=bias)


# ---------------------------------------------------------------------------- launches


class Tile(NamedTuple):
    """ROWS × COLS of the result, DEPTH of the product a step, and how a program runs it."""

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int

    @property
    def constants(self) -> dict[str, int]:
        return {"ROWS": self.rows, "COLS": self.cols, "DEPTH": self.depth}

    @property
    def options(self) -> dict[str, int | bool]:
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": True,
            "maxnreg": 255,
        }


def tile_of(height: int, width: int, precision: str, dtype: torch.dtype) -> Tile:
    """The tile of a result ``[height, width]``: smaller where the result is narrow.

    The widest that no kernel spills with: true float32 runs on the ordinary cores, whose operands
    pass through registers, and three TF32 products hold every operand twice, six of bfloat16 three
    times, in half the bytes.
    """
    rows, cols = _fitting(height, 64), _fitting(width, 64)
    if dtype == torch.float64:
        rows, cols = min(rows, 32), min(cols, 32)
        return Tile(rows, cols, 16, 8 if rows * cols > 512 else 4, 2)
    if precision == "ieee":
        return Tile(rows, cols, 16, 8 if rows * cols > 2048 else 4, 2)
    if precision == "tf32x3":
        return Tile(rows, cols, 16, 4, 3)
    rows = 128 if height > 64 else rows
    depth = 16 if precision == "bf16x6" else 32
    return Tile(rows, cols, depth, 8 if rows == 128 else 4, 3)


def _fitting(size: int, most: int) -> int:
    """The power of two from 16 to ``most`` that covers ``size``, or ``most``."""
    fit = 16
    while fit < min(size, most):
        fit *= 2
    return fit


def splits_of(B: int, tiles: int) -> tuple[int, int]:
    """(splits, cases of each) of a gradient of this many tiles, from its shape alone."""
    wanted = min(-(-PROGRAMS // tiles), -(-B // SPLIT_CASES))
    per_split = -(-B // max(wanted, 1))
    return -(-B // per_split), per_split


def dense_forward(
    a: Tensor, W: Tensor, b: Tensor, activation: str, out: Tensor, precision: str = "ieee"
) -> Tensor:
    """y = φ(a Wᵀ + b) ``[G,B,m]`` into ``out``."""
    G, (B, n), m = out.shape[0], a.shape[1:], W.shape[1]
    tile = tile_of(B, m, precision, a.dtype)
    tiles, across = _count(B, m, tile)
    dense_forward_kernel[(G * tiles,)](
        a, W, b, out, B, n, m, tiles, across, _net(a), _net(W), _net(b),
        ACTIVATION=ACTIVATIONS.index(activation), PRECISION=_of(a, precision),
        **tile.constants, **tile.options,
    )  # fmt: skip
    return out


def dense_rforward(
    a: Tensor,
    Ra: Tensor | None,
    W: Tensor,
    V: Tensor,
    v_b: Tensor,
    y: Tensor,
    activation: str,
    out: Tensor,
    stop: Tensor | None = None,
    precision: str = "ieee",
) -> Tensor:
    """Ry = φ'(z) ⊙ (Ra Wᵀ + a Vᵀ + v_b) ``[G,B,m]`` into ``out``.

    Here and below: with ``stop`` (int32 ``[1]``) not zero nothing is read or written.
    """
    G, (B, n), m = out.shape[0], a.shape[1:], W.shape[1]
    tile = tile_of(B, m, precision, a.dtype)
    tiles, across = _count(B, m, tile)
    dense_rforward_kernel[(G * tiles,)](
        a, Ra, W, V, v_b, y, out, stop, B, n, m, tiles, across,
        _net(a), _net(Ra), _net(W), _net(V), _net(v_b), _net(y),
        ACTIVATION=ACTIVATIONS.index(activation), HAS_RA=Ra is not None,
        HAS_STOP=stop is not None, PRECISION=_of(a, precision), **tile.constants, **tile.options,
    )  # fmt: skip
    return out


def dense_backward(
    delta: Tensor,
    W: Tensor,
    y: Tensor,
    activation: str,
    add: Tensor | None,
    out: Tensor,
    stop: Tensor | None = None,
    precision: str = "ieee",
) -> Tensor:
    """(δ W) ⊙ φ'(z) + add ``[G,B,n]`` into ``out``."""
    G, (B, m), n = out.shape[0], delta.shape[1:], W.shape[2]
    tile = tile_of(B, n, precision, delta.dtype)
    tiles, across = _count(B, n, tile)
    dense_backward_kernel[(G * tiles,)](
        delta, W, y, add, out, stop, B, n, m, tiles, across,
        _net(delta), _net(W), _net(y), _net(add),
        ACTIVATION=ACTIVATIONS.index(activation), HAS_ADD=add is not None,
        HAS_STOP=stop is not None, PRECISION=_of(delta, precision),
        **tile.constants, **tile.options,
    )  # fmt: skip
    return out


def dense_gradient(
    delta: Tensor,
    a: Tensor,
    scale: float,
    squared: bool,
    gW: Tensor,
    gb: Tensor,
    stop: Tensor | None = None,
    precision: str = "ieee",
    take: Callable[[int], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """scale·δᵀa ``[G,m,n]`` into ``gW``, scale·Σδ ``[G,m]`` into ``gb``; or sums of squares.

    ``take(elements)`` gives the buffer that sums of several splits pass through; None allocates it.
    """
    (G, m, n), B = gW.shape, delta.shape[1]
    tile = tile_of(m, n, precision, a.dtype)
    tiles, across = _count(m, n, tile)
    splits, per_split = splits_of(B, tiles)
    size, bits = m * n + m, float64_bits(scale)
    W_out, b_out, W_net, b_net = gW, gb, _net(gW), _net(gb)
    if splits > 1:
        partial = (take or a.new_empty)(splits * G * size)
        W_out, b_out, W_net, b_net = partial, partial[m * n :], size, size
    dense_gradient_kernel[(G * splits * (tiles + -(-m // tile.rows)),)](
        delta, a, W_out, b_out, stop, B, n, m, splits, per_split, tiles, across,
        _net(delta), _net(a), W_net, b_net, G * size if splits > 1 else 0,
        bits if splits == 1 else float64_bits(1.0),
        SQUARED=squared, HAS_STOP=stop is not None, PRECISION=_of(a, precision),
        SUM_ROWS=SUM_ROWS, **tile.constants, **tile.options,
    )  # fmt: skip
    if splits > 1:
        blocks = -(-size // FINISH)
        dense_gradient_finish_kernel[(G * blocks,)](
            partial, gW, gb, stop, size, m * n, splits, blocks, _net(gW), _net(gb), G * size, bits,
            HAS_STOP=stop is not None, CHUNK=FINISH, **FINISH_OPTIONS,
        )  # fmt: skip
    return gW, gb


def _of(array: Tensor, precision: str) -> str:
    """float64 products have one precision."""
    return "ieee" if array.dtype == torch.float64 else precision


def _count(height: int, width: int, tile: Tile) -> tuple[int, int]:
    """Tiles of a result, and how many lie side by side."""
    across = -(-width // tile.cols)
    return -(-height // tile.rows) * across, across


def _net(array: Tensor | None) -> int:
    """Elements from one net of the group to the next, 0 where all share one."""
    return 0 if array is None or array.shape[0] == 1 else array.stride(0)


# ---------------------------------------------------------------------------- ahead of time

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def variants() -> Iterator[Variant]:
    """Every kernel by dtype, precision and tile, as the launches above ask for it.

    On the widest tile: sizes that are multiples of 16 and aligned pointers, or neither, with and
    without optional arrays; linear and relu take fewer registers than the two activations here.
    """
    for dtype in DTYPES:
        yield from _finishes(dtype)
        for precision in PRECISIONS if dtype == "fp32" else ("ieee",):
            widest = tile_of(5000, 400, precision, DTYPES[dtype])
            quick = dtype == "fp32" and precision == "ieee"
            for activation, even in ((1, True), (2, True), (1, False)):
                chosen = quick and even and activation == 1
                yield from _layers(dtype, precision, widest, activation, even, chosen)
            for even in (True, False):
                yield from _gradients(dtype, precision, widest, even, quick and even)
            narrower = dict.fromkeys(
                tile_of(height, width, precision, DTYPES[dtype])
                for height in (16, 5000) for width in (16, 32, 400)
            )  # fmt: skip
            for tile in narrower:
                if tile != widest:
                    whole = _layers(dtype, precision, tile, 1, False, False)
                    yield from (v for v in whole if None not in v.constants.values())
                    yield from _gradients(dtype, precision, tile, False, False)


def _finishes(dtype: str) -> Iterator[Variant]:
    arrays = {name: f"*{dtype}" for name in ("partial", "gW", "gb")}
    sizes = ("size", "weights", "splits", "blocks", "gW_net", "gb_net", "split_net")
    for stop in (False, True):
        yield variant(
            dense_gradient_finish_kernel,
            f"dense_gradient_finish-{dtype}-stop_{stop}",
            {**arrays, **dict.fromkeys(sizes, "i32"), "scale_bits": "i64", **_stop(stop)},
            {"HAS_STOP": stop, "CHUNK": FINISH, **({} if stop else {"stop": None})},
            FINISH_OPTIONS,
            quick=dtype == "fp32" and stop,
        )


def _stop(has: bool) -> dict[str, str]:
    return {"stop": "*i32"} if has else {}


def _of_tile(dtype: str, precision: str, tile: Tile, even: bool) -> str:
    return f"{dtype}-{precision}-{tile.rows}x{tile.cols}-{'even' if even else 'odd'}"


def _made(made: Variant, even: bool) -> Variant:
    return made._replace(aligned=(*made.aligned, "n", "m")) if even else made


def _layers(
    dtype: str, precision: str, tile: Tile, activation: int, even: bool, quick: bool
) -> Iterator[Variant]:
    label = f"{_of_tile(dtype, precision, tile, even)}-{ACTIVATIONS[activation]}"
    constants = {**tile.constants, "PRECISION": precision, "ACTIVATION": activation}
    sizes = dict.fromkeys(("B", "n", "m", "tiles", "across"), "i32")

    def of(kernel: Any, *arrays: str, **flags: bool) -> Variant:
        nets = dict.fromkeys((n for n in kernel.arg_names if n.endswith("_net")), "i32")
        pointers = dict.fromkeys((*arrays, "out"), f"*{dtype}")
        stop = "stop" in kernel.arg_names
        absent = {n: None for n, has in (("Ra", flags.get("HAS_RA")), ("add", flags.get("HAS_ADD")))
                  if has is False}  # fmt: skip
        name = "-".join([kernel.__name__.removesuffix("_kernel"), label, *map(str, absent)])
        flags = {**flags, "HAS_STOP": True} if stop else flags
        return _made(
            variant(
                kernel,
                name,
                {**pointers, **sizes, **nets, **_stop(stop)},
                {**constants, **flags, **absent},
                tile.options,
                aligned=even,
                quick=quick and not absent,
            ),
            even,
        )

    yield of(dense_forward_kernel, "a", "W", "b")
    yield of(dense_rforward_kernel, "a", "Ra", "W", "V", "v_b", "y", HAS_RA=True)
    yield of(dense_rforward_kernel, "a", "W", "V", "v_b", "y", HAS_RA=False)
    yield of(dense_backward_kernel, "delta", "W", "y", "add", HAS_ADD=True)
    yield of(dense_backward_kernel, "delta", "W", "y", HAS_ADD=False)


def _gradients(
    dtype: str, precision: str, tile: Tile, even: bool, quick: bool
) -> Iterator[Variant]:
    sizes = ("B", "n", "m", "splits", "per_split", "tiles", "across")
    nets = ("delta_net", "a_net", "gW_net", "gb_net", "split_net")
    arrays = dict.fromkeys(("delta", "a", "gW", "gb"), f"*{dtype}")
    flags = {"HAS_STOP": True, "PRECISION": precision, "SUM_ROWS": SUM_ROWS}
    for squared in (False, True):
        made = variant(
            dense_gradient_kernel,
            f"dense_gradient-{_of_tile(dtype, precision, tile, even)}-squared_{squared}",
            {**arrays, **dict.fromkeys((*sizes, *nets), "i32"), "scale_bits": "i64", **_stop(True)},
            {**tile.constants, **flags, "SQUARED": squared},
            tile.options,
            aligned=even,
            quick=quick and not squared,
        )
        yield _made(made, even)
