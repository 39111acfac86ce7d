"""What every problem offers to training, and the pieces that problems share."""

from __future__ import annotations

from collections.abc import Callable
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


@runtime_checkable
class Problem(Protocol):
    """A source of fresh sequences with a matching loss and a zero-one criterion."""

    name: str
    input_size: int
    output_size: int
    loss: Loss

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> Batch:
        """``size`` fresh sequences of one length, drawn from ``generator`` only."""
        ...

    def wrong(self, s: Tensor, batch: Batch) -> Tensor:
        """Zero-one error of each sequence, bool ``[B]``, from the outputs ``s [T,B,k]``."""
        ...

    def config(self) -> dict[str, Any]:
        """JSON-able: ``name`` and the options from which :func:`create` rebuilds the problem."""
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
        raise ValueError(f"size: got {size}, need at least 1 sequence")
    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"generator: got {type(generator).__name__}, need a numpy.random.Generator")
    if dtype not in _NUMPY_DTYPE:
        raise TypeError(f"dtype: got {dtype}, need torch.float32 or torch.float64")
    return _NUMPY_DTYPE[dtype]
