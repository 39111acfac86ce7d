"""Loops compiled by numba, which is slow to import: it is when the first of them is called."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import numba
from numba.core import caching

logger = logging.getLogger("hfcore")

FunctionCache: Any = caching.FunctionCache  # numba has few types


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


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """``numba.njit`` without the GIL, cached on disk where possible."""
    loop: Callable[..., None] = numba.njit(nogil=True)(function)
    # RuntimeError: neither the install nor the user's cache folder is writable.
    with contextlib.suppress(RuntimeError):
        cache = _CacheIfPossible(function)
        loop._cache = cache  # type: ignore[attr-defined]
    return loop
