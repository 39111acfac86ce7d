"""torch.autocast around evaluations: no cast outlives the parameters that it was made of.

Autocast keeps what it casts of a parameter until its context ends, whatever is written to the
parameter meanwhile. An optimiser that evaluates a model at several θ inside of one context would
read the first of them again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

_NOTHING = nullcontext()


@contextmanager
def fresh_casts() -> Iterator[None]:
    """Inside, casts are made anew and not kept; after it, none from before is found again."""
    cached = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        torch.clear_autocast_cache()


def no_casts(device: torch.device) -> AbstractContextManager[object]:
    """Derivatives are taken in the dtypes of what was evaluated, not cast once more."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return _NOTHING


class CastState:
    """Which autocast was on for a device, so that a later evaluation is the same function."""

    def __init__(self, device: torch.device) -> None:
        self._type = device.type
        self.enabled: bool = torch.is_autocast_enabled(self._type)
        self.dtype: torch.dtype | None = (
            torch.get_autocast_dtype(self._type) if self.enabled else None
        )

    @property
    def precision(self) -> float:
        """Relative rounding error of casts, 0 where there are none."""
        return 0.0 if self.dtype is None else torch.finfo(self.dtype).eps

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, casts are those of then."""
        now = torch.is_autocast_enabled(self._type)
        with ExitStack() as stack:
            if now or self.enabled:
                stack.enter_context(
                    torch.autocast(self._type, dtype=self.dtype, enabled=self.enabled)
                )
            yield
