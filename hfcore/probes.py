"""Random vectors by whose products matrices are estimated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Like(Protocol):
    """What has a dtype and lies somewhere: a tensor or an operator."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...


def random_signs(shape: Sequence[int], like: Like, generator: torch.Generator | None) -> Tensor:
    """±1 with equal odds, ``[*shape]`` in the dtype of ``like`` and on its device.

    A generator draws on its own device; None is torch's own.
    """
    device = like.device if generator is None else generator.device
    bits = torch.randint(2, tuple(shape), generator=generator, device=device)
    return bits.to(device=like.device, dtype=like.dtype).mul_(2).sub_(1)
