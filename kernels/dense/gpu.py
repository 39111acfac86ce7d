"""Dense ops on CUDA kernels, true float32: chooses tiles, launches. Formulas: ``reference.py``.

The ops have the signatures of ``gpu_triton.py``, less the precision, after a first parameter
``launch`` that starts a kernel of ``gpu.cu`` by name; nothing here knows how (CuPy on a GPU, fibers
on the CPU in tests). Nets are contiguous behind the group axis and may start at any float.

No call waits for the device and none allocates but through ``take``, so every op can be captured in
a CUDA graph. Tiles and splits depend on B, n and m alone, never on G or the device: a net has the
same bits alone, in any group, and on any GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hfcore.kernels.dense.reference import LINEAR, LOGISTIC, RELU, TANH
from hfcore.kernels.gpu_launch import MOST_NETS, Argument, Launch, grid

__all__ = [
    "MOST_NETS",
    "TILES",
    "Tile",
    "dense_backward",
    "dense_forward",
    "dense_gradient",
    "dense_rforward",
    "splits_of",
    "tile_of",
]

# The codes of gpu/activation.cuh; what is given there is the identity here.
ACTIVATIONS = (TANH, LOGISTIC, RELU, LINEAR)

# Threads side by side of gpu_tile.cuh, and threads that finish a split gradient.
ACROSS = 8
FINISH_THREADS = 256


class Tile(NamedTuple):
    """A block's height × width of the result; its K is cut into ``slices`` within every chunk.

    ``tall`` rows by width/8 columns a thread, ``depth`` k a slice and chunk, ``stages`` chunks in
    shared memory. ``issue`` is how many instructions a warp issues for a chunk (SASS of
    ``dense_forward`` for sm_90).
    """

    height: int
    width: int
    tall: int
    slices: int
    depth: int
    stages: int
    issue: int

    @property
    def name(self) -> str:
        return f"{self.height}x{self.width}x{self.chunk}"

    @property
    def threads(self) -> int:
        return self.slices * self.height // self.tall * ACROSS

    @property
    def chunk(self) -> int:
        return self.slices * self.depth

    @property
    def resident(self) -> int:
        """Blocks that a multiprocessor holds at once."""
        return 3 if self.threads <= 128 else 2

    def across(self, columns: int) -> int:
        """Tiles side by side."""
        return -(-columns // self.width)

    def tiles(self, rows: int, columns: int) -> int:
        """Tiles of a result."""
        return -(-rows // self.height) * self.across(columns)

    def shared_bytes(self, left_along_k: bool, right_along_k: bool, sums: bool = False) -> int:
        """Chunks in flight, or in their place the slices' sums (and the row sums of ``sums``)."""
        left = self.height + (4 if left_along_k else 0)
        right = self.width + (4 if right_along_k else 0)
        chunks = self.stages * self.chunk * (left + right)
        results = self.slices * self.height * self.width + (self.threads if sums else 0)
        return 4 * max(chunks, results)


# As DENSE_KERNELS in gpu.cu.
TILES = (
    Tile(64, 80, 8, 2, 16, 2, 1523),
    Tile(64, 80, 8, 2, 8, 3, 807),
    Tile(32, 80, 8, 4, 8, 3, 812),
    Tile(32, 32, 8, 8, 8, 3, 350),
    Tile(16, 80, 4, 8, 8, 3, 464),
    Tile(16, 32, 4, 8, 8, 3, 206),
)

# What the rule counts with, an H200: multiprocessors; cycles to fill the stages and write a tile;
# share of its cycles that a scheduler issues in with one warp, and with more; cycles that the
# launch behind a split costs, and bytes of partial sums that pass in a cycle.
MULTIPROCESSORS = 132
OVERHEAD = 2000
ONE_WARP, MORE_WARPS = 0.7, 0.88
LAUNCH, BYTES = 4000, 1500
# A split of the gradient has at least this many cases, and there are at most this many splits.
SPLIT_CASES, SPLITS = 64, 64


