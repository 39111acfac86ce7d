"""Sequences with two marked values: what addition, multiplication and exclusive or share.

Hochreiter & Schmidhuber 1997, experiments 4 and 5, in the format of Martens & Sutskever 2011 with
the departures numbered here.

1. Markers are 0 and 1; there is no −1 at either end, and the first value is drawn like the others.
2. Marked positions are uniform on [0, 0.1 L) and [0.1 L, 0.5 L).
3. Every sequence of 1997, and of the release of 2011, has a length of its own. Here all of a batch
   have one, unless ``mixed_lengths`` says otherwise: then a curvature, a backtracking and a line
   search on a batch each see all lengths, not another one each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfcore.arguments import positive
from hfcore.batches import Batch
from hfcore.draws import (
    check_flag,
    check_length,
    check_outputs,
    check_words,
    compile_kernel,
    numpy_dtype,
    subtract_mean,
    unit_numbers,
)
from hfcore.losses import Loss, SquaredError
from hfcore.problems.base import Criterion1997, Described
from hfcore.problems.lengths import RandomLengths, at_ends

# From L = 3 on both marker ranges hold a position: step 0, and step 1 (0.3 <= 1 < 1.5).
MIN_LENGTH = 3
# What is asked of the marked values.
SUM, PRODUCT, XOR = range(3)


class Marked(RandomLengths, Described):
    """Combine two marked values of a sequence of length L, uniform on {T .. ⌊1.1 T⌋}.

    Inputs ``[L,B,2]``: a value from U[0,1], of exclusive or a fair bit, and a 0/1 marker set at two
    steps, the first uniform on [0, 0.1 L), the second on [0.1 L, 0.5 L). Targets ``[L,B,1]`` and
    the bool mask ``[L,B]`` count at the last step only.

    Subclasses set ``name``, ``_operation``, ``_weight`` (of its result in the target) and
    ``_expected_target``, and say in :meth:`wrong` which outputs are.
    """

    name: str
    input_size = 2
    output_size = 1
    loss: Loss
    esn_input_scale = 0.001
    """Standard deviation of the input weights of an ESN start (Sutskever et al. 2013, table 4)."""

    _operation: int
    _weight: float = 1.0
    _expected_target: float

    def __init__(self, length: int, centre: bool, mixed_lengths: bool) -> None:
        check_length(length, MIN_LENGTH, "both marker ranges hold a step")
        self.length = length
        self.centre = check_flag("centre", centre)
        self.mixed_lengths = check_flag("mixed_lengths", mixed_lengths)

    def mean_input(self, length: int) -> Tensor:
        """Expected inputs of a sequence of L = ``length`` steps, float64 ``[2]``.

        Means over all steps before any centring: ½ for the values, 2/L for the markers.
        """
        return torch.tensor([0.5, 2.0 / length], dtype=torch.float64, device="cpu")

    @property
    def mean_target(self) -> Tensor:
        """Expected target at the last step, float64 ``[1]``, in the units of the batches.

        It is 0 once targets are centred.
        """
        return torch.tensor(
            [self._expected_target - self._shift], dtype=torch.float64, device="cpu"
        )

    @property
    def _shift(self) -> float:
        """What centring takes off the targets."""
        return self._expected_target if self.centre else 0.0

    def _of_length(
        self, L: int, size: int, generator: np.random.Generator, real: type[np.floating[Any]]
    ) -> Batch:
        inputs = np.empty((L, size, self.input_size), real)
        targets = np.zeros((L, size, self.output_size), real)
        mask = np.zeros((L, size), np.bool_)
        mask[-1] = True
        _fill(generator, self._operation, self._weight, inputs, targets)
        if self.centre:
            subtract_mean(inputs, self.mean_input(L).numpy().astype(real))
            targets[-1] -= real(self._shift)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(mask))

    def counted_words(self, size: int) -> int:
        """A length for the batch or one for each sequence, two positions and ⌊1.1 T⌋ values each.

        See :class:`CountedProblem`.
        """
        return self._counted_lengths(size) + (2 + self.lengths[1]) * size

    def _counted_lengths(self, size: int) -> int:
        return size if self.mixed_lengths else 1

    @property
    def counted_steps(self) -> Tensor:
        """The last steps of all lengths, bool ``[⌊1.1 T⌋]``."""
        shortest, longest = self.lengths
        return torch.arange(longest, device="cpu") >= shortest - 1

    def counted_batches(
        self, words: Tensor, size: int, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """K batches of ``size`` sequences of ``words`` int64 ``[K,W]``, where these lie.

        Inputs ``[⌊1.1 T⌋,K·size,2]``, targets ``[…,1]`` and the bool mask ``[⌊1.1 T⌋,K·size]``;
        see :class:`CountedProblem`.
        """
        numpy_dtype(dtype)
        K, (shortest, longest) = check_words(words, self.counted_words(size)), self.lengths
        of_lengths, of_places, of_values = words.split(
            [self._counted_lengths(size), 2 * size, longest * size], dim=1
        )
        L = (shortest + of_lengths % (longest - shortest + 1)).expand(K, size).reshape(-1)
        # As in _fill: steps t < 0.1 L are 0 .. first-1, those with t < 0.5 L are 0 .. half-1.
        first, half = (L + 9) // 10, (L + 1) // 2
        low, high = (part.reshape(-1) for part in of_places.split(size, dim=1))
        i, j = low % first, first + high % (half - first)
        value = unit_numbers(of_values).view(K, longest, size).transpose(0, 1).reshape(longest, -1)
        value = (value < 0.5).to(dtype) if self._operation == XOR else value.to(dtype)
        t = torch.arange(longest, device=words.device).unsqueeze(1)
        inputs = torch.stack([value, ((t == i) | (t == j)).to(dtype)], dim=-1)
        target = self._counted_target(*(value.gather(0, at[None]).double() for at in (i, j)))
        target = target.to(dtype) - torch.tensor(self._shift, dtype=dtype, device=words.device)
        if self.centre:
            inputs[..., 0] -= 0.5
            inputs[..., 1] -= (2.0 / L.double()).to(dtype)
        last = t == L - 1
        inputs = torch.where((t < L).unsqueeze(-1), inputs, 0.0)
        return Batch(inputs, torch.where(last, target, 0.0).unsqueeze(-1), last)

    def _counted_target(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the two marked values, float64 ``[…]``."""
        if self._operation == XOR:
            return (x - y).abs()
        return self._weight * (x + y if self._operation == SUM else x * y)

    def wrong(self, s: Tensor, batch: Batch) -> Tensor:
        """Zero-one error of each sequence, bool ``[B]``, from the outputs ``s [L,B,1]``."""
        raise NotImplementedError

    def errors(self, s: Tensor, batch: Batch) -> Tensor:
        """Float64 ``[B]``: 1 for a wrong sequence, else 0; its mean is table 5's number.

        Shapes as in :meth:`wrong`.
        """
        return self.wrong(s, batch).double()

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {"name": self.name, "length": self.length, "centre": self.centre, **self._mixed}

    def _last(self, s: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs and targets of the last step of each sequence, ``[…,B]`` and ``[B]``."""
        check_outputs(s, batch.targets.shape, "like the targets", batch.targets)
        last = at_ends(s, batch.mask), at_ends(batch.targets, batch.mask)
        return last[0][..., 0], last[1][..., 0]


class MarkedPair(Marked):
    """A number made of two marked numbers; otherwise :class:`Marked`.

    A sequence is wrong when its output at the last step is off by more than ``tolerance``.
    """

    criterion_1997: Criterion1997
    _unit_1997: float = 1.0
    """1 in the targets is so much in those of 1997."""

    def __init__(self, length: int, tolerance: float, centre: bool, mixed_lengths: bool) -> None:
        super().__init__(length, centre, mixed_lengths)
        self.tolerance = positive("tolerance", tolerance)
        self.loss = SquaredError()

    def wrong(self, s: Tensor, batch: Batch) -> Tensor:
        """Bool ``[B]``: the last output of ``s [L,B,1]`` is off by more than the tolerance.

        NaN is wrong. A leading group axis ``[G,L,B,1]`` gives ``[G,B]``.
        """
        output, target = self._last(s, batch)
        return ~((output - target).abs() <= self.tolerance)

    def deviation(self, s: Tensor, batch: Batch) -> Tensor:
        """Float64 ``[B]``: how far the last output is off, a target of 1997 being in [0, 1].

        Shapes as in :meth:`wrong`.
        """
        output, target = self._last(s, batch)
        return self._unit_1997 * (output - target).abs().double()

    def config(self) -> dict[str, Any]:
        """JSON-able options from which :func:`hfcore.problems.create` rebuilds the problem."""
        return {**super().config(), "tolerance": self.tolerance}


@compile_kernel
def _fill(
    generator: np.random.Generator,
    operation: int,
    weight: float,
    inputs: np.ndarray,
    targets: np.ndarray,
) -> None:
    """Draw values ``inputs[:,:,0]``, markers ``inputs[:,:,1]``, and the last targets."""
    L, B = inputs.shape[:2]
    # Steps t with t < 0.1 L are 0 .. first-1, with t < 0.5 L they are 0 .. half-1 (exact ceilings).
    first = (L + 9) // 10
    half = (L + 1) // 2
    for t in range(L):
        for b in range(B):
            value = generator.random()
            if operation == XOR:
                value = 1.0 if value < 0.5 else 0.0
            inputs[t, b, 0] = value
            inputs[t, b, 1] = 0.0
    for b in range(B):
        i = generator.integers(0, first)
        j = generator.integers(first, half)
        inputs[i, b, 1] = 1.0
        inputs[j, b, 1] = 1.0
        x, y = inputs[i, b, 0], inputs[j, b, 0]
        if operation == SUM:
            targets[L - 1, b, 0] = weight * (x + y)
        elif operation == PRODUCT:
            targets[L - 1, b, 0] = weight * (x * y)
        else:
            targets[L - 1, b, 0] = abs(x - y)
