"""How a sparse matrix is kept, shared by every implementation of the sparse ops.

ELL: a matrix ``[m,n]`` whose rows have at most K entries is ``index [m,K]`` (columns) and
``value [m,K]``. The columns of a row increase; a row with fewer than K entries repeats its last
column, and what ``value`` holds there (0, by convention) is never read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """The entries of a matrix (or of its transpose) row by row, int32.

    Row r has the entries ``start[r] .. start[r+1]-1`` (``start [rows+1]``); entry e stands in
    column ``column[e]`` and its value at ``place[e]`` of the flat ``value`` (None: at e itself).
    """

    start: Tensor
    column: Tensor
    place: Tensor | None
    columns: int

    @property
    def rows(self) -> int:
        return self.start.shape[0] - 1


@dataclass(frozen=True, eq=False)
class EllPattern:
    """Where the entries of an m x n matrix are: ``index`` int32 ``[m,K]``, checked and contiguous.

    Made by :func:`hfcore.bindings.sparse.ell_pattern`. The orders in which the kernels walk through
    the entries are built at the first use and kept.
    """

    index: Tensor
    n: int
    _moved: dict[torch.device, EllPattern] = field(default_factory=dict, repr=False)

    @property
    def m(self) -> int:
        return self.index.shape[0]

    @property
    def K(self) -> int:
        return self.index.shape[1]

    @property
    def device(self) -> torch.device:
        return self.index.device

    @cached_property
    def present(self) -> Tensor | None:
        """Bool ``[m,K]``, False where a row has no further entry; None if all rows have K."""
        first = torch.ones_like(self.index[:, :1], dtype=torch.bool)
        kept = torch.cat([first, self.index[:, 1:] != self.index[:, :-1]], dim=1)
        return None if bool(kept.all()) else kept

    @cached_property
    def rows(self) -> Rows:
        """The matrix row by row, columns increasing."""
        if self.present is None:
            start = torch.arange(0, self.index.numel() + 1, self.K, device=self.device)
            return Rows(start.int(), self.index.reshape(-1), None, self.n)
        place = self.present.reshape(-1).nonzero().squeeze(1)
        column = self.index.reshape(-1)[place]
        return Rows(_starts(self.present.sum(1)), column, place.int(), self.n)

    @cached_property
    def transposed(self) -> Rows:
        """The transpose row by row: for each column its rows, increasing."""
        rows = self.rows
        E = rows.column.shape[0]
        order = rows.column.argsort(stable=True)
        counts = torch.bincount(rows.column, minlength=self.n)
        places = torch.arange(E, device=self.device) if rows.place is None else rows.place
        place = places[order].int()
        return Rows(_starts(counts), place // self.K, place, self.m)

    def to(self, device: torch.device) -> EllPattern:
        """The same pattern on another device; kept, so that its orders are built there once."""
        if device == self.device:
            return self
        if device not in self._moved:
            self._moved[device] = EllPattern(self.index.to(device), self.n)
        return self._moved[device]


def _starts(counts: Tensor) -> Tensor:
    """int32 ``[rows+1]``: where each row's entries begin, from how many it has."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
