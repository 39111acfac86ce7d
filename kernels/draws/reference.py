"""Philox 4x64-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3").

Word i of a stream is word i mod 4 of what ten rounds make of the counter (i div 4, 0, 0, 0) under
the key (seed, number). Nothing else is kept: any word can be asked for by itself.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ROUNDS = 10
# The multipliers, and what is added to the key between rounds (there, table 2 and section 3.3).
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(seed: int, number: int, count: int) -> Tensor:
    """The first ``count`` words of a stream less their lowest bit, int64 ``[count]``.

    None is negative. ``seed`` and ``number`` are the key, from 0 to 2⁶³ − 1.
    """
    blocks = -(-count // 4)
    c = [np.arange(blocks, dtype=np.uint64), *np.zeros((3, blocks), dtype=np.uint64)]
    for r in range(ROUNDS):
        k0, k1 = (np.uint64((k + r * w) % 2**64) for k, w in zip((seed, number), WEYL, strict=True))
        (high0, low0), (high1, low1) = (
            _product(c[2 * i], np.uint64(MULTIPLIERS[i])) for i in (0, 1)
        )
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
    words = np.stack(c, axis=1).reshape(-1)[:count] >> np.uint64(1)
    return torch.from_numpy(words.astype(np.int64))


def _product(a: np.ndarray, b: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """(high, low) words of a·b, from four products of halves; ``a`` is uint64."""
    a0, a1, b0, b1 = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    middle = a1 * b0 + (a0 * b0 >> _HALF)
    other = a0 * b1 + (middle & _LOW)
    return a1 * b1 + (middle >> _HALF) + (other >> _HALF), a * b


def uniform(seed: int, number: int, out: Tensor) -> Tensor:
    """Numbers in [0, 1) of a stream into ``out [...]``, float32 or float64; the same in all forms.

    Of the words' upper bits, each word gives two numbers of 24 bits in float32, one of 53 in
    float64.
    """
    return uniform_of(philox(seed, number, words_for(out)).to(out.device), out)


def words_for(out: Tensor) -> int:
    """Words that make the numbers of ``out [...]``."""
    return out.numel() if out.dtype == torch.float64 else -(-out.numel() // 2)


def uniform_of(words: Tensor, out: Tensor) -> Tensor:
    """``out [...]`` filled from ``words``, which lack their lowest bit."""
    if out.dtype == torch.float64:
        numbers = (words >> 10).to(out.dtype) * 2.0**-53
    else:
        halves = torch.stack([words >> 39, (words >> 15) & 0xFFFFFF], dim=1)
        numbers = halves.view(-1)[: out.numel()].to(out.dtype) * 2.0**-24
    return out.copy_(numbers.view(out.shape))
