"""Buffers that evaluations move: then loss, gradient and products belong to several functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

MOVES_SINGULAR_VECTORS = (
    "moves its estimate of the singular vectors in every evaluation in train mode, so that loss, "
    "gradient and curvature products would not belong to one function"
)


class SteadyBuffers:
    """Looks at a module's real buffers after every evaluation.

    One that was written twice with different values is a statistic that evaluations move. What is
    written again with the values it had (a cache) is none.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self._module = module
        self._written: dict[str, Tensor] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raises ValueError after it, naming a buffer that has moved for the second time."""
        if self._module is None:
            yield
            return
        before = {name: (b, b._version) for name, b in self._real()}
        yield
        if torch._C._functorch.maybe_current_level() is not None:  # within a jvp or vmap
            return
        for name, b in self._real():
            old, version = before.get(name, (None, 0))
            if old is not b or version != b._version:
                self._check(name, b)

    def _real(self) -> Iterator[tuple[str, Tensor]]:
        assert self._module is not None
        return ((n, b) for n, b in self._module.named_buffers() if b.is_floating_point())

    def _check(self, name: str, buffer: Tensor) -> None:
        last = self._written.get(name)
        self._written[name] = buffer.detach().clone()
        if last is not None and not (
            last.shape == buffer.shape and torch.equal(last.to(buffer), buffer)
        ):
            raise ValueError(
                f"model: buffer {name!r} moves in every evaluation, so that loss, gradient and "
                "curvature products would not belong to one function; call .eval() on its module, "
                "or keep it fixed during a step"
            )


def moves_singular_vectors(part: nn.Module) -> bool:
    """Whether spectral normalisation, old or new, would take a power iteration now."""
    if not part.training:
        return False
    old = any(isinstance(hook, SpectralNorm) for hook in part._forward_pre_hooks.values())
    return old or isinstance(part, _SpectralNorm)
