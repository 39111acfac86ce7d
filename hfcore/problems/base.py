"""What every problem offers to training, and the pieces that problems share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numba
import numpy as np
import torch
from torch import Tensor

from hfcore.batches import Batch
from hfcore.losses import Loss

_NUMPY_DTYPE: dict[torch.dtype, type[np.floating[Any]]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
}

TEST_BATCH = 1000  # cases of a test batch


@runtime_checkable
class Problem(Protocol):
    """A source of cases with a matching loss and a measure of error.

    It may also be a :class:`ZeroOne` and a :class:`FixedTest`.
    """

    name: str
    input_size: int
    output_size: int
    loss: Loss

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """``size`` cases drawn from ``generator`` only; sequences are fresh and of one length."""
        ...

    def errors(self, s: Tensor, batch: Batch) -> Tensor:
        """What Sutskever et al. (2013) count of each case, float64 ``[B]``, from the outputs ``s``.

        Tables 1 to 3: squared pixel errors; table 5: zero-one errors or wrong steps.
        """
        ...

    def config(self) -> dict[str, Any]:
        """JSON-able: ``name`` and the options from which :func:`create` rebuilds the problem."""
        ...


@runtime_checkable
class ZeroOne(Protocol):
    """What calls its cases right or wrong, and so can be solved."""

    def wrong(self, s: Tensor, batch: Batch) -> Tensor:
        """Zero-one error of each case, bool ``[B]``, from the outputs ``s [T,B,k]``."""
        ...


@runtime_checkable
class FixedTest(Protocol):
    """What is tested on given cases instead of fresh ones."""

    def test_set(self, size: int, dtype: torch.dtype = torch.float32) -> list[Batch]:
        """The same ``size`` cases whenever it is called, in batches of at most 1000."""
        ...


@runtime_checkable
class SequenceProblem(Problem, ZeroOne, Protocol):
    """A problem of sequences with a zero-one criterion, for recurrent nets."""

    centre: bool
    """Inputs, and the targets of regression problems, are reduced by their expected values."""
    esn_input_scale: float
    """Standard deviation of the input weights of an ESN start (Sutskever et al. 2013, table 4)."""

    @property
    def mean_target(self) -> Tensor:
        """Mean of the outputs that are scored, float64 ``[output_size]``, as the batches hold them.

        Class problems give the frequencies of the classes.
        """
        ...

    @property
    def bias_error(self) -> float:
        """Expected :meth:`errors` of outputs that do not depend on the inputs."""
        ...

    def mean_input(self, length: int) -> Tensor:
        """Expected inputs over all steps of a sequence of ``length`` steps, before centring.

        Float64 ``[input_size]``.
        """
        ...


def compile_kernel(function: Callable[..., None]) -> Callable[..., None]:
    """``numba.njit`` without the GIL; compiles at the first call, cached on disk where possible."""
    try:
        compiled: Callable[..., None] = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the install nor the user's cache folder is writable
        compiled = numba.njit(nogil=True)(function)
    return compiled


def check_draw(
    size: int, generator: np.random.Generator, dtype: torch.dtype
) -> type[np.floating[Any]]:
    """Check the arguments of :meth:`Problem.batch`; gives the numpy dtype."""
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"size: got {size!r}, need an int")
    if size < 1:
        raise ValueError(f"size: got {size}, need at least 1 case")
    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"generator: got {type(generator).__name__}, need a numpy.random.Generator")
    return numpy_dtype(dtype)


def numpy_dtype(dtype: torch.dtype) -> type[np.floating[Any]]:
    """The numpy dtype of the batches' real numbers."""
    if dtype not in _NUMPY_DTYPE:
        raise TypeError(f"dtype: got {dtype}, need torch.float32 or torch.float64")
    return _NUMPY_DTYPE[dtype]


def check_length(length: int, least: int, why: str) -> None:
    """Raise unless ``length`` is an int of at least ``least``."""
    if not isinstance(length, int) or isinstance(length, bool):
        raise TypeError(f"length: got {length!r}, need an int")
    if length < least:
        raise ValueError(f"length: got {length}, need at least {least} so that {why}")


def check_flag(name: str, value: bool) -> bool:
    """``value``, which must be a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}, need a bool")
    return value


def check_outputs(s: Tensor, shape: Sequence[int], like: str) -> None:
    """Raise unless ``s`` has this shape, apart from a leading group axis."""
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
