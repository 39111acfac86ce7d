"""Kernels with a fault, each of which must make the ahead-of-time gate fail."""

import triton
import triton.language as tl


@triton.jit
def spill_kernel(x, y, N: tl.constexpr):
    """More live values than a thread has registers."""
    i = tl.arange(0, N)
    a = tl.load(x + i)
    b = tl.load(x + N + i)
    total = tl.sum(a, axis=0) + tl.sum(b, axis=0)
    tl.store(y + i, a * total)
    tl.store(y + N + i, b * total)


SPILL = ({"x": "*fp32", "y": "*fp32"}, {"N": 8192}, {"num_warps": 1})


@triton.jit
def oversize_kernel(x, y, steps, N: tl.constexpr):
    """Four stages of two tiles: more shared memory than any chip has."""
    i = tl.arange(0, N)
    tile = i[:, None] * N + i[None, :]
    total = tl.zeros([N, N], tl.float32)
    for step in range(steps):
        a = tl.load(x + step * N * N + tile)
        total = tl.dot(a, tl.load(y + step * N * N + tile), total)
    tl.store(x + tile, total)


OVERSIZE = (
    {"x": "*fp32", "y": "*fp32", "steps": "i32"},
    {"N": 128},
    {"num_warps": 8, "num_stages": 4},
)
