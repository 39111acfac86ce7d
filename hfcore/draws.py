"""What drawing cases takes: compiled loops, and the checks of what a draw is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfcore.arguments import number
from hfcore.bindings.checks import check_tensor

# Of a draw, and steps of a sequence: far more than a machine holds.
MOST_CASES = 2**31 - 1

_NUMPY_DTYPE: dict[torch.dtype, type[np.floating[Any]]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
}


class _Loop:
    """A function that numba compiles at its first call, which imports numba as well."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> None:
        self.dispatcher(*arguments)

    @functools.cached_property
    def dispatcher(self) -> Callable[..., None]:
        """What numba makes of the function."""
        from hfcore.compiled_loops import compiled  # numba is slow to import

        return compiled(self._function)


def compile_kernel(function: Callable[..., None]) -> Callable[..., None]:
    """``numba.njit`` without the GIL; compiles at the first call, cached on disk where possible."""
    return _Loop(function)


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


def unit_numbers(words: Tensor) -> Tensor:
    """Float64 ``[…]`` uniform on [0, 1), multiples of 2⁻⁵³, of ``words […]`` on 0 … 2⁶³ − 1.

    Every operation is exact, so that all devices give the same.
    """
    return (words >> 10).double() * 2.0**-53


def check_words(words: Tensor, each: int) -> int:
    """Check the ``words [K,each]`` of K counted batches; gives K."""
    check_tensor("words", words, ["K", each], dtype=torch.int64)
    return len(words)


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
