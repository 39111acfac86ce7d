"""A CG solve whose scalars stay on the device: buffers, launches and the host's look.

:meth:`DeviceSolve.begin` and :meth:`DeviceSolve.iterate` only enqueue: they allocate nothing and
wait for nothing, so a CUDA graph can capture them (if the product can be captured). Only
:meth:`DeviceSolve.look` waits. Kernels and buffers: ``kernels/conjugate_gradient/gpu_triton.py``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfcore.bindings.checks import check_positive, check_tensor
from hfcore.bindings.dispatch import choose
from hfcore.bindings.graphs import Graphs, here, recordable
from hfcore.bindings.nvtx import annotate
from hfcore.bindings.triton_backend import serving

# (v, out, stop): out = A v, both [N]; where the int32 flag is not zero nobody reads out.
StoppableProduct = Callable[[Tensor, Tensor, Tensor], Tensor]

OP = "conjugate_gradient.cg_update"

# Recordings of one workspace, workspaces that are kept, and bytes up to which one is.
MOST_RECORDINGS, MOST_KEPT, MOST_BYTES = 4, 2, 64 << 20


def serves(b: Tensor) -> bool:
    """Whether CG on vectors like ``b [N]`` is to run with its scalars on the device."""
    return choose(OP, b) == "cuda"


class Look(NamedTuple):
    """What the host sees: stop flag (0: going on), iterations and products done."""

    stop: int
    iterations: int
    products: int


class DeviceSolve:
    """Buffers of a solve of A x = b on vectors like ``b [N]``, for any number of solves.

    ``lookback[i]`` is k of the progress rule at iteration i (0: does not apply), for i up to the
    maximum of iterations; ``kept`` holds the iterations whose iterate is copied aside.
    ``preconditioner [N]`` is a positive diagonal, ``inverse(r, z)`` in its place writes M⁻¹ r to z
    for a positive definite M. ``recorded``: iterations are replayed from a CUDA
    graph, so those of one ``key`` (:meth:`iterate`) all have the product of the first, whose
    launches can be recorded. Raises TypeError or ValueError by name.
    """

    def __init__(
        self,
        b: Tensor,
        *,
        lookback: Sequence[int],
        kept: Sequence[int],
        tolerance: float,
        residual: float,
        preconditioner: Tensor | None = None,
        inverse: Callable[[Tensor, Tensor], object] | None = None,
        recorded: bool = False,
    ) -> None:
        check_tensor("b", b, ["N"])
        if b.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"b: got {b.dtype}, need torch.float32 or torch.float64")
        N = b.shape[0]
        check_positive(N=N)
        self.device, self._N = b.device, N
        self.has_grown = False
        self._graphs: Graphs | None = None
        if recorded and recordable(b.device):
            self._graphs = Graphs(MOST_RECORDINGS)
        # Imported here: it needs Triton.
        from hfcore.kernels.conjugate_gradient import gpu_triton as kernels

        self._kernels: ModuleType = kernels
        size = -(-N // kernels.PADDING) * kernels.PADDING
        M = None if preconditioner is None else b.new_ones(size)
        self._inverse: Callable[[Tensor, Tensor], object] | None = None
        if inverse is not None:
            self._inverse = lambda r, z: inverse(r[:N], z[:N])
        x, r, p, Ap, rhs = (b.new_zeros(size) for _ in range(5))
        self._w = kernels.Workspace(
            x=x,
            r=r,
            z=r if M is None and inverse is None else b.new_zeros(size),
            p=p,
            Ap=Ap,
            b=rhs,
            M=M,
            **self._tables(b, size, len(lookback), len(kept)),
            partial=b.new_empty(4, kernels.BLOCKS, dtype=torch.float64),
            scalars=b.new_zeros(kernels.SCALARS, dtype=torch.float64),
            counters=torch.zeros(kernels.COUNTERS, dtype=torch.int32, device=b.device),
        )
        self.load(lookback, kept, tolerance, residual, preconditioner)

    @property
    def sizes(self) -> Hashable:
        """What solves that use the same memory agree in, see :func:`sizes_of`."""
        w = self._w
        return sizes_of(self.x, len(w.history), len(w.snapshots), w.M is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(t.nbytes for t in vars(self._w).values() if t is not None)

    def load(
        self,
        lookback: Sequence[int],
        kept: Sequence[int],
        tolerance: float,
        residual: float,
        preconditioner: Tensor | None,
    ) -> None:
        """Make ready for a solve of these ``sizes``, whatever the last one has left.

        Arguments as of the class, ``preconditioner [N]`` among them.
        """
        w, N = self._w, self._N
        self._fill_tables(w, lookback, kept)
        w.scalars.copy_(
            torch.tensor([0.0, 0.0, tolerance, residual], dtype=torch.float64, device="cpu")
        )
        for vector in (w.x, w.r, w.z, w.p, w.Ap, w.b):
            vector[N:].zero_()  # an infinite α leaves NaN there
        if preconditioner is not None:
            assert w.M is not None
            check_tensor("preconditioner", preconditioner, [N], like=w.M)
            w.M[:N].copy_(preconditioner)

    def _tables(self, like: Tensor, size: int, length: int, kept: int) -> dict[str, Tensor]:
        """What is as long as the maximum of iterations, and the iterates kept."""
        return {
            "snapshots": like.new_empty(kept, size),
            "history": like.new_zeros(length, dtype=torch.float64),
            "lookback": like.new_empty(length, dtype=torch.int32),
            "slots": like.new_empty(length, dtype=torch.int32),
        }

    def _fill_tables(self, w: Any, lookback: Sequence[int], kept: Sequence[int]) -> None:
        self.slot_of = {i: slot for slot, i in enumerate(kept)}
        slots = [self.slot_of.get(i, -1) for i in range(len(lookback))]
        for table, values in ((w.lookback, lookback), (w.slots, slots)):
            table.copy_(torch.tensor(values, dtype=torch.int32, device="cpu"))

    def grow(self, lookback: Sequence[int], kept: Sequence[int]) -> None:
        """Go on with a solve that ended at its maximum of iterations, to that of ``lookback``.

        ``kept`` holds iterations beyond the old maximum; earlier snapshots are gone.
        """
        w = self._w
        tables = self._tables(w.x, w.x.numel(), len(lookback), len(kept))
        tables["history"][: w.history.numel()] = w.history
        self._w, self.has_grown = replace(w, **tables), True
        self._fill_tables(self._w, lookback, kept)
        if self._graphs is not None:
            self._graphs = Graphs(MOST_RECORDINGS)
        with self._updating():
            self._kernels.go_on(self._w)

    @property
    def rz(self) -> float:
        """rᵀz of the last iteration; waits for the device."""
        return float(self._w.scalars[0])

    @property
    def x(self) -> Tensor:
        """The present iterate ``[N]``."""
        return self._w.x[: self._N]

    @property
    def direction(self) -> Tensor:
        """The present direction ``[N]``; the last one, once the solve has ended."""
        return self._w.p[: self._N]

    def snapshot(self, iteration: int) -> Tensor:
        """The iterate ``[N]`` of a kept iteration that went on to the next."""
        return self._w.snapshots[self.slot_of[iteration], : self._N]

    @contextmanager
    def _updating(self) -> Iterator[None]:
        """Around launches on the vectors of CG: on their device, marked for a profiler."""
        with serving(OP, self.device), annotate("CG update"):
            yield

    def begin(self, product: StoppableProduct, b: Tensor, x0: Tensor) -> None:
        """Enqueue r = b − A x₀ ``[N]`` and what follows; a zero x₀ raises the product's flag."""
        N, w = self._N, self._w
        with self._updating():
            w.b[:N].copy_(b)
            w.x[:N].copy_(x0)
            self._kernels.start(w)
        product(w.x[:N], w.Ap[:N], w.zero_start)
        with self._updating():
            self._kernels.start_residual(w, self._inverse)

    def iterate(self, product: StoppableProduct, key: Hashable = None) -> None:
        """Enqueue one iteration, which does nothing once the solve has ended.

        Equal keys say that products give the same launches on the same memory: the ``product`` of a
        key that is recorded is not called.
        """
        if self._graphs is None:
            self._iterate(product)
        else:
            self._graphs.run(key, lambda: self._iterate(product), self.device)

    def _iterate(self, product: StoppableProduct) -> None:
        N, w = self._N, self._w
        product(w.p[:N], w.Ap[:N], w.stop)
        with self._updating():
            self._kernels.iterate(w, self._inverse)

    def look(self) -> Look:
        """Wait for what is enqueued and see how far it came."""
        k, seen = self._kernels, self._w.counters.tolist()
        return Look(seen[k.STOP], seen[k.ITERATIONS], seen[k.PRODUCTS])

    def history(self, iterations: int) -> list[float]:
        """φ after every iteration so far, φ₀ first."""
        values: list[float] = self._w.history[: iterations + 1].tolist()
        return values


