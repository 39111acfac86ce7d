"""Next-step prediction on sequences of natural origin (Martens & Sutskever 2011, section 4).

``bouncing-balls``, ``piano-rolls`` and ``spoken-digits``: at every step the next frame, from those
so far. Losses are the paper's: cross-entropies of independent bits, for speech the squared error.

1. A sequence of T steps has T + 1 frames: inputs are the first T of them, targets the last T. The
   paper does not say what is predicted at the first frame, about which nothing is known.
2. The paper's MIDI data and TIMIT are in no public place; :mod:`hfcore.data` says what stands in.
3. :meth:`NextStep.errors` is what table 1 of the paper lists as it is understood here, since units
   are not stated: for the balls the cross-entropy less the entropy of the targets, a sequence; for
   piano-rolls the negative log-likelihood of a sequence; for speech the squared error of a frame.
4. Balls are drawn anew for every batch. The windows of the others are cut once, and a batch holds
   distinct ones of them.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hfcore.arguments import choice, count, flag, naming_options
from hfcore.batches import Batch
from hfcore.draws import MOST_CASES, check_draw, check_outputs, numpy_dtype
from hfcore.losses import LogisticCrossEntropy, Loss, SquaredError
from hfcore.problems.base import TEST_BATCH

# hfcore.data writes files with hfcore.training, which takes problems: it is imported when called.
if TYPE_CHECKING:
    from hfcore.data import SequenceSet

# Of the fixed sets of balls.
SEEDS = {"validation": 1, "test": 2}

Folder = str | os.PathLike[str] | None


class NextStep(ABC):
    """Predict every next frame of a sequence.

    Inputs and targets ``[T,B,n]`` are the first and the last T of T + 1 frames; every output
    counts. Subclasses set ``name`` and the loss and say which sequences there are.
    """

    name: str
    loss: Loss

    def __init__(self, length: int, size: int) -> None:
        self.length = count("length", length, most=MOST_CASES)
        self.input_size = self.output_size = size

    @abstractmethod
    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """``size`` sequences, inputs and targets ``[T,size,n]``; both dtypes get the same draw."""

    @abstractmethod
    def part(self, name: str, size: int, dtype: torch.dtype = torch.float32) -> Batch:
        """The first ``size`` sequences (all, if there are fewer) of ``"validation"`` or ``"test"``.

        They are always the same, ``[T,size,n]``.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""

    def test_set(self, size: int, dtype: torch.dtype = torch.float32) -> list[Batch]:
        """``size`` sequences of the test part (all, if there are fewer), at most 1000 a batch."""
        inputs, targets, _ = self.part("test", count("size", size), dtype)
        parts = zip(inputs.split(TEST_BATCH, 1), targets.split(TEST_BATCH, 1), strict=True)
        return [Batch(x.contiguous(), y.contiguous()) for x, y in parts]

    def errors(self, s: Tensor, batch: Batch) -> Tensor:
        """What the paper's table 1 lists of each sequence, float64 ``[B]``: the module's note 3.

        ``s [T,B,n]``; with a group axis ``[G,T,B,n]`` it is ``[G,B]``.
        """
        check_outputs(s, batch.targets.shape, "like the targets", batch.targets)
        return self._errors(s.double(), batch.targets.double())

    def _errors(self, s: Tensor, targets: Tensor) -> Tensor:
        """The loss, summed over the steps: ``[…,B]`` for ``s […,T,B,n]``."""
        return self.loss.per_output(s, targets.expand_as(s)).sum(-2)

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.config().items() if k != "name")
        return f"{type(self).__name__}({options})"


class BouncingBalls(NextStep):
    """Films of bouncing balls, n = side² pixels in [0,1]; see ``hfcore/data/bouncing_balls.py``.

    Args:
        length: T, frames that are predicted.
        balls: 1 to 5.
        side: pixels of a side.

    Raises TypeError or ValueError naming the option that is out of range.
    """

    name = "bouncing-balls"

    @naming_options
    def __init__(self, length: int = 30, *, balls: int = 3, side: int = 15) -> None:
        from hfcore.data.bouncing_balls import MOST_BALLS

        self.balls = count("balls", balls, most=MOST_BALLS)
        self.side = count("side", side, most=1000)
        super().__init__(length, self.side**2)
        self.loss: Loss = LogisticCrossEntropy()

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """``size`` films, inputs and targets ``[T,size,n]``; both dtypes get the same draw."""
        from hfcore import data

        films = data.bouncing_balls(
            size, self.length + 1, generator, balls=self.balls, side=self.side, dtype=dtype
        )
        return _shifted(films)

    def part(self, name: str, size: int, dtype: torch.dtype = torch.float32) -> Batch:
        """``size`` films of a fixed seed ``[T,size,n]``; a larger set begins with the smaller."""
        seed = SEEDS[choice("name", name, SEEDS)]
        return self.batch(size, np.random.Generator(np.random.PCG64(seed)), dtype)

    def _errors(self, s: Tensor, targets: Tensor) -> Tensor:
        """Less the entropy of the targets, which no prediction goes below."""
        y = targets
        entropy = -(torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y)).sum((0, 2))
        return super()._errors(s, targets) - entropy

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {
            "name": self.name,
            "length": self.length,
            "balls": self.balls,
            "side": self.side,
        }


