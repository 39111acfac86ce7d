"""Batches of torch's recurrent modules, brought to the layout of the ops: time first."""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.bindings.checks import check_tensor
from hfcore.losses import Loss
from hfcore.nets.data import Data, check_sequences
from hfcore.nets.recognition import ReadOut


def check_read_out(
    read: ReadOut,
    batch: Batch,
    loss: Loss,
    sizes: tuple[int, int],
    *,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
    every_step: bool = False,
) -> Data:
    """Check a batch whose axes are those of the module: inputs ``[T,B,n]`` or ``[B,T,n]``.

    Targets are ``[…,k]`` or classes ``[…]`` and the mask ``[…]`` with the leading axes of the
    outputs, ``[B]`` where the last step alone is read; where outputs are ``[B,k,T]`` so are
    targets, and classes and mask ``[B,T]``. ``sizes``, ``like``, ``dtype`` and errors:
    :func:`check_sequences`.
    """
    x, targets, mask = batch
    check_tensor("inputs", x, ["B", "T", sizes[0]] if read.batch_first else ["T", "B", sizes[0]],
                 like=like, dtype=dtype)  # fmt: skip
    T, B = x.shape[:2] if not read.batch_first else x.shape[1::-1]
    lead = list(x.shape[:2])
    if read.last_only or read.classes_second:
        lead = [B] if read.last_only else [B, T]
    if isinstance(targets, Tensor):
        if read.classes_second and not loss.takes_classes:
            loss.check_targets(torch.Size([B, sizes[1], T]), targets, x.dtype)
            targets = targets.mT
        loss.check_targets(torch.Size([*lead, sizes[1]]), targets, x.dtype)
    if mask is not None:
        check_tensor("mask", mask, lead)
    x = x.transpose(0, 1) if read.batch_first else x
    if isinstance(targets, Tensor) and 0 not in x.shape:
        if read.last_only:
            targets, mask = _at_last_step(targets, mask, T)
        elif read.batch_first or read.classes_second:
            targets = targets.transpose(0, 1)
            mask = None if mask is None else mask.transpose(0, 1)
    arrays = Batch(x, targets, mask)
    return check_sequences(arrays, loss, sizes, like=like, dtype=dtype, every_step=every_step)


def _at_last_step(targets: Tensor, mask: Tensor | None, T: int) -> tuple[Tensor, Tensor]:
    """Targets ``[B,…]`` and mask ``[B]`` of the last step as those of T steps."""
    last = torch.ones(len(targets), dtype=torch.bool, device=targets.device)
    last = last if mask is None else mask
    earlier = last.new_zeros(T - 1, len(last))
    return targets.expand(T, *targets.shape), torch.cat([earlier, last.unsqueeze(0)])
