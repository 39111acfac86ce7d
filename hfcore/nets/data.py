"""A batch, checked once and brought to the form that the fused ops take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hfcore.batches import Batch
from hfcore.bindings.checks import check_tensor, plain
from hfcore.losses import Loss
from hfcore.losses.weights import checked_weights
from hfcore.nets.values import all_finite, range_of
from hfcore.shares import aligned

# What there is at least one of.
CASES = {"B": "case"}
SEQUENCES = {"T": "of its time steps", "B": "of its sequences"}

# Version, least and largest value of tensors that were looked at: full data comes back every step.
_ranges: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class Data:
    """A checked batch of B cases, arrays with a group axis of length 1.

    ``x [1,B,n]``, targets ``y [1,B,k]`` (classes ``[1,B]``), weights ``w [1,B]`` (bool: what
    counts) or None. Sequences have a time axis before B: T in x, in y and w T_out, of the ``steps``
    (int64 ``[T_out]``, None for all) with outputs. ``outputs`` is the sum of the whole mask.
    """

    x: Tensor
    y: Tensor
    w: Tensor | None
    outputs: float
    steps: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """y as losses take it: ``[1,T_out,B,…]``, without time T_out = 1."""
        return self.y if self.x.ndim == 4 else self.y.unsqueeze(1)

    @property
    def mask(self) -> Tensor | None:
        """w as :attr:`targets`: ``[1,T_out,B]``."""
        return self.w if self.w is None or self.x.ndim == 4 else self.w.unsqueeze(1)

    @property
    def count(self) -> int:
        """B."""
        return self.x.shape[-2]

    @property
    def device(self) -> torch.device:
        return self.x.device

    def placed(self, place: Callable[[str, Tensor], Tensor]) -> Data:
        """The same where ``place`` puts each array ``[1,…]``, by its name; ``y is x`` once."""
        x = place("x", self.x)
        return Data(
            x,
            x if self.y is self.x else place("targets", self.y),
            None if self.w is None else place("mask", self.w),
            self.outputs,
            None if self.steps is None else place("steps", self.steps),
        )

    def inputs_alone(self) -> Data:
        """The same as far as a product reads it, which does not see targets and weights."""
        return Data(self.x, self.x, None, 0.0, self.steps)

    def taken(self, index: Tensor) -> Data:
        """The cases of ``index``, int64 ``[b]`` where the data are, as many outputs each."""
        axis = self.x.ndim - 2
        x = self.x.index_select(axis, index)
        y = x if self.y is self.x else self.y.index_select(axis, index)
        w = None if self.w is None else self.w.index_select(axis, index)
        return Data(x, y, w, self.outputs * len(index) / self.count, self.steps)

    def chunks(self, size: int) -> Iterator[Data]:
        """The same data in pieces of ``size`` sequences, or of nearly equal numbers of cases."""
        B = self.count
        if size >= B:
            yield self
            return
        pieces = math.ceil(B / size)
        timed = self.x.ndim == 4
        ends = [min(i * size, B) if timed else B * i // pieces for i in range(pieces + 1)]
        for start, end in pairwise(ends):
            yield self._narrowed(start, end)

    def narrow(self, start: int, count: int) -> Data:
        """``count`` cases from ``start`` on, in arrays that begin where torch's own do."""
        return self._narrowed(start, start + count).placed(lambda _, value: aligned(value))

    def _narrowed(self, start: int, end: int) -> Data:
        at = (slice(None),) * (self.x.ndim - 2) + (slice(start, end),)
        x, w = self.x[at], None if self.w is None else self.w[at]
        return replace(self, x=x, y=x if self.y is self.x else self.y[at], w=w)