def sizes_of(b: Tensor, length: int, kept: int, has_M: bool) -> Hashable:
    """What workspaces are alike by: vectors like ``b [N]``, ``length`` of the tables, ``kept``
    iterates, and whether there is a diagonal preconditioner."""
    return len(b), b.dtype, b.device, length, kept, has_M


class KeptSolves:
    """Workspaces of recorded solves that follow one another, one for each of their sizes.

    A workspace has the recordings of its iterations. At most ``MOST_KEPT`` of ``MOST_BYTES`` each
    are kept, those that were used last, and each for one thread and stream. A solve that raises
    leaves none: the next one begins anew.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, DeviceSolve] = OrderedDict()

    def take(
        self,
        b: Tensor,
        *,
        lookback: Sequence[int],
        kept: Sequence[int],
        tolerance: float,
        residual: float,
        preconditioner: Tensor | None = None,
    ) -> DeviceSolve:
        """A workspace, until :meth:`keep`, for a solve on vectors like ``b [N]``.

        Arguments as of :class:`DeviceSolve`.
        """
        sizes = sizes_of(b, len(lookback), len(kept), preconditioner is not None)
        known = self._kept.pop((here(b.device), sizes), None)
        if known is None:
            return DeviceSolve(
                b,
                lookback=lookback,
                kept=kept,
                tolerance=tolerance,
                residual=residual,
                preconditioner=preconditioner,
                recorded=True,
            )
        known.load(lookback, kept, tolerance, residual, preconditioner)
        return known

    def keep(self, solve: DeviceSolve) -> None:
        """Take back a workspace whose solve has ended, and has the sizes it began with."""
        if solve.has_grown or solve.nbytes > MOST_BYTES:
            return
        self._kept[here(solve.device), solve.sizes] = solve
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
