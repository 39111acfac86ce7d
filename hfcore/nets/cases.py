"""A batch of cases without time, checked and brought to the form of the dense ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hfcore.batches import Batch
from hfcore.bindings.checks import check_tensor, plain
from hfcore.losses import Loss
from hfcore.losses.weights import checked_weights
from hfcore.nets.values import range_of

# Version, least and largest value of tensors that were looked at: full data comes back every step.
_ranges: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class Cases:
    """A checked batch: ``x [1,B,n]``, ``y [1,B,k]`` (classes ``[1,B]``), weights ``w [1,B]`` (bool:
    which cases count) or None."""

    x: Tensor
    y: Tensor
    w: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """y as the loss ops take the outputs of one time step: ``[1,1,B,k]``."""
        return self.y.unsqueeze(1)

    @property
    def mask(self) -> Tensor | None:
        """w as :attr:`targets`: ``[1,1,B]``."""
        return None if self.w is None else self.w.unsqueeze(1)

    @property
    def outputs(self) -> float:
        return self.count if self.w is None else float(self.w.sum(dtype=torch.float64))

    @property
    def count(self) -> int:
        return self.x.shape[1]

    @property
    def device(self) -> torch.device:
        return self.x.device

    def placed(self, place: Callable[[str, Tensor], Tensor]) -> Cases:
        """The same data where ``place`` puts each array ``[1,…]``, by its name."""
        x = place("x", self.x)
        y = x if self.y is self.x else place("targets", self.y)
        return Cases(x, y, None if self.w is None else place("mask", self.w))

    def chunks(self, size: int) -> Iterator[Cases]:
        """The same data in pieces of nearly equal length, at most ``size`` cases each."""
        pieces = math.ceil(self.count / size)
        ends = [self.count * (i + 1) // pieces for i in range(pieces)]
        for start, end in zip([0, *ends], ends, strict=False):
            w = None if self.w is None else self.w[:, start:end]
            yield Cases(self.x[:, start:end], self.y[:, start:end], w)


def check_cases(
    batch: Batch,
    loss: Loss,
    sizes: tuple[int, int],
    *,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Cases:
    """Check one batch of inputs ``[B,n]`` and targets ``[B,k]`` or classes ``[B]``.

    ``sizes`` is (n, k). ``like`` has the dtype and device that its values must have, or ``dtype``
    says it alone.

    Raises TypeError or ValueError naming the argument: wrong rank, shape, dtype or device, no
    cases, a mask of nothing, NaN or Inf in inputs or in targets that count.
    """
    n, k = sizes
    x = check_tensor("inputs", batch.inputs, ["B", n], like=like, dtype=dtype)
    if x.shape[0] == 0:
        raise ValueError(f"inputs: got shape {list(x.shape)}, need at least one case")
    w = None if batch.mask is None else _checked_mask(batch.mask, x)
    if not isinstance(batch.targets, Tensor):
        raise TypeError(f"targets: got {type(batch.targets).__name__}, need a torch.Tensor")
    loss.check_targets(torch.Size([x.shape[0], k]), batch.targets, x.dtype)
    if batch.targets.device != x.device:
        raise ValueError(f"targets: is on {batch.targets.device}, need {x.device}")
    targets, reconstructs = batch.targets, batch.targets is batch.inputs
    low, high = _finite_range("inputs", x)
    if w is not None:
        loss.check_values(targets, w)
        w = plain(w).unsqueeze(0)
    elif targets.is_floating_point():  # classes are checked where they are used
        if not reconstructs:
            low, high = _finite_range("targets", targets)
        loss.check_range(low, high)
    x = plain(x).unsqueeze(0)
    return Cases(x, x if reconstructs else plain(targets).unsqueeze(0), w)


def _checked_mask(mask: Tensor, x: Tensor) -> Tensor:
    """The mask ``[B]``: bool, or weights in the dtype of the inputs."""
    mask = check_tensor("mask", mask, [len(x)])
    if mask.device != x.device:
        raise ValueError(f"mask: is on {mask.device}, need {x.device}")
    if mask.dtype not in (torch.bool, x.dtype):
        raise TypeError(f"mask: got {mask.dtype}, need torch.bool or {x.dtype}")
    mask = mask if mask.dtype == torch.bool else checked_weights(mask)
    if not bool(mask.any()):
        raise ValueError("mask: masks every case, need at least one that counts")
    return mask


def _finite_range(name: str, values: Tensor) -> tuple[float, float]:
    """Least and largest value; ValueError unless all are finite."""
    low, high = _range_of(values)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name}: holds NaN or Inf, need finite values")
    return low, high


def _range_of(values: Tensor) -> tuple[float, float]:
    """Least and largest value, looked at once for each version of a tensor; NaN reaches both."""
    version = None if values.is_inference() else values._version
    known, low, high = _ranges.get(values, (None, 0.0, 0.0))
    if version is None or known != version:
        low, high = range_of(values)
        if version is not None:
            _ranges[values] = version, low, high
    return low, high
