"""What drawing cases takes: compiled loops, and the checks of what a draw is asked for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch
from numba.core import caching
from torch import Tensor

from hfcore.arguments import number

logger = logging.getLogger("hfcore")

# Of a draw, and steps of a sequence: far more than a machine holds.
MOST_CASES = 2**31 - 1

FunctionCache: Any = caching.FunctionCache  # numba has few types

_NUMPY_DTYPE: dict[torch.dtype, type[np.floating[Any]]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
}


class _CacheIfPossible(FunctionCache):  # type: ignore[misc]
    """Numba's cache, passed over where a file of it is torn or cannot be written.

    A torn one is written again. Numba itself raises what reading or writing raised, without the
    name of the file.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # unpickling a torn file may raise anything
            logger.warning("%s: a compiled loop cannot be read: %r", self.cache_path, error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:
            try:
                self.flush()  # an index that cannot be read is replaced
                super().save_overload(sig, data)
            except Exception as error:  # a full or read-only disk
                logger.warning("%s: a compiled loop cannot be kept: %r", self.cache_path, error)


def compile_kernel(function: Callable[..., None]) -> Callable[..., None]:
    """``numba.njit`` without the GIL; compiles at the first call, cached on disk where possible."""
    compiled: Callable[..., None] = numba.njit(nogil=True)(function)
    # RuntimeError: neither the install nor the user's cache folder is writable.
    with contextlib.suppress(RuntimeError):
        cache = _CacheIfPossible(function)
        compiled._cache = cache  # type: ignore[attr-defined]
    return compiled


def check_draw(
    size: int, generator: np.random.Generator, dtype: torch.dtype
) -> type[np.floating[Any]]:
    """Check the arguments of :meth:`Problem.batch`; gives the numpy dtype."""
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"size: got {size!r}, need an int")
    if not 1 <= size <= MOST_CASES:
        raise ValueError(f"size: got {size}, need at least 1 case and at most {MOST_CASES}")
    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"generator: got {type(generator).__name__}, need a numpy.random.Generator")
    return numpy_dtype(dtype)


def numpy_dtype(dtype: torch.dtype) -> type[np.floating[Any]]:
    """The numpy dtype of the batches' real numbers."""
    if not isinstance(dtype, torch.dtype) or dtype not in _NUMPY_DTYPE:
        raise TypeError(f"dtype: got {dtype!r}, need torch.float32 or torch.float64")
    return _NUMPY_DTYPE[dtype]


def check_length(length: int, least: int, why: str) -> None:
    """Raise unless ``length`` is an int of at least ``least``."""
    if not isinstance(length, int) or isinstance(length, bool):
        raise TypeError(f"length: got {length!r}, need an int")
    if length > MOST_CASES:
        raise ValueError(f"length: got {length}, need at most {MOST_CASES}")
    if length < least:
        raise ValueError(f"length: got {length}, need at least {least} so that {why}")


def check_flag(name: str, value: bool) -> bool:
    """``value``, which must be a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}, need a bool")
    return value


def check_scale(name: str, value: float) -> None:
    """Raise TypeError or ValueError unless ``value`` is a finite number of at least 0."""
    if not 0.0 <= number(name, value) < float("inf"):
        raise ValueError(f"{name}: got {value!r}, need a finite number of at least 0")


def check_outputs(s: Tensor, shape: Sequence[int], like: str, targets: Tensor) -> None:
    """Raise TypeError unless ``s`` is real, ValueError unless it is on the targets' device and has
    this shape, or ``[G,*shape]`` with a group axis."""
    if not isinstance(s, Tensor):
        raise TypeError(f"s: got {type(s).__name__}, need a torch.Tensor")
    if not s.is_floating_point() or s.layout != torch.strided:
        raise TypeError(f"s: got {s.dtype} ({s.layout}), need a dense floating tensor")
    if s.device != targets.device:
        raise ValueError(f"s: is on {s.device}, need {targets.device} like the targets")
    if list(s.shape[-3:]) != list(shape) or s.ndim > 4:
        raise ValueError(f"s: got shape {list(s.shape)}, need {list(shape)} {like}")


@compile_kernel
def subtract_mean(inputs: np.ndarray, mean: np.ndarray) -> None:
    """``inputs [T,B,n] -= mean [n]`` in place; NumPy is slow where the last axis is this short."""
    T, B, n = inputs.shape
    for t in range(T):
        for b in range(B):
            for i in range(n):
                inputs[t, b, i] -= mean[i]
