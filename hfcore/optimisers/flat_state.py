"""Parameters and their velocities in flat memory, so that one call updates all of them.

Flat memory is never relied on: ``.to()``, ``load_state_dict`` and ``deepcopy`` may break it up.
Before every use it is looked at: where it was broken up it is made again, and neighbours in memory
are joined to pieces; what must lie alone is a piece of its own.
The kernels give an element the same bits wherever it stands, so only the speed depends on it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hfcore.bindings.momentum import lookahead_point
from hfcore.flat_memory import adjacent, cut, joined, seen_elsewhere, side_by_side


class Piece:
    """Parameters that one call updates: ``theta``, ``velocity`` ``[1,N]``.

    ``copied``: theta is a copy, of a parameter that is not contiguous in memory.
    """

    def __init__(
        self, parameters: list[Tensor], theta: Tensor, velocity: Tensor, *, copied: bool
    ) -> None:
        self.parameters, self.theta, self.velocity = parameters, theta, velocity
        self.copied = copied
        self._gradients = SideBySide()
        self._point: Tensor | None = None
        self._views: list[Tensor] = []

    @property
    def own(self) -> list[Tensor]:
        """The parameters' values, each in its own shape ``[…]``, without autograd."""
        return [p.data for p in self.parameters]

    def gradient(self) -> Tensor:
        """The parameters' gradients, ``[1,N]``; a copy unless they lie side by side."""
        return self._gradients.view([p.grad for p in self.parameters if p.grad is not None])

    def look_ahead(self, momentum: float) -> list[Tensor]:
        """θ + μv in the parameters' shapes ``[…]``, in memory that the next call overwrites."""
        if self._point is None:
            self._views = side_by_side(self.parameters)
            self._point = joined(self._views)
            assert self._point is not None
        lookahead_point(self.theta, self.velocity, momentum, out=self._point)
        return self._views

    @property
    def point(self) -> Tensor:
        """What :meth:`look_ahead` made, ``[1,N]``."""
        assert self._point is not None
        return self._point

    def hold(self, values: list[Tensor]) -> None:
        """Let the parameters be these, each of its shape ``[…]``.

        Autograd graphs that hold others end.
        """
        for p, value in zip(self.parameters, values, strict=True):
            p.data = value
        self._changed()

    def wrote(self) -> None:
        """theta was written: brings a copy back, and ends autograd graphs that hold old values."""
        if self.copied:
            (p,) = self.parameters
            p.detach().copy_(self.theta.view(p.shape))
        self._changed()

    def _changed(self) -> None:
        torch.autograd.graph.increment_version(self.parameters)
        torch.clear_autocast_cache()  # torch.autocast would go on with casts of the old values


class Layout:
    """Where the parameters of a group and their velocities lie, after bringing them together.

    ``velocities[i]`` belongs to ``parameters[i]``; a given one of None is new, and zero.
    """

    def __init__(self, parameters: list[Tensor], velocities: list[Tensor | None]) -> None:
        found = {p: v for p, v in zip(parameters, velocities, strict=True) if v is not None}
        flatten(parameters, found)
        self.pieces = pieces(parameters, found)
        self.parameters = parameters
        self.velocities = [found[p] for p in parameters]
        self._places = _places(parameters)
        self._lasting = not any(piece.copied for piece in self.pieces)

    def holds(self, parameters: list[Tensor], velocities: list[Tensor | None]) -> bool:
        """Whether these, each ``[…]``, lie as they lay.

        The pieces keep their memory, so no other can be there.
        """
        return (
            self._lasting
            and are_same(parameters, self.parameters)
            and are_same(velocities, self.velocities)
            and _places(parameters) == self._places
        )

    def some(self, parameters: list[Tensor]) -> list[Piece]:
        """Pieces ``[1,N]`` of some of the parameters."""
        if len(parameters) == len(self.parameters):
            return self.pieces
        return pieces(parameters, dict(zip(self.parameters, self.velocities, strict=True)))

    def points(self) -> dict[Tensor, Tensor]:
        """What :meth:`Piece.look_ahead` made, by parameter, each of its shape ``[…]``."""
        return {
            p: view
            for piece in self.pieces
            for p, view in zip(piece.parameters, _split(piece.point, piece), strict=True)
        }


def are_same(a: Sequence[object], b: Sequence[object]) -> bool:
    """Whether these are the same objects, in the same order."""
    return len(a) == len(b) and all(map(operator.is_, a, b))


def _places(parameters: list[Tensor]) -> tuple[list[Any], ...]:
    """How they lie; a velocity of another dtype is brought to its parameter's."""
    return (
        [p.data_ptr() for p in parameters],
        [p.shape for p in parameters],
        [p.is_contiguous() for p in parameters],
        [p.dtype for p in parameters],
    )


