"""Buffers and parameters that evaluations move: then loss, gradient and products belong to several
functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

MOVES_SINGULAR_VECTORS = (
    "moves its estimate of the singular vectors in every evaluation in train mode, so that loss, "
    "gradient and curvature products would not belong to one function"
)


@contextmanager
def unwritten(names: Sequence[str], parameters: Sequence[Tensor]) -> Iterator[None]:
    """Raises ValueError after it, naming one of ``parameters […]`` that was written to inside.

    A forward that clips its weights is a function of the clipped ones, and autograd takes the
    gradient as if it were one of θ.
    """
    looked_at = [(n, p) for n, p in zip(names, parameters, strict=True) if not p.is_inference()]
    before = [p._version for _, p in looked_at]
    yield
    for (name, p), version in zip(looked_at, before, strict=True):
        if p._version != version:
            raise ValueError(
                f"model: parameter {name} is written to in every evaluation, so that loss, "
                "gradient and curvature products would not belong to one function; write to it "
                "between steps, or make it another tensor (torch.nn.utils.parametrize)"
            )


class SteadyBuffers:
    """Looks at a module's real buffers after every evaluation.

    One that was written twice with different values is a statistic that evaluations move. What is
    written again with the values it had (a cache) is none.
    """

    def __init__(self) -> None:
        self._written: dict[tuple[int, str], Tensor] = {}

    @contextmanager
    def watched(self, parts: Sequence[nn.Module]) -> Iterator[None]:
        """Raises ValueError after it, naming a buffer of ``parts`` that has moved a second time."""
        before = [(b, b._version) for _, _, b in _real(parts)]
        yield
        if torch._C._functorch.maybe_current_level() is not None:  # within a jvp or vmap
            return
        after = _real(parts)
        if len(after) == len(before) and all(
            b is old and b._version == version
            for (_, _, b), (old, version) in zip(after, before, strict=True)
        ):
            return
        known = {id(b): version for b, version in before}
        for part, name, b in after:
            if known.get(id(b)) != b._version:
                self._check(part, name, b)

    def _check(self, part: nn.Module, name: str, buffer: Tensor) -> None:
        last = self._written.get((id(part), name))
        self._written[id(part), name] = buffer.detach().clone()
        if last is not None and not (
            last.shape == buffer.shape and torch.equal(last.to(buffer), buffer)
        ):
            raise ValueError(
                f"model: buffer {name!r} of {type(part).__name__} moves in every evaluation, so "
                "that loss, gradient and curvature products would not belong to one function; call "
                ".eval() on its module, or keep it fixed during a step"
            )


def _real(parts: Sequence[nn.Module]) -> list[tuple[nn.Module, str, Tensor]]:
    """The real buffers of these modules."""
    return [
        (part, name, b)
        for part in parts
        if part._buffers
        for name, b in part._buffers.items()
        if b is not None and b.is_floating_point()
    ]


def moves_singular_vectors(part: nn.Module) -> bool:
    """Whether spectral normalisation, old or new, would take a power iteration now."""
    if not part.training:
        return False
    old = any(isinstance(hook, SpectralNorm) for hook in part._forward_pre_hooks.values())
    return old or isinstance(part, _SpectralNorm)
