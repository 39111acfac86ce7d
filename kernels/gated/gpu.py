"""Gated ops on CUDA kernels: plans shapes, allocates, launches. Float32 only.

The ops have the signatures of ``forms/gated`` after a first parameter ``launch`` that starts a
kernel of ``gpu.cu`` by name; nothing here knows how (CuPy on a GPU, fibers on the CPU in tests).
What the inputs give to every step, and V_hh h of the R-op, are products of torch's over the whole
sequence, which come first. The steps are one kernel where W_hh fits on chip, else one product of
torch's and one kernel each.

No call waits for the device, so every op can be captured in a CUDA graph. Memory beside the results
is torch's to give: R·T·B·H numbers a net, for an R-op twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from hfcore.kernels.gated.layout import GatedStates, GatedWeights, rows_of
from hfcore.kernels.gpu_launch import (
    Argument,
    Launch,
    dense,
    grid,
    in_rows,
    optional,
    round_up,
    unexpanded,
)

__all__ = ["Plan", "gated_backward", "gated_forward", "gated_tangent", "plan"]

# The constants of gpu_scan.cuh and what the kernels are compiled for.
ROWS, COLUMNS, MAX_THREADS = 8, 4, 256
GROUP_SUMS = COLUMNS * ROWS + 4
STEP_THREADS = 256
# k of a slice whose weights are in registers: a kernel each. Shared memory alone comes first.
HELD = (0, 24)
# A thread's slice of K is no shorter than this: beyond it adding up costs more than it saves.
SHORTEST_SLICE = 8


class Plan(NamedTuple):
    """How the steps run: in one kernel with ``split`` slices of K, or (``split`` 0) one by one.

    ``held``: the weights of so many k of each slice are in registers, the others in shared memory.
    """

    split: int
    held: int
    threads: int
    shared_bytes: int

    @property
    def suffix(self) -> str:
        """Of the kernel's name."""
        if not self.split:
            return "_step"
        return "_held" if self.held else ""


STEP_BY_STEP = Plan(0, 0, STEP_THREADS, 0)


