"""How functions of the compiled module are given their arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # not in its __all__


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function`` of the arguments, tensors ``[…]`` on the CPU as capsules.

    Given a tensor, the module would call its ``__dlpack__``: Python, and 2 µs an array.
    """
    return function(*(to_dlpack(a) if isinstance(a, Tensor) else a for a in arguments))