def cycles(tile: Tile, rows: int, columns: int, depth: int, splits: int = 1) -> float:
    """Predicted cycles of a product ``[rows, columns]`` over ``depth``, cut into ``splits``.

    The multiprocessor with most blocks decides: its warps' instructions, and once for every time
    that its blocks change, filling the stages and writing.
    """
    blocks = -(-tile.tiles(rows, columns) * splits // MULTIPROCESSORS)
    longest = -(-depth // splits)
    chunks = -(-longest // tile.chunk)
    warps = blocks * tile.threads / 128  # of a scheduler
    rate = ONE_WARP if min(blocks, tile.resident) * tile.threads < 256 else MORE_WARPS
    turns = -(-blocks // tile.resident)
    total = warps * chunks * tile.issue / rate + turns * OVERHEAD
    return total if splits == 1 else total + LAUNCH + 4 * splits * rows * columns / BYTES


@functools.lru_cache(maxsize=4096)
def tile_of(rows: int, columns: int, depth: int) -> Tile:
    """The tile with the fewest predicted cycles."""
    return min(TILES, key=lambda tile: cycles(tile, rows, columns, depth))


@functools.lru_cache(maxsize=4096)
def splits_of(m: int, n: int, B: int) -> tuple[Tile, int]:
    """(tile, cases of a split) of a gradient with the fewest predicted cycles."""
    cuts = dict.fromkeys(-(-B // splits) for splits in range(1, SPLITS + 1))
    longest = [cases for cases in cuts if cases >= min(B, SPLIT_CASES)]
    return min(
        ((tile, cases) for cases in longest for tile in TILES),
        key=lambda cut: cycles(cut[0], m, n, B, -(-B // cut[1])),
    )


def dense_forward(
    launch: Launch, a: Tensor, W: Tensor, b: Tensor, activation: str, out: Tensor
) -> Tensor:
    """y = φ(a Wᵀ + b) ``[G,B,m]`` into ``out``."""
    (B, n), m = a.shape[1:], W.shape[1]
    tile = tile_of(B, m, n)
    _start(
        launch, "dense_forward", tile, tile.tiles(B, m), out, tile.shared_bytes(True, True),
        [*_first(a, W, b, out), B, n, m, *map(_net, (a, W, b)), ACTIVATIONS.index(activation)],
    )  # fmt: skip
    return out


def dense_rforward(
    launch: Launch,
    a: Tensor,
    Ra: Tensor | None,
    W: Tensor,
    V: Tensor,
    v_b: Tensor,
    y: Tensor,
    activation: str,
    out: Tensor,
    stop: Tensor | None = None,
) -> Tensor:
    """Ry = φ'(z) ⊙ (a Vᵀ + Ra Wᵀ + v_b) ``[G,B,m]`` into ``out``.

    Here and below: with ``stop`` (int32 ``[1]``) not zero nothing is read or written.
    """
    (B, n), m = a.shape[1:], W.shape[1]
    tile = tile_of(B, m, n if Ra is None else 2 * n)
    arrays = (a, Ra, W, V, v_b, y)
    _start(
        launch, "dense_rforward", tile, tile.tiles(B, m), out, tile.shared_bytes(True, True),
        [stop, *_first(*arrays, out), B, n, m, *map(_net, arrays), ACTIVATIONS.index(activation)],
    )  # fmt: skip
    return out


def dense_backward(
    launch: Launch,
    delta: Tensor,
    W: Tensor,
    y: Tensor,
    activation: str,
    add: Tensor | None,
    out: Tensor,
    stop: Tensor | None = None,
) -> Tensor:
    """(δ W) ⊙ φ'(z) + add ``[G,B,n]`` into ``out``."""
    (B, m), n = delta.shape[1:], W.shape[2]
    tile = tile_of(B, n, m)
    arrays = (delta, W, y, add)
    _start(
        launch, "dense_backward", tile, tile.tiles(B, n), out, tile.shared_bytes(True, False),
        [stop, *_first(*arrays, out), B, n, m, *map(_net, arrays), ACTIVATIONS.index(activation)],
    )  # fmt: skip
    return out


def dense_gradient(
    launch: Launch,
    delta: Tensor,
    a: Tensor,
    scale: float,
    squared: bool,
    gW: Tensor,
    gb: Tensor,
    stop: Tensor | None = None,
    take: Callable[[int], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """scale·δᵀa ``[G,m,n]`` into ``gW``, scale·Σδ ``[G,m]`` into ``gb``; or sums of squares.

    ``take(elements)`` gives the buffer that sums of several splits pass through; None allocates it.
    """
    (G, m, n), B = gW.shape, delta.shape[1]
    tile, cases = splits_of(m, n, B)
    splits, size = -(-B // cases), m * n + m
    whole = [*_first(gW, gb), _net(gW), _net(gb)]
    W_out, b_out, W_net, b_net = whole
    if splits > 1:
        partial = (take or a.new_empty)(splits * G * size)
        W_out, b_out, W_net, b_net = partial, partial[m * n :], size, size
    _start(
        launch,
        "dense_squares" if squared else "dense_gradient",
        tile,
        splits * tile.tiles(m, n),
        gW,
        tile.shared_bytes(False, False, sums=True),
        [stop, *_first(delta, a), W_out, b_out, B, n, m, splits, cases, _net(delta), _net(a),
         W_net, b_net, G * size if splits > 1 else 0, 1.0 if splits > 1 else float(scale)],
    )  # fmt: skip
    if splits > 1:
        W_out, b_out, W_net, b_net = whole
        launch(
            "dense_gradient_finish",
            grid(-(-size // FINISH_THREADS), G),
            (FINISH_THREADS, 1, 1),
            0,
            [stop, partial, W_out, b_out, size, m * n, splits, W_net, b_net, G * size,
             float(scale)],
        )  # fmt: skip
    return gW, gb


def _start(
    launch: Launch,
    op: str,
    tile: Tile,
    blocks: int,
    out: Tensor,
    shared_bytes: int,
    arguments: list[Argument],
) -> None:
    """``blocks`` tiles of every net of ``out``."""
    threads = (tile.threads, 1, 1)
    launch(f"{op}_{tile.name}", grid(blocks, out.shape[0]), threads, shared_bytes, arguments)


def _first(*arrays: Tensor | None) -> list[Argument]:
    """The first net of each, which is contiguous whatever the group's stride."""
    return [a if a is None or a.is_contiguous() else a[0] for a in arrays]


def _net(array: Tensor | None) -> int:
    """Elements from one net of the group to the next, 0 where all share one."""
    return 0 if array is None or array.shape[0] == 1 else array.stride(0)