def check_cases(
    batch: Batch,
    loss: Loss,
    sizes: tuple[int, int],
    *,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Data:
    """Check one batch of inputs ``[B,n]`` and targets ``[B,k]`` or classes ``[B]``.

    ``sizes`` is (n, k). ``like`` has the dtype and device that its values must have, or ``dtype``
    says it alone.

    Raises TypeError or ValueError naming the argument: wrong rank, shape, dtype or device, no
    cases, a mask of nothing, NaN or Inf in inputs or in targets that count.
    """
    x, targets, mask = _checked_arrays(batch, loss, sizes, CASES, like, dtype)
    low, high = _finite_range("inputs", x)
    outputs: float = len(x)
    if mask is not None:
        if not bool(mask.any()):
            raise ValueError("mask: masks every case, need at least one that counts")
        loss.check_values(targets, mask)
        mask, outputs = plain(mask).unsqueeze(0), float(mask.sum(dtype=torch.float64))
    elif targets.is_floating_point():  # classes are checked where they are used
        if targets is not x:
            low, high = _finite_range("targets", targets)
        loss.check_range(low, high)
    reconstructs, x = targets is x, plain(x).unsqueeze(0)
    return Data(x, x if reconstructs else plain(targets).unsqueeze(0), mask, outputs)


def check_sequences(
    batch: Batch,
    loss: Loss,
    sizes: tuple[int, int],
    *,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
    every_step: bool = False,
) -> Data:
    """The same for inputs ``[T,B,n]`` and targets ``[T,B,k]`` or classes ``[T,B]``.

    What is given is cut to the steps with outputs, unless ``every_step``.
    Raises TypeError or ValueError as :func:`check_cases`, also for no time steps.
    """
    x, targets, mask = _checked_arrays(batch, loss, sizes, SEQUENCES, like, dtype)
    if not all_finite(x):
        raise ValueError("inputs: holds NaN or Inf, need finite values")
    steps, outputs = None, float(x.shape[0] * x.shape[1])
    if mask is not None:
        steps, targets, mask, outputs = _cut_to_outputs(targets, mask, every_step)
    if loss.bounded or not (targets.is_floating_point() and all_finite(targets)):
        loss.check_values(targets, mask)
    mask = None if mask is None else plain(mask).unsqueeze(0)
    return Data(plain(x).unsqueeze(0), plain(targets).unsqueeze(0), mask, outputs, steps)


def _checked_arrays(
    batch: Batch,
    loss: Loss,
    sizes: tuple[int, int],
    axes: dict[str, str],
    like: Tensor | None,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs ``[*axes,n]``, targets, mask ``[*axes]``: bool, or weights in the inputs' dtype."""
    n, k = sizes
    x = check_tensor("inputs", batch.inputs, [*axes, n], like=like, dtype=dtype)
    lead, targets, mask = x.shape[:-1], batch.targets, batch.mask
    if 0 in lead:
        one = list(axes.values())[lead.index(0)]
        raise ValueError(f"inputs: got shape {list(x.shape)}, need at least one {one}")
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets: got {type(targets).__name__}, need a torch.Tensor")
    loss.check_targets(torch.Size([*lead, k]), targets, x.dtype)
    if targets.device != x.device:
        raise ValueError(f"targets: is on {targets.device}, need {x.device}")
    if mask is None:
        return x, targets, None
    check_tensor("mask", mask, list(lead))
    if mask.device != x.device:
        raise ValueError(f"mask: is on {mask.device}, need {x.device}")
    if mask.dtype not in (torch.bool, x.dtype):
        raise TypeError(f"mask: got {mask.dtype}, need torch.bool or {x.dtype}")
    return x, targets, mask if mask.dtype == torch.bool else checked_weights(mask)


def _cut_to_outputs(
    targets: Tensor, mask: Tensor, every_step: bool
) -> tuple[Tensor | None, Tensor, Tensor | None, float]:
    """(steps, targets, mask, outputs by weight) from ``targets [T,B,…]`` and ``mask [T,B]``.

    steps and mask are None if nothing is masked.
    """
    T = len(mask)
    seen = mask.numpy(force=True)  # looked at once, wherever it lies
    outputs = int(np.count_nonzero(seen))
    if outputs == 0:
        raise ValueError("mask: masks every output, need at least one that counts")
    present = np.flatnonzero(seen.any(axis=1))
    steps: Tensor | None = None
    if len(present) < T and not every_step:
        steps = torch.from_numpy(present).to(mask.device)
        first, last = int(present[0]), int(present[-1])
        # One run of steps, above all the last one alone, is a view and not a gather.
        where = slice(first, last + 1) if last - first + 1 == len(present) else steps
        targets, mask = targets[where], mask[where]
    if mask.dtype != torch.bool:
        return steps, targets, mask, float(mask.sum(dtype=torch.float64))
    return steps, targets, None if outputs == mask.numel() else mask, outputs


def _finite_range(name: str, values: Tensor) -> tuple[float, float]:
    """Least and largest, looked at once for each version of a tensor; ValueError unless finite."""
    version = None if values.is_inference() else values._version
    known, low, high = _ranges.get(values, (None, 0.0, 0.0))
    if version is None or known != version:
        low, high = range_of(values)
        if version is not None:
            _ranges[values] = version, low, high
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name}: holds NaN or Inf, need finite values")
    return low, high
