"""A curvature as an operator keeps it: one thread inside at a time, and only for its own data."""

from __future__ import annotations

import threading
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from hfcore.objective import Curvature, ProductTerms

# One for each objective, whose buffers all its curvatures share.
_LOCKS = WeakIdKeyDictionary()
_LOCKS_LOCK = threading.Lock()


class GuardedCurvature:
    """The products and the diagonal of a curvature, and the rest of it as it is.

    Other threads wait while one is inside. Raises ValueError where a tensor of ``data`` was written
    to since this was made: products read cached activations beside the data itself.
    """

    def __init__(self, curvature: Curvature, objective: object, data: Any) -> None:
        self._curvature = curvature
        self._lock = _lock_of(getattr(objective, "given", objective))
        self._versions = [
            (t, t._version)
            for t in tree_leaves(data)
            if isinstance(t, Tensor) and not t.is_inference()
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._curvature, name)

    def _check(self) -> None:
        for t, version in self._versions:
            if t._version != version:
                raise ValueError(
                    f"inputs: a tensor of shape {list(t.shape)} was written to since the operator "
                    "was built; need data that stays (a copy), or a new operator"
                )

    def product(self, v: Tensor, **terms: Unpack[ProductTerms]) -> Tensor:
        """The product ``[N]`` of the guarded curvature for ``v [N]``."""
        with self._lock:
            self._check()
            return self._curvature.product(v, **terms)

    def products(self, V: Tensor, damping: float = 0.0, structural: float = 0.0) -> Tensor:
        with self._lock:
            self._check()
            return self._curvature.products(V, damping, structural)

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        with self._lock:
            self._check()
            return self._curvature.diagonal(probes, generator)


def _lock_of(objective: object) -> Any:
    with _LOCKS_LOCK:
        try:
            if objective not in _LOCKS:
                _LOCKS[objective] = threading.RLock()
            return _LOCKS[objective]
        except TypeError:  # an object that cannot be referred to weakly
            return threading.RLock()
