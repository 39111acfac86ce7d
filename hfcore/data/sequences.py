"""What every set of natural sequences is: pieces of frames in three parts, cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hfcore.arguments import choice, count
from hfcore.data.files import DataFileError

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class SequenceSet:
    """Pieces, each float32 ``[frames,n]`` of its own length, for training, validation and test.

    Raises ValueError for a part without pieces, and for a piece of another form.
    """

    name: str
    train: Sequence[Tensor]
    validation: Sequence[Tensor]
    test: Sequence[Tensor]
    facts: str
    """One sentence: where the pieces are from, how they are split, what they stand in for."""

    def __post_init__(self) -> None:
        for part in PARTS:
            pieces = self.part(part)
            if not pieces:
                raise ValueError(f"{part}: got no pieces, need at least 1")
            for i, piece in enumerate(pieces):
                if piece.ndim != 2 or piece.shape[1] != self.size:
                    raise ValueError(
                        f"{part}[{i}]: got shape {list(piece.shape)}, need [frames, {self.size}]"
                    )

    @property
    def size(self) -> int:
        """n, the numbers of a frame."""
        return int(self.train[0].shape[-1])

    def part(self, name: str) -> Sequence[Tensor]:
        """The pieces ``[frames,n]`` of ``"train"``, ``"validation"`` or ``"test"``."""
        pieces: Sequence[Tensor] = getattr(self, choice("part", name, PARTS))
        return pieces

    def windows(self, part: str, length: int) -> Tensor:
        """Windows ``[length + 1, N, n]`` of a part: ``length`` frames, each with its next one.

        A piece is cut from its beginning, and a window begins with the last frame of the one
        before it: every frame but a piece's first is predicted once. Frames behind the last
        whole window are left out, and so are pieces that have none. Raises ValueError where no
        piece of the part is long enough.
        """
        pieces = self.part(part)
        length = count("length", length)
        cut = [p.unfold(0, length + 1, length) for p in pieces if len(p) > length]
        if not cut:
            longest = max(len(p) for p in pieces)
            raise ValueError(
                f"length: got {length}, need at most {longest - 1}: a window has one frame more, "
                f"and the longest piece of {self.name}'s {part} part has {longest}"
            )
        return torch.cat(cut).permute(2, 0, 1).contiguous()


def pieces_of(rows: np.ndarray, offsets: np.ndarray, name: str) -> list[Tensor]:
    """float32 pieces: number i is ``rows[offsets[i]:offsets[i+1]]`` of ``rows [frames,n]``.

    ``name`` is for the message. Raises :class:`hfcore.data.DataFileError` for offsets ``[N+1]``
    that do not go from 0 up to the number of rows.
    """
    if offsets.ndim != 1 or len(offsets) < 2:
        raise DataFileError(f"{name}: has no pieces, need at least 1")
    if offsets[0] != 0 or offsets[-1] != len(rows) or bool((np.diff(offsets) < 1).any()):
        raise DataFileError(
            f"{name}: its offsets go from {offsets[0]} to {offsets[-1]}, need them to rise from 0 "
            f"to its {len(rows)} rows"
        )
    whole = torch.from_numpy(rows.astype(np.float32))
    return list(whole.split(np.diff(offsets).tolist()))