class FromWindows(NextStep):
    """Sequences that are windows of given pieces, read when the first of them is asked for.

    ``sequences``: only so many training windows, from the first; None for all. ``folder``: where
    the files are; no part of :meth:`config`, so that a run may be continued elsewhere.
    """

    def __init__(self, length: int, size: int, sequences: int | None, folder: Folder) -> None:
        super().__init__(length, size)
        self.sequences = None if sequences is None else count("sequences", sequences)
        self.folder = folder

    @cached_property
    def pieces(self) -> SequenceSet:
        """All pieces of the three parts."""
        return self._read()

    @cached_property
    def windows(self) -> Tensor:
        """The training windows, float32 ``[T+1,N,n]``."""
        windows = self.pieces.windows("train", self.length)
        found = windows.shape[1]
        if self.sequences is None:
            return windows
        if self.sequences > found:
            raise ValueError(f"sequences: got {self.sequences}, need at most {found}")
        return windows[:, : self.sequences].contiguous()

    @abstractmethod
    def _read(self) -> SequenceSet:
        """The pieces from their file."""

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """``size`` distinct training windows, inputs and targets ``[T,size,n]``."""
        check_draw(size, generator, dtype)
        found = self.windows.shape[1]
        if size > found:
            raise ValueError(f"size: got {size}, need at most the {found} sequences")
        chosen = generator.choice(found, size, replace=False, shuffle=False)
        return _shifted(self.windows.index_select(1, torch.from_numpy(chosen)).to(dtype))

    def all_cases(self, dtype: torch.dtype = torch.float32) -> Batch:
        """All training windows, inputs and targets ``[T,N,n]``."""
        numpy_dtype(dtype)
        return _shifted(self.windows.to(dtype))

    def part(self, name: str, size: int, dtype: torch.dtype = torch.float32) -> Batch:
        """The first ``size`` windows (all, if there are fewer) of a part, ``[T,size,n]``."""
        choice("name", name, SEEDS)
        numpy_dtype(dtype)
        windows = self.pieces.windows(name, self.length)
        return _shifted(windows[:, : count("size", size)].to(dtype).contiguous())

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {"name": self.name, "length": self.length, "sequences": self.sequences}


class PianoRolls(FromWindows):
    """Which keys sound next: windows of piano-rolls, frames of n = 88 or 128 bits.

    Args:
        length: T, frames of a window that are predicted.
        dataset: ``"piano_midi"``, ``"nottingham"``, ``"musedata"`` or ``"jsb_chorales"``.
        midi_keys: frames of all 128 MIDI numbers instead of a piano's 88.
        sequences, folder: see :class:`FromWindows`.

    Raises TypeError or ValueError naming the option that is out of range, and where sequences are
    asked for ValueError for windows longer than every piece of a part, and
    :class:`hfcore.data.DataFileError` saying what to put where.
    """

    name = "piano-rolls"

    @naming_options
    def __init__(
        self,
        length: int = 200,
        *,
        dataset: str = "piano_midi",
        midi_keys: bool = False,
        sequences: int | None = None,
        folder: Folder = None,
    ) -> None:
        from hfcore.data.piano_rolls import KEYS, MIDI_KEYS, SETS

        self.dataset = choice("dataset", dataset, SETS)
        self.midi_keys = flag("midi_keys", midi_keys)
        super().__init__(length, MIDI_KEYS if midi_keys else KEYS, sequences, folder)
        self.loss: Loss = LogisticCrossEntropy()

    def _read(self) -> SequenceSet:
        from hfcore import data

        return data.piano_rolls(self.dataset, self.folder, midi_keys=self.midi_keys)

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {**super().config(), "dataset": self.dataset, "midi_keys": self.midi_keys}


class SpokenDigits(FromWindows):
    """What is heard next: windows of speech features, frames of n = 39, of spoken digits.

    Args:
        length: T, frames of a window that are predicted.
        clips: only so many clips of each speaker; None for all.
        sequences, folder: see :class:`FromWindows`.

    Raises as :class:`PianoRolls` does.
    """

    name = "spoken-digits"
    FEATURES: ClassVar[int] = 39

    @naming_options
    def __init__(
        self,
        length: int = 100,
        *,
        clips: int | None = None,
        sequences: int | None = None,
        folder: Folder = None,
    ) -> None:
        self.clips = None if clips is None else count("clips", clips)
        super().__init__(length, self.FEATURES, sequences, folder)
        self.loss: Loss = SquaredError()

    def _read(self) -> SequenceSet:
        from hfcore import data

        return data.spoken_digits(self.folder, clips=self.clips)

    def _errors(self, s: Tensor, targets: Tensor) -> Tensor:
        """Σ of squared differences of a frame, averaged over the steps."""
        return 2 * super()._errors(s, targets) / self.length

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {**super().config(), "clips": self.clips}


def _shifted(frames: Tensor) -> Batch:
    """Of frames ``[T+1,B,n]`` the first T as inputs, the last T as targets."""
    return Batch(frames[:-1], frames[1:])
