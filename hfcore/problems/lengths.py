"""Batches of sequences whose lengths are random: one length for all, or one for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.draws import check_draw


class RandomLengths:
    """What problems share whose sequences have L steps, L uniform on {T .. ⌊1.1 T⌋}.

    Subclasses set ``length``, which is T, and ``mixed_lengths``, and make the sequences of one L:
    :meth:`_of_length`.
    """

    length: int
    mixed_lengths: bool

    @property
    def lengths(self) -> tuple[int, int]:
        """Shortest and longest sequence, both included: T and ⌊1.1 T⌋."""
        return self.length, 11 * self.length // 10

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """``size`` sequences of one random length L; both dtypes get the same draw, rounded.

        Inputs ``[L,size,n]``, targets as the class says and a mask bool ``[L,size]``; with
        ``centre`` reduced by their expected values at this L. With ``mixed_lengths`` every
        sequence has an L of its own, and the batch ⌊1.1 T⌋ steps. The generator must not be used
        by another thread meanwhile.
        """
        real = check_draw(size, generator, dtype)

        def made(L: int, count: int) -> Batch:
            return self._of_length(L, count, generator, real)

        return of_random_length(made, self.lengths, size, generator, mixed=self.mixed_lengths)

    def _of_length(
        self, L: int, size: int, generator: np.random.Generator, real: type[np.floating[Any]]
    ) -> Batch:
        """``size`` sequences of L steps, inputs of the dtype ``real``."""
        raise NotImplementedError

    @property
    def _mixed(self) -> dict[str, bool]:
        """Of the config; nothing where it is as it was before there was a choice."""
        return {"mixed_lengths": True} if self.mixed_lengths else {}


def of_random_length(
    made: Callable[[int, int], Batch],
    lengths: tuple[int, int],
    size: int,
    generator: np.random.Generator,
    *,
    mixed: bool,
) -> Batch:
    """``size`` sequences whose L is uniform on ``lengths``, both ends included.

    ``made(L, count)`` gives ``count`` of L steps with a mask. L is drawn once for all of them or,
    with ``mixed``, for each: the batch then is in the order of L and as long as the longest length,
    with zeros behind the end of a sequence, where nothing counts.
    """
    shortest, longest = lengths
    if not mixed:
        return made(int(generator.integers(shortest, longest, endpoint=True)), size)
    kinds = longest - shortest + 1
    counts = generator.multinomial(size, np.full(kinds, 1.0 / kinds))
    parts = [made(shortest + i, int(count)) for i, count in enumerate(counts) if count > 0]
    masks = [part.mask for part in parts if part.mask is not None]
    return Batch(
        _padded([part.inputs for part in parts], longest),
        _padded([part.targets for part in parts], longest),
        _padded(masks, longest),
    )


def _padded(parts: list[Tensor], steps: int) -> Tensor:
    """``[T,B,…]`` of several T side by side, as ``[steps,ΣB,…]``."""
    whole = parts[0].new_zeros(steps, sum(part.shape[1] for part in parts), *parts[0].shape[2:])
    for part, into in zip(parts, whole.split([part.shape[1] for part in parts], 1), strict=True):
        into[: len(part)] = part
    return whole


def at_ends(x: Tensor, mask: Tensor | None) -> Tensor:
    """Of ``x […,T,B,k]`` the last step of each sequence that counts, ``[…,B,k]``.

    ``mask [T,B]``; None, or all zero for a sequence: the last of all.
    """
    if mask is None:
        return x[..., -1, :, :]
    ends = len(mask) - 1 - (mask != 0).flip(0).to(torch.uint8).argmax(0)
    index = ends[None, :, None].expand(*x.shape[:-3], 1, -1, x.shape[-1])
    return x.gather(-3, index).squeeze(-3)
