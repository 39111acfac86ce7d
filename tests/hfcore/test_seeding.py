"""Generators of several numbers: each number counts, and the same ones give the same draws."""

from __future__ import annotations

import torch

from hfcore.seeding import generator_of


def drawn(*numbers: int) -> list[int]:
    return torch.randint(2**31, (8,), generator=generator_of(*numbers)).tolist()


def test_every_number_counts() -> None:
    """Seeds once stood in the upper half of 64 bits, which torch's generator does not look at."""
    draws = [drawn(*numbers) for numbers in ((0, 0), (1, 0), (0, 1), (1, 1), (2**31, 0), (0, 0, 1))]
    assert all(a != b for i, a in enumerate(draws) for b in draws[:i])
    assert drawn(3, 7) == drawn(3, 7)
