"""Philox 4x64-10 in Triton; what it makes, and of what: ``reference.py``.

Integers throughout, so the words are those of the reference on any device. A program makes BLOCK
counters' words; eight bytes are written a word, and a pass over some 10⁵ cases is one launch of
some microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from hfcore.kernels.draws.reference import MULTIPLIERS, ROUNDS, WEYL
from hfcore.kernels.triton_variant import Variant, variant

BLOCK = 256
OPTIONS: dict[str, int | bool] = {"num_warps": 4}

_M0: tl.constexpr = tl.constexpr(MULTIPLIERS[0])
_M1: tl.constexpr = tl.constexpr(MULTIPLIERS[1])
_W0: tl.constexpr = tl.constexpr(WEYL[0])
_W1: tl.constexpr = tl.constexpr(WEYL[1])
_ROUNDS: tl.constexpr = tl.constexpr(ROUNDS)


@triton.jit(do_not_specialize=["seed", "number", "count"])
def philox_kernel(out, seed, number, count, BLOCK: tl.constexpr):
    """out[i] = word i of the stream less its lowest bit; grid of blocks of 4·BLOCK words."""
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], tl.uint64)
    k0, k1 = zero + seed.to(tl.uint64), zero + number.to(tl.uint64)
    w0, w1 = tl.full([BLOCK], _W0, tl.uint64), tl.full([BLOCK], _W1, tl.uint64)
    m0, m1 = tl.full([BLOCK], _M0, tl.uint64), tl.full([BLOCK], _M1, tl.uint64)
    c0, c1, c2, c3 = block.to(tl.uint64), zero, zero, zero
    for _ in tl.static_range(_ROUNDS):
        high0, low0 = tl.umulhi(c0, m0), c0 * m0
        high1, low1 = tl.umulhi(c2, m1), c2 * m1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += w0
        k1 += w1
    at = block * 4
    tl.store(out + at, (c0 >> 1).to(tl.int64), mask=at < count)
    tl.store(out + at + 1, (c1 >> 1).to(tl.int64), mask=at + 1 < count)
    tl.store(out + at + 2, (c2 >> 1).to(tl.int64), mask=at + 2 < count)
    tl.store(out + at + 3, (c3 >> 1).to(tl.int64), mask=at + 3 < count)


def philox(seed: int, number: int, out: Tensor) -> Tensor:
    """The first words of the stream of (seed, number) into ``out``, int64 ``[count]``."""
    assert out.dtype == torch.int64
    programs = triton.cdiv(out.numel(), 4 * BLOCK)
    philox_kernel[(programs,)](out, seed, number, out.numel(), BLOCK=BLOCK, **OPTIONS)
    return out


# ---------------------------------------------------------------------------- ahead of time


def variants() -> Iterator[Variant]:
    """By the types that seed and number may arrive in."""
    for seed in ("i32", "i64"):
        for number in ("i32", "i64"):
            yield variant(
                philox_kernel,
                f"philox-{seed}-{number}",
                {"out": "*i64", "seed": seed, "number": number, "count": "i32"},
                {"BLOCK": BLOCK},
                OPTIONS,
                quick=seed == number == "i32",
            )
