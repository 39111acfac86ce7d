"""What losses ask of values, for the forms that do not look at each as they read it."""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.bindings.graphs import recording
from hfcore.kernels.loss import reference


def check_values(kind: str, k: int, targets: Tensor | None, mask: Tensor | None) -> None:
    """Check weights ``mask [G,T,B]`` and classes ``targets [G,T,B]``, below k where they count.

    Whoever records a CUDA graph looks before: while it is recorded there are no values.
    """
    given = targets if mask is None else mask
    if given is None or recording(given):
        return
    if mask is not None and mask.dtype != torch.bool:
        strange = mask[~((mask >= 0) & mask.isfinite())]
        if strange.numel() > 0:
            raise ValueError(f"mask: got {float(strange[0]):f}, need finite weights of at least 0")
    if kind == reference.SOFTMAX and targets is not None:
        counted = targets if mask is None else torch.where(mask.bool(), targets, 0)
        strange = counted[(counted < 0) | (counted >= k)]
        if strange.numel() > 0:
            raise ValueError(f"targets: got class {int(strange[0])}, need 0..{k - 1}")