def flatten(parameters: Sequence[Tensor], velocities: dict[Tensor, Tensor]) -> None:
    """Move parameters and velocities of one dtype and device side by side, in this order.

    ``velocities`` by parameter, of its shape ``[…]``, are brought to the parameters' dtype and
    device; a new one is zero. Nobody can tell: each keeps a storage of its own. What somebody else
    would miss is left where it is: parameters that share memory with another of these, with views,
    arrays or other processes, and such as are not contiguous.
    """
    for p in parameters:
        if p not in velocities:
            velocities[p] = torch.zeros(p.shape, dtype=p.dtype, device=p.device)
        elif velocities[p].dtype != p.dtype or velocities[p].device != p.device:
            velocities[p] = velocities[p].to(p.device, p.dtype)
    for bucket in _buckets(parameters):
        for i, part in _moved(bucket).items():
            bucket[i].data = part
        for i, part in _moved([velocities[p] for p in bucket]).items():
            velocities[bucket[i]] = part


def _moved(tensors: Sequence[Tensor]) -> dict[int, Tensor]:
    """Side by side, by their number, those of the tensors that are not yet and may be moved."""
    if joined(tensors) is not None:
        return {}
    free = [i for i, t in enumerate(tensors) if not seen_elsewhere(t)]
    some = [tensors[i] for i in free]
    if not some or joined(some) is not None:
        return {}
    return dict(zip(free, side_by_side(some), strict=True))


def pieces(parameters: Iterable[Tensor], velocities: dict[Tensor, Tensor]) -> list[Piece]:
    """The parameters in as few pieces ``[1,N]`` as their places in memory allow.

    ``velocities`` are by parameter; one that must be contiguous is exchanged there.
    """
    found: list[Piece] = []
    run: list[Tensor] = []

    def close() -> None:
        if not run:
            return
        theta = joined([p.data for p in run])
        velocity = joined([velocities[p] for p in run])
        copied = theta is None  # only a parameter by itself
        if theta is None:
            theta = run[0].detach().reshape(1, -1).clone()
        if velocity is None:
            velocities[run[0]] = velocities[run[0]].contiguous()
            velocity = velocities[run[0]].view(1, -1)
        found.append(Piece(list(run), theta, velocity, copied=copied))
        run.clear()

    for p in parameters:
        if p.numel() == 0:
            continue
        if run and not (
            adjacent(run[-1].data, p.data) and adjacent(velocities[run[-1]], velocities[p])
        ):
            close()
        run.append(p)
    close()
    return found


class SideBySide:
    """Tensors as one ``[1,N]``, asked for again and again: where they lie is looked at once.

    What is found is kept, with its memory, so no other tensor can come to lie there unseen.
    """

    def __init__(self) -> None:
        self._places: tuple[list[Any], ...] = ()
        self._found = torch.empty(0, device="cpu")

    def view(self, tensors: Sequence[Tensor]) -> Tensor:
        """One ``[1,N]``: a view where the tensors lie side by side in memory, else a copy.

        The next call overwrites the copy. Without autograd.
        """
        if len(tensors) == 1 and tensors[0].is_contiguous() and not tensors[0].is_neg():
            return tensors[0].detach().view(1, -1)
        places = (
            [t.data_ptr() for t in tensors],
            [t.numel() for t in tensors],
            [t.dtype for t in tensors],
            [t.is_contiguous() and not t.is_neg() for t in tensors],
        )
        if places != self._places:
            found = joined(tensors)
            if found is None:
                return self._copied(tensors)
            self._places, self._found = places, found
        return self._found

    def _copied(self, tensors: Sequence[Tensor]) -> Tensor:
        first, N = tensors[0], sum(t.numel() for t in tensors)
        found = self._found
        held = self._places == () and found.dtype == first.dtype and found.device == first.device
        if not held or found.numel() != N:
            self._found = torch.empty(1, N, dtype=first.dtype, device=first.device)
        self._places = ()
        return torch.cat([t.detach().reshape(-1) for t in tensors], out=self._found[0]).view(1, -1)


def _buckets(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Those that may move, by dtype and device."""
    shared = _sharing_memory(parameters)
    buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for p in parameters:
        among_processes = p.device.type == "cpu" and p.is_shared()
        if p.is_contiguous() and p.numel() > 0 and p not in shared and not among_processes:
            buckets.setdefault((p.dtype, p.device), []).append(p)
    return list(buckets.values())


def _sharing_memory(parameters: Sequence[Tensor]) -> set[Tensor]:
    """Parameters whose bytes are also another's; to move one would untie them."""
    extents = []
    for p in parameters:
        if p.numel() > 0:
            last = sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True))
            start = p.data_ptr()
            extents.append((start, start + (last + 1) * p.element_size(), p))
    extents.sort(key=lambda extent: extent[:2])
    shared: set[Tensor] = set()
    reach, owner = -1, None
    for start, end, p in extents:
        if start < reach and owner is not None:
            shared.update((p, owner))
        if end > reach:
            reach, owner = end, p
    return shared


def _split(flat: Tensor, piece: Piece) -> list[Tensor]:
    """Views of ``flat [1,N]`` in the shapes of the piece's parameters."""
    return cut(flat, piece.parameters)
