"""A batch of sequences, checked and brought to the form of the recurrence ops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.bindings.checks import check_tensor
from hfcore.losses import Loss
from hfcore.losses.weights import checked_weights
from hfcore.nets.values import all_finite


@dataclass(frozen=True)
class Sequences:
    """A checked batch: only the steps that have outputs are kept in targets and mask.

    ``x [1,T,B,n]``; ``steps`` int64 ``[T_out]`` or None for all; ``targets [1,T_out,B,…]``;
    ``mask [1,T_out,B]`` bool, weights or None; ``outputs`` is the sum of its weights.
    """

    x: Tensor
    steps: Tensor | None
    targets: Tensor
    mask: Tensor | None
    outputs: float

    @property
    def count(self) -> int:
        return self.x.shape[2]

    @property
    def device(self) -> torch.device:
        return self.x.device

    def placed(self, place: Callable[[str, Tensor], Tensor]) -> Sequences:
        """The same data where ``place`` puts each array ``[1,…]``, by its name."""
        return Sequences(
            place("x", self.x),
            None if self.steps is None else place("steps", self.steps),
            place("targets", self.targets),
            None if self.mask is None else place("mask", self.mask),
            self.outputs,
        )

    def chunks(self, size: int) -> Iterator[Sequences]:
        """The same data in pieces of at most ``size`` sequences."""
        if self.count <= size:
            yield self
            return
        for at in range(0, self.count, size):
            part = slice(at, at + size)
            mask = None if self.mask is None else self.mask[:, :, part]
            yield Sequences(
                self.x[:, :, part], self.steps, self.targets[:, :, part], mask, self.outputs
            )


def check_sequences(
    batch: Batch,
    loss: Loss,
    sizes: tuple[int, int],
    *,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
    every_step: bool = False,
) -> Sequences:
    """Check one batch of inputs ``[T,B,n]`` and targets ``[T,B,k]`` or classes ``[T,B]``.

    ``sizes`` is (n, k). ``like`` has the dtype and device that its values must have, or ``dtype``
    says it alone. What is given is cut to the steps with outputs, unless ``every_step``.

    Raises TypeError or ValueError naming the argument: wrong rank, shape, dtype or device, empty
    batch, no time steps, a mask of nothing, NaN or Inf in inputs or in unmasked targets.
    """
    n, k = sizes
    x = check_tensor("inputs", batch.inputs, ["T", "B", n], like=like, dtype=dtype)
    T, B = x.shape[:2]
    if T == 0 or B == 0:
        what = "time steps" if T == 0 else "sequences"
        raise ValueError(f"inputs: got shape {list(x.shape)}, need at least one of its {what}")
    if not isinstance(batch.targets, Tensor):
        raise TypeError(f"targets: got {type(batch.targets).__name__}, need a torch.Tensor")
    loss.check_targets(torch.Size([T, B, k]), batch.targets, x.dtype)
    if batch.targets.device != x.device:
        raise ValueError(f"targets: is on {batch.targets.device}, need {x.device}")
    if not all_finite(x):
        raise ValueError("inputs: holds NaN or Inf, need finite values")
    mask = _checked_mask(batch, T, B)
    steps, targets, outputs = None, batch.targets, float(T * B)
    if mask is not None:
        steps, targets, mask, outputs = _cut_to_outputs(targets, mask, every_step)
    if loss.bounded or not (targets.is_floating_point() and all_finite(targets)):
        loss.check_values(targets, mask)
    x, targets = x.detach().unsqueeze(0).contiguous(), targets.detach()
    grouped_mask = None if mask is None else mask.unsqueeze(0).contiguous()
    return Sequences(x, steps, targets.unsqueeze(0).contiguous(), grouped_mask, outputs)


def _checked_mask(batch: Batch, T: int, B: int) -> Tensor | None:
    """The mask ``[T,B]``: bool, or weights in the dtype of the inputs."""
    if batch.mask is None:
        return None
    mask = check_tensor("mask", batch.mask, [T, B])
    if mask.device != batch.inputs.device:
        raise ValueError(f"mask: is on {mask.device}, need {batch.inputs.device}")
    if mask.dtype == torch.bool:
        return mask
    if mask.dtype != batch.inputs.dtype:
        raise TypeError(f"mask: got {mask.dtype}, need torch.bool or {batch.inputs.dtype}")
    return checked_weights(mask)


def _cut_to_outputs(
    targets: Tensor, mask: Tensor, every_step: bool
) -> tuple[Tensor | None, Tensor, Tensor | None, float]:
    """(steps, targets, mask, outputs by weight); steps and mask are None if nothing is masked."""
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
