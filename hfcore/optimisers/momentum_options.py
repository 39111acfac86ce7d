"""The options of a group of parameters of the first-order optimisers, as numbers."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


class MomentumOptions(NamedTuple):
    """The options of a group as numbers: ε, μ (0 where there is none) and l2."""

    lr: float
    momentum: float
    weight_decay: float


def options_of(group: dict[str, Any]) -> MomentumOptions:
    """The group's options, checked.

    Any real number serves: NumPy's and tensors of one element too, as schedulers leave them. Raises
    TypeError or ValueError that names the option which is wrong.
    """
    lr, momentum, l2 = (_number(name, group.get(name, 0.0)) for name in MomentumOptions._fields)
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr: got {lr}, need a finite number of at least 0")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: got {momentum}, need 0 ≤ momentum < 1")
    if not (math.isfinite(l2) and l2 >= 0):
        raise ValueError(f"weight_decay: got {l2}, need a finite number of at least 0")
    return MomentumOptions(lr, momentum, l2)


def _number(name: str, value: object) -> float:
    if type(value) is float:
        return value
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {type(value).__name__}, need a float")
    return float(value)
