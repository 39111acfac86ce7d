"""Cases at hand, for the policies of ``hf.minibatches``: arrays, or sequences of unequal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hfcore.batches import Batch

# Sequences padded together are at least this share of the longest of them.
BUCKET = 0.8
# Axes of a tensor are fewer.
MAX_AXIS = 64
# Batches of a pass that are sorted by length together.
POOL = 16


class Cases(Protocol):
    """A fixed set of cases that batches are made of."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Batch:
        """The cases of ``index`` (int64 ``[B]``) in this order, as one batch."""

    def parts(self, start: int, end: int) -> Batch | list[Batch]:
        """Cases start … end−1, around the end of the data where they pass it.

        Sequences of very different lengths come as several batches.
        """

    def permuted(self, order: Tensor) -> Cases:
        """The same cases in another order, int64 ``[N]``."""

    def to(self, device: torch.device) -> Cases:
        """The same cases on a device."""

    def batched(self, order: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """``order``, int64 ``[N]``, arranged so that batches of ``size`` need little padding."""


@dataclass(frozen=True)
class ArrayCases:
    """Cases along an axis of arrays: ``inputs``' axis, and that of ``targets`` and ``mask``.

    Raises ValueError naming what is wrong: no case, numbers that differ, a mask that is not the
    leading axes of the targets.
    """

    batch: Batch
    input_dim: int = 0
    target_dim: int = 0

    def __post_init__(self) -> None:
        for name, value in self.batch._asdict().items():
            if not isinstance(value, Tensor) and not (name == "mask" and value is None):
                raise TypeError(f"{name}: got {type(value).__name__}, need a torch.Tensor")
        cases = _count("inputs", self.batch.inputs, self.input_dim)
        targets, mask = self.batch.targets, self.batch.mask
        found = _count("targets", targets, self.target_dim)
        if found != cases:
            raise ValueError(
                f"targets: got {found} cases, need {cases} like the inputs (along axis "
                f"{self.target_dim} of the targets, {self.input_dim} of the inputs)"
            )
        if cases == 0:
            raise ValueError("inputs: got no cases, need at least 1")
        if mask is not None and (
            mask.ndim <= self.target_dim
            or mask.ndim > targets.ndim
            or mask.shape != targets.shape[: mask.ndim]
        ):
            raise ValueError(
                f"mask: got shape {list(mask.shape)}, need the leading axes of the targets' "
                f"{list(targets.shape)}"
            )

    def __len__(self) -> int:
        return self.batch.inputs.shape[self.input_dim]

    def take(self, index: Tensor) -> Batch:
        return self._mapped(lambda t, dim: t.index_select(dim, index.to(t.device)))

    def parts(self, start: int, end: int) -> Batch:
        cases = len(self)
        if (start, end) == (0, cases):
            return self.batch

        def cut(t: Tensor, dim: int) -> Tensor:
            if end <= cases:
                return t.narrow(dim, start, end - start).contiguous()
            rest = t.narrow(dim, 0, end - cases)
            return torch.cat([t.narrow(dim, start, cases - start), rest], dim)

        return self._mapped(cut)

    def permuted(self, order: Tensor) -> ArrayCases:
        return ArrayCases(self.take(order), self.input_dim, self.target_dim)

    def to(self, device: torch.device) -> ArrayCases:
        moved = self._mapped(lambda t, dim: t.to(device))
        return ArrayCases(moved, self.input_dim, self.target_dim)

    def batched(self, order: Tensor, size: int, generator: torch.Generator) -> Tensor:
        return order

    def _mapped(self, cut: _Cut) -> Batch:
        """Inputs, targets and mask cut alike; a tensor that is inputs and targets stays one."""
        inputs, targets, mask = self.batch
        chosen = cut(inputs, self.input_dim)
        one = targets is inputs and self.input_dim == self.target_dim
        return Batch(
            chosen,
            chosen if one else cut(targets, self.target_dim),
            None if mask is None else cut(mask, self.target_dim),
        )


class _Cut(Protocol):
    def __call__(self, t: Tensor, dim: int, /) -> Tensor: ...


@dataclass(frozen=True)
class SequenceCases:
    """Sequences of unequal length, each (inputs ``[T_i,…]``, targets ``[T_i,…]``, mask ``[T_i]``).

    A batch of them is padded with zeros behind its sequences to the longest; its mask, bool, says
    what counts. ``batch_dim`` 1 gives ``[T,B,…]``, 0 gives ``[B,T,…]``. Without any unequal length
    and any mask batches have none. Structural damping of a recurrent net sees padded steps as well.
    """

    sequences: Sequence[tuple[Tensor, Tensor, Tensor]]
    batch_dim: int
    masked: bool

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def lengths(self) -> Tensor:
        """T_i, int64 ``[N]``."""
        return torch.tensor([len(x) for x, _, _ in self.sequences], device="cpu")

    def take(self, index: Tensor) -> Batch:
        chosen = [self.sequences[i] for i in index.tolist()]
        inputs, targets, mask = (
            pad_sequence([s[part] for s in chosen], batch_first=self.batch_dim == 0)
            for part in range(3)
        )
        return Batch(inputs, targets, mask if self.masked else None)

    def parts(self, start: int, end: int) -> Batch | list[Batch]:
        """The sequences by falling length, in as many batches as keep most steps unpadded."""
        index = torch.arange(start, end, device="cpu") % len(self)
        lengths = self.lengths[index]
        order = lengths.argsort(descending=True, stable=True)
        edges, longest = [0], 0
        for i, length in enumerate(lengths[order].tolist()):
            longest = longest or length
            if length < BUCKET * longest:
                edges.append(i)
                longest = length
        batches = [self.take(index[order[a:b]]) for a, b in pairwise([*edges, len(index)])]
        return batches[0] if len(batches) == 1 else batches

    def permuted(self, order: Tensor) -> SequenceCases:
        moved = [self.sequences[i] for i in order.tolist()]
        return SequenceCases(moved, self.batch_dim, self.masked)

    def to(self, device: torch.device) -> SequenceCases:
        moved = [(x.to(device), y.to(device), m.to(device)) for x, y, m in self.sequences]
        return SequenceCases(moved, self.batch_dim, self.masked)

    def batched(self, order: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """``order [N]`` sorted by length among ``POOL`` batches each.

        The batches then come in a new order.
        """
        lengths = self.lengths
        pools = order.split(POOL * size)
        sorted_ = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
        whole = sorted_[: len(order) // size * size].view(-1, size)
        mixed = whole[torch.randperm(len(whole), generator=generator, device="cpu")].flatten()
        return torch.cat([mixed, sorted_[len(mixed) :]])


def _count(name: str, t: Tensor, dim: int) -> int:
    if t.ndim <= dim:
        raise ValueError(f"{name}: got shape {list(t.shape)}, need cases along axis {dim}")
    return t.shape[dim]
