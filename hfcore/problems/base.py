"""What every problem offers to training, and the pieces that problems share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.losses import Loss

TEST_BATCH = 1000  # cases of a test batch


@runtime_checkable
class Problem(Protocol):
    """A source of cases with a matching loss and a measure of error.

    It may also be a :class:`ZeroOne` and a :class:`FixedTest`.
    """

    name: str
    input_size: int
    output_size: int
    loss: Loss

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """``size`` cases drawn from ``generator`` only; sequences are fresh, as many steps each."""
        ...

    def errors(self, s: Tensor, batch: Batch) -> Tensor:
        """What Sutskever et al. (2013) count of each case, float64 ``[B]``, from the outputs ``s``.

        Tables 1 to 3: squared pixel errors; table 5: zero-one errors or wrong steps.
        """
        ...

    def config(self) -> dict[str, Any]:
        """JSON-able: ``name`` and the options from which :func:`create` rebuilds the problem."""
        ...


@runtime_checkable
class ZeroOne(Protocol):
    """What calls its cases right or wrong, and so can be solved."""

    def wrong(self, s: Tensor, batch: Batch) -> Tensor:
        """Zero-one error of each case, bool ``[B]``, from the outputs ``s [T,B,k]``."""
        ...


@runtime_checkable
class FixedTest(Protocol):
    """What is tested on given cases instead of fresh ones."""

    def test_set(self, size: int, dtype: torch.dtype = torch.float32) -> list[Batch]:
        """The same ``size`` cases whenever it is called, in batches of at most 1000."""
        ...


@dataclass(frozen=True)
class Criterion1997:
    """When Hochreiter & Schmidhuber (1997) call a problem solved.

    ``sequences`` fresh ones are judged: at most ``allowed`` of them may be off by more than
    ``tolerance``, and their mean deviation must be below ``mean_below``.
    """

    tolerance: float
    mean_below: float = float("inf")
    sequences: int = 2000
    allowed: int = 0

    def beyond(self, deviations: Tensor) -> Tensor:
        """Bool ``[B]``: which of ``deviations [B]`` are more than the tolerance; NaN is."""
        return ~(deviations <= self.tolerance)

    def met(self, deviations: Tensor) -> bool:
        """Whether ``deviations [B]`` of so many sequences meet it."""
        few = int(self.beyond(deviations).sum()) <= self.allowed
        return few and float(deviations.mean()) < self.mean_below


@runtime_checkable
class Judged1997(Protocol):
    """What is also judged as in 1997; :func:`hfcore.train` logs it beside the zero-one errors."""

    criterion_1997: Criterion1997

    def deviation(self, s: Tensor, batch: Batch) -> Tensor:
        """Largest error of each sequence among the predictions that are judged, float64 ``[B]``.

        From the outputs ``s [T,B,k]``, in the units of 1997.
        """
        ...


@runtime_checkable
class FiniteProblem(Protocol):
    """A problem with a fixed set of training cases, for the policies of hf.minibatches."""

    def all_cases(self, dtype: torch.dtype = torch.float32) -> Batch:
        """Every training case once."""
        ...


@runtime_checkable
class CountedProblem(Protocol):
    """A problem whose fresh cases are made of numbers that are counted out, on any device.

    :func:`hfcore.sweep` with ``on_device`` draws them where the nets are. They are distributed as
    those of ``batch``, and the same for the same words on every device.
    """

    def counted_words(self, size: int) -> int:
        """Words that a batch of ``size`` cases takes, W."""
        ...

    def counted_batches(
        self, words: Tensor, size: int, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """K batches of ``size`` cases one after the other, of ``words`` int64 ``[K,W]``.

        Words are uniform on 0 … 2⁶³ − 1. The batch lies where they do, its arrays as those of
        ``batch`` with K·size cases; where lengths are random it has the steps of the longest, zeros
        behind the end of a sequence, and a mask.
        """
        ...

    @property
    def counted_steps(self) -> Tensor | None:
        """Steps at which the outputs of a case may count, bool ``[T]``; None: all of them."""
        ...


@runtime_checkable
class SequenceProblem(Problem, ZeroOne, Protocol):
    """A problem of sequences with a zero-one criterion, for recurrent nets."""

    centre: bool
    """Inputs, and the targets of regression problems, are reduced by their expected values."""
    esn_input_scale: float
    """Standard deviation of the input weights of an ESN start (Sutskever et al. 2013, table 4).

    Problems that the table does not have take the scale of the one with the most similar inputs."""

    @property
    def mean_target(self) -> Tensor:
        """Mean of the outputs that are scored, float64 ``[output_size]``, as the batches hold them.

        Class problems give the frequencies of the classes.
        """
        ...

    @property
    def bias_error(self) -> float:
        """Expected :meth:`errors` of outputs that do not depend on the inputs."""
        ...

    def mean_input(self, length: int) -> Tensor:
        """Expected inputs over all steps of a sequence of ``length`` steps, before centring.

        Float64 ``[input_size]``.
        """
        ...


class Described:
    """Shown as the class with its length and its other options by name."""

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        raise NotImplementedError

    def __repr__(self) -> str:
        options = {k: v for k, v in self.config().items() if k not in ("name", "length")}
        described = ", ".join(f"{key}={value!r}" for key, value in options.items())
        return f"{type(self).__name__}({self.config()['length']}, {described})"


# What a run asks of every problem, whatever it is judged by.
ASKED = ("name", "loss", "batch", "config")


def lacks(problem: Any, key: str) -> bool:
    """Whether a problem has no such attribute, or one that does nothing.

    That is a method left out by a class derived from :class:`Problem`.
    """
    nothing = vars(Problem).get(key)
    left_out = nothing is not None and getattr(type(problem), key, None) is nothing
    return left_out or getattr(problem, key, None) is None


def check_problem(name: str, problem: Any, *more: str) -> None:
    """Raise TypeError where a problem lacks what a run asks of it, and ``more``."""
    missing = [key for key in (*ASKED, *more) if lacks(problem, key)]
    if missing:
        raise TypeError(
            f"{name}: got {type(problem).__name__}, a problem without {', '.join(missing)}; "
            "hf.problems says what each is"
        )


def drawn(batch: Any) -> Batch:
    """What the ``batch`` of a problem gave. Raises TypeError for other things."""
    if isinstance(batch, tuple) and len(batch) in (2, 3):
        return batch if isinstance(batch, Batch) else Batch(*batch)
    what = f"{len(batch)} items" if isinstance(batch, tuple | list) else type(batch).__name__
    raise TypeError(f"problem.batch: gave {what}, need hf.Batch(inputs, targets, mask)")
