"""Trace and diagonal of a square matrix known by its products alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hfcore import arguments
from hfcore.probes import random_signs

Matmat = Callable[[Tensor], Tensor]

# Columns of one product with many vectors.
BLOCK = 32
# The exact values cost one product for each parameter.
MOST_PROBES = 100_000


def check_probes(probes: int | None, generator: torch.Generator | None) -> None:
    """Raise TypeError or ValueError for what is no number of probes: an integer of at least 1."""
    if probes is not None:
        arguments.count("probes", probes, most=MOST_PROBES)
    arguments.generator(generator)


def trace(
    matmat: Matmat, like: Tensor, probes: int | None, generator: torch.Generator | None
) -> float:
    """E[vᵀAv] over random signs v (Hutchinson 1990), or with ``probes`` None Σⱼ eⱼᵀAeⱼ."""
    total, count = 0.0, 0
    for V in _blocks(like, probes, generator):
        total += float((V * matmat(V)).double().sum())
        count += V.shape[1]
    return total if probes is None else total / count


def diagonal(
    matmat: Matmat, like: Tensor, probes: int | None, generator: torch.Generator | None
) -> Tensor:
    """E[v ⊙ Av] over random signs v (Bekas et al. 2007), or with ``probes`` None from every eⱼ."""
    total, count = torch.zeros_like(like), 0
    for V in _blocks(like, probes, generator):
        total += (V * matmat(V)).sum(1)
        count += V.shape[1]
    return total if probes is None else total / count


def _blocks(
    like: Tensor, probes: int | None, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Columns ``[N,≤BLOCK]``: random signs, or unit vectors for ``probes`` None."""
    N = like.numel()
    total = N if probes is None else probes
    for at in range(0, total, BLOCK):
        width = min(BLOCK, total - at)
        if probes is None:
            V = like.new_zeros(N, width)
            V[torch.arange(at, at + width, device="cpu"), torch.arange(width, device="cpu")] = 1
        else:
            V = random_signs((width, N), like, generator).mT
        yield V
