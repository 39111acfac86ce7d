"""Where a form puts what it computed, if it did not compute it there."""

from __future__ import annotations

from torch import Tensor


def filled(out: Tensor | None, value: Tensor, G: int, accumulate: bool = False) -> Tensor:
    """``value [1 or G,...]`` on the whole group ``[G,...]``, in (or added to) ``out`` if given."""
    if value is out:
        return value
    value = value.expand(G, *value.shape[1:])
    if out is None:
        return value
    return out.add_(value) if accumulate else out.copy_(value)


def whole(out: Tensor | None, G: int, *arrays: Tensor | None) -> Tensor | None:
    """``out [G,...]`` if a kernel can fill it: not where one net stands for all G."""
    distinct = max(1 if a.stride(0) == 0 else a.shape[0] for a in arrays if a is not None)
    return out if distinct == G else None
