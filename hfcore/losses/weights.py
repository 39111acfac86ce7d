"""Weights: of outputs, as a mask gives them, and of classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def checked_weights(mask: Tensor) -> Tensor:
    """A floating mask ``[…]`` as bool where it holds 0 and 1 alone, else as the weights that it is.

    Raises ValueError for a weight that is negative or not finite.
    """
    if bool(((mask == 0) | (mask == 1)).all()):
        return mask.bool()
    bad = ~(mask.isfinite() & (mask >= 0))
    if bool(bad.any()):
        raise ValueError(
            f"mask: holds {mask[bad][0].item():g}, need 0 and 1, or finite weights of at least 0"
        )
    return mask


class FixedWeights:
    """Weights ``[k]`` ≥ 0, or one for all k, where and in what dtype they are asked for."""

    def __init__(self, name: str, values: Sequence[float] | Tensor) -> None:
        try:
            given = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().clone()
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise TypeError(f"{name}: got {type(values).__name__}, need numbers [k]") from error
        self.values = given
        if self.values.ndim != 1 or not len(self.values):
            shape = list(self.values.shape)
            raise ValueError(f"{name}: got shape {shape}, need one weight for each output")
        if not bool((self.values.isfinite() & (self.values >= 0)).all()):
            raise ValueError(
                f"{name}: got {self.values.tolist()}, need finite weights of at least 0"
            )
        self._name = name
        self._placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def at(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The weights ``[k]`` there, in this dtype.

        They are moved once: while a CUDA graph is recorded nothing may come from the host.
        """
        if (device, dtype) not in self._placed:
            self._placed[device, dtype] = self.values.to(device, dtype)
        return self._placed[device, dtype]

    def check_length(self, k: int, *, all_alike: bool = False) -> None:
        """Raise ValueError unless there are k, or with ``all_alike`` one."""
        count = len(self.values)
        if count != k and not (all_alike and count == 1):
            raise ValueError(f"{self._name}: got {count} weights, need {k} like the outputs")

    def __repr__(self) -> str:
        return repr(self.values.tolist())
