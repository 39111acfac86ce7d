"""What ``pretrain`` takes as data, as images ``[N,n]`` that the first machine can take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from hfcore.bindings.checks import check_positive, check_tensor
from hfcore.data.dataset import Dataset
from hfcore.numpy_arrays import check_unmasked, floats
from hfcore.problems.base import FiniteProblem


def images_of(
    data: Any, validation: Any, visible: str, like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Training and validation images ``[N,n]``, of the dtype and on the device of ``like [m,n]``.

    Raises TypeError or ValueError naming what is wrong: other things than images, another n, values
    that are not finite or that the ``visible`` units cannot have.
    """
    if isinstance(data, Dataset):
        if validation is None and data.validation is not None:
            validation = data.validation.to(like.dtype)
        data = data.train.to(like.dtype)
    elif isinstance(data, FiniteProblem):
        data = data.all_cases(like.dtype).inputs
    train = _checked("data", data, visible, like)
    return train, None if validation is None else _checked("validation", validation, visible, like)


def _checked(name: str, given: Any, visible: str, like: Tensor) -> Tensor:
    if isinstance(given, np.ndarray) and given.dtype.kind == "f":
        check_unmasked(name, given)
        given = floats(given, like.dtype)
    if not isinstance(given, Tensor):
        raise TypeError(
            f"{name}: got {type(given).__name__}, need images [N,{like.shape[1]}] as a tensor or "
            "a NumPy array of floats, an hf.data.Dataset, or a problem with a fixed set of cases"
        )
    check_tensor(name, given, ["N", like.shape[1]], dtype=like.dtype)
    check_positive(N=len(given))
    if given.is_meta:
        raise ValueError(f"{name}: is on meta, need a device that holds its values")
    images = given.detach().to(like.device).contiguous()
    low, high = (float(x) for x in images.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name}: holds NaN or Inf, need finite values")
    if visible == "bernoulli" and (low < 0 or high > 1):
        raise ValueError(
            f"visible: got 'bernoulli', but {name} goes from {low:g} to {high:g}; need values in "
            "[0, 1], or 'gaussian'"
        )
    return images