def plan(H: int, R: int, *, backward: bool, shared_limit: int) -> Plan:
    """The form for H units and R blocks of rows, with ``shared_limit`` bytes a block.

    All steps are one kernel where W_hh fits on chip beside a step's rows and sums: in shared
    memory alone, or with a part in registers. K is cut into as many slices as threads and memory
    allow, and into two at least if there is a way. With 232,448 bytes that is up to H = 128, with
    166,912 up to 128 of a GRU, and 116 of an LSTM (112 on the way back). Beyond it is one GEMM a
    step.
    """
    K, columns = (R * H, H) if backward else (H, R * H)
    groups = -(-columns // COLUMNS)
    most = MAX_THREADS // groups if 2 * H <= MAX_THREADS else 0
    for least, held in product((2, 1), HELD):
        for split in range(min(most, max(1, K // max(held, SHORTEST_SLICE))), least - 1, -1):
            length = -(-K // split)
            weights = groups * COLUMNS * (split * (length - held) | 1)
            words = weights + split * length * ROWS + split * groups * GROUP_SUMS
            if 4 * words <= shared_limit and length >= held:
                threads = round_up(max(groups * split, 2 * H), 32)
                return Plan(split, held, threads, 4 * words)
    return STEP_BY_STEP


class Arrays(NamedTuple):
    """What an op's kernels are given, in the order of gpu_cell.cuh; the last three are written.

    ``h [G,T,B,H]``, ``gates [G,4,T,B,H]`` and ``cells [G,2,T,B,H]`` are of the forward pass, None
    where the op does not read them; ``y`` has the shape of what the op gives.
    """

    outside: Tensor
    known: Tensor | None
    bias: Tensor | None
    h: Tensor | None
    gates: Tensor | None
    cells: Tensor | None
    y: Tensor
    to_gates: Tensor | None = None
    to_cells: Tensor | None = None


class Task(NamedTuple):
    """The steps of an op of a cell: which, ``(G, T, B, H)``, R, W_hh ``[1 or G,R·H,H]``, arrays.

    Nets of W_hh are ``net_stride`` elements apart.
    """

    kernel: str
    size: tuple[int, int, int, int]
    R: int
    W_hh: Tensor
    net_stride: int
    arrays: Arrays

    @property
    def backward(self) -> bool:
        return self.kernel.endswith("backward")

    @property
    def distinct(self) -> int:
        """Bit mask of the arrays with a net of their own, in the order of gpu_cell.cuh."""
        order = (self.W_hh, *self.arrays[:6])
        return sum(1 << bit for bit, a in enumerate(order) if a is not None and len(a) > 1)


def gated_forward(
    launch: Launch,
    x: Tensor,
    w: GatedWeights,
    cell: str,
    states: bool,
    out: GatedStates,
    *,
    shared_limit: int,
) -> None:
    """h ``[G,T,B,H]`` of ``x [G,T,B,n]`` into ``out.h``, with ``states`` the rest of ``out``."""
    kept = (out.gates, out.cells) if states else (None, None)
    outside = _times(dense(x), unexpanded(w.W_ih))
    arrays = Arrays(outside, None, dense(w.b), None, None, None, out.h, *kept)
    _steps(launch, _task("forward", cell, out.h, w.W_hh, arrays), shared_limit)


def gated_tangent(
    launch: Launch,
    x: Tensor,
    at: GatedStates,
    Rx: Tensor | None,
    w: GatedWeights,
    v: GatedWeights,
    cell: str,
    out: Tensor,
    *,
    shared_limit: int,
) -> None:
    """Rh into ``out [G,T,B,H]``, from ``x [G,T,B,n]`` and Rx, its tangent if that is not zero."""
    h, gates, cells = dense(at.h), dense(at.gates), optional(at.cells)
    outside = _times(dense(x), unexpanded(v.W_ih))
    if Rx is not None:
        outside = outside + _times(dense(Rx), unexpanded(w.W_ih))
    known = _times(h[:, :-1], unexpanded(v.W_hh)) if h.shape[1] > 1 else None
    arrays = Arrays(outside, known, dense(v.b), h, gates, cells, out)
    _steps(launch, _task("tangent", cell, out, w.W_hh, arrays), shared_limit)


def gated_backward(
    launch: Launch,
    gh: Tensor,
    at: GatedStates,
    W_hh: Tensor,
    cell: str,
    out: Tensor,
    *,
    shared_limit: int,
) -> None:
    """∂L/∂a into ``out [G,4,T,B,H]`` from ``gh [G,T,B,H]``."""
    arrays = Arrays(dense(gh), None, None, dense(at.h), dense(at.gates), optional(at.cells), out)
    _steps(launch, _task("backward", cell, out[:, 0], W_hh, arrays), shared_limit)


# ---- the steps, in either form


def _task(op: str, cell: str, like: Tensor, W_hh: Tensor, arrays: Arrays) -> Task:
    """``like [G,T,B,H]`` has the sizes."""
    G, T, B, H = like.shape
    (W_hh,), net_stride = in_rows(W_hh)
    return Task(f"{cell}_{op}", (G, T, B, H), rows_of(cell).blocks, W_hh, net_stride, arrays)


def _steps(launch: Launch, task: Task, shared_limit: int) -> None:
    chosen = plan(task.size[3], task.R, backward=task.backward, shared_limit=shared_limit)
    run = _in_one_kernel if chosen.split else _step_by_step
    run(launch, task, chosen)


def _in_one_kernel(launch: Launch, task: Task, chosen: Plan) -> None:
    """A block takes 8 sequences of a net through all steps."""
    G, T, B, H = task.size
    arguments: Sequence[Argument] = [
        task.distinct, task.net_stride, task.W_hh, *task.arrays, T, B, H, chosen.split
    ]  # fmt: skip
    blocks = grid(-(-B // ROWS), G)
    block = (chosen.threads, 1, 1)
    launch(task.kernel + chosen.suffix, blocks, block, chosen.shared_bytes, arguments)


def _step_by_step(launch: Launch, task: Task, chosen: Plan) -> None:
    """One product and one kernel a step."""
    G, T, B, H = task.size
    y, RH = task.arrays.y, task.R * H
    state = y.new_empty(G, B, H)
    z = y.new_empty(G, B, H if task.backward else RH)
    rows = y.new_empty(G, B, RH) if task.backward else None
    W = (task.W_hh if task.backward else task.W_hh.mT).expand(G, -1, -1)
    before: int | None = None
    for t in reversed(range(T)) if task.backward else range(T):
        if before is not None:
            torch.bmm(y[:, before] if rows is None else rows, W, out=z)
        arguments: Sequence[Argument] = [
            task.distinct, None if before is None else z, state, rows, *task.arrays, T, B, H, t
        ]  # fmt: skip
        blocks = grid(-(-B * H // chosen.threads), G)
        launch(task.kernel + chosen.suffix, blocks, (chosen.threads, 1, 1), 0, arguments)
        before = t


def _times(y: Tensor, W: Tensor) -> Tensor:
    """``y [G,S,B,i]`` times the transpose of ``W [G,j,i]`` at every step, ``[G,S,B,j]``."""
    flat = torch.matmul(y.flatten(1, 2), W.mT)
    return flat.view(len(flat), *y.shape[1:3], flat.shape[2])
