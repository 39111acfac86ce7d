"""The recurrence's products over all steps at once, beside the serial chain.

Where W_hh fits on chip they are kernels of ``gpu.cu`` (``own=True``) that take the stop flag,
allocate nothing but what :class:`Scratch` keeps, and give the same bits in any group.

Note 1: nets above that size use torch's GEMMs, which know no stop flag, allocate through torch's
caching allocator and may give other bits in a group than alone. What they do after the flag is
raised (at most ``look_every`` − 1 products of a solve) is in vain and changes no result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hfcore.kernels.gpu_launch import grid, round_up
from hfcore.kernels.recurrence.gpu_launch import Run, at_steps, distinct, group_of
from hfcore.kernels.recurrence.layout import RnnShape

# The constants of gpu_product.cuh.
THREADS, TILE, ROW_TILE, DEPTH = 256, 4, 64, 32
OUTER, CHUNK_STRIDE, SHARERS = 8, 256, 2
AT_SLOT, AT_STEP, AT_PREVIOUS = range(3)
ELEMENTS = 32  # of finish_gradient's blocks

# Blocks that share the rows of a gradient: two for each of 132 multiprocessors, on every GPU, so
# that all give the same bits. A split has no fewer rows than SHORTEST_SPLIT: with 64, 28 nets of
# 8,000 rows wrote and read 147 MB of partial sums, 57 µs of finish_gradient (measured on an H200).
SPLITS = 264
SHORTEST_SPLIT = 128
# Rows (steps times sequences) are counted in an int there.
MOST_ROWS = 2**31 - 2**16


def step_inputs(
    run: Run,
    own: bool,
    x: Tensor,
    W: Tensor,
    *,
    transposed: bool = True,
    h: Tensor | None = None,
    V: Tensor | None = None,
) -> Tensor:
    """u_t = x_t Wᵀ (W not ``transposed``: x_t W) + h_{t-1} Vᵀ, ``[G,T,B,H]``; h_0 is zero."""
    if own:
        places = (AT_SLOT, AT_PREVIOUS)
        return _rows_product(run, "u", (x, W), (h, V), places, x.shape[1], transposed=transposed)
    u = _times(x, W.mT if transposed else W)
    return u if h is None or V is None else _add_previous(u, h, V.mT)


def outputs(
    run: Run, own: bool, h: Tensor, kept: bool, W: Tensor, bias: Tensor, steps: Tensor | None
) -> Tensor:
    """s = h W_yhᵀ + b_y, ``[G,T_out,B,k]``; ``kept``: h has the output steps only."""
    if not own:
        return _times(h if kept else at_steps(steps, h), W.mT, bias)
    slots = h.shape[1] if kept or steps is None else steps.numel()
    places = (AT_SLOT if kept else AT_STEP, AT_SLOT)
    return _rows_product(run, "s", (h, W), (None, None), places, slots, bias=bias, steps=steps)


def output_curvature(
    run: Run,
    own: bool,
    Rh: Tensor,
    kept: bool,
    h: Tensor,
    W: Tensor,
    V: Tensor,
    v_b: Tensor,
    c: Tensor,
    rank_one: bool,
    steps: Tensor | None,
) -> Tensor:
    """L'' (W_yh Rh + V_yh h + v_by), ``[G,T_out,B,k]``; ``kept``: Rh has the output steps only."""
    if not own:
        Rh_at, h_at = (Rh if kept else at_steps(steps, Rh)), at_steps(steps, h)
        gs = c * (_times(Rh_at, W.mT) + _times(h_at, V.mT, v_b))
        return gs - c * gs.sum(-1, keepdim=True) if rank_one else gs
    places = (AT_SLOT if kept else AT_STEP, AT_STEP)
    gs = _rows_product(
        run, "gs", (Rh, W), (h, V), places, c.shape[1], bias=v_b, factor=c, steps=steps
    )
    if rank_one:
        G, slots, B, k = gs.shape
        blocks = -(-slots * B // (THREADS // 32))
        arguments = [run.stop, distinct(factor=c), c, gs, slots * B, k]
        run.launch("subtract_rank_one", grid(blocks, G), (THREADS, 1, 1), 0, arguments)
    return gs


def parameter_gradient(
    run: Run,
    own: bool,
    gt: Tensor | None,
    gs: Tensor,
    h: Tensor,
    x: Tensor,
    steps: Tensor | None,
    v: Tensor | None,
    factors: tuple[float, float],
    out: Tensor,
    accumulate: bool,
    hidden: Tensor | None = None,
) -> Tensor:
    """``out [G,N]`` (+)= scale·[gtᵀ·[x, h_{t-1}, 1], gsᵀ·[h, 1]] + damping·v, flat.

    Without ``gt`` its sums are there, as ``hidden [G,splits,H,n+H+2]``.
    """
    n, H, k = x.shape[-1], h.shape[-1], gs.shape[-1]
    if gt is None or own:
        if gt is not None:
            hidden = _outer_partials(run, "hidden", gt, x, h, None)
        of_outputs = _outer_partials(run, "outputs", gs, None, h, steps)
    else:
        hidden, of_outputs = _library_sums(gt, gs, h, x, steps)
    assert hidden is not None
    N = RnnShape(n, H, k).numel
    scale, damping = map(float, factors)
    run.launch(
        "finish_gradient",
        grid(-(-N // ELEMENTS), out.shape[0]),
        (THREADS, 1, 1),
        4 * THREADS,
        [
            run.stop,
            distinct(factor=hidden, input=of_outputs, added=v),
            run.net_stride,
            hidden,
            of_outputs,
            v,
            out,
            n,
            H,
            k,
            hidden.shape[1],
            of_outputs.shape[1],
            scale,
            damping,
            int(accumulate),
        ],
    )
    return out


# ---- own kernels


def _rows_product(
    run: Run,
    name: str,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor | None, Tensor | None],
    places: tuple[int, int],
    slots: int,
    *,
    bias: Tensor | None = None,
    factor: Tensor | None = None,
    steps: Tensor | None = None,
    transposed: bool = True,
) -> Tensor:
    """(a A + h V + bias) ⊙ factor at ``slots`` steps, ``[G,slots,B,columns]``."""
    (a, A), (h, V) = first, second
    _, T, B, width = a.shape
    columns = A.shape[1] if transposed else A.shape[2]
    G = group_of(a, A, h, V, bias, factor)
    y = run.scratch.take(name, a, G, slots, B, columns)
    groups = column_groups(columns)
    tiles = -(-columns // (TILE * groups))
    run.launch(
        "rows_product",
        grid(-(-slots * B // ROW_TILE) * tiles, G),
        (THREADS, 1, 1),
        product_bytes(groups),
        [
            run.stop,
            distinct(input=a, input_weights=A, factor=h, hidden=V, bias=bias, added=factor),
            run.net_stride,
            a,
            A,
            h,
            V,
            bias,
            factor,
            steps,
            y,
            slots,
            T if h is None else h.shape[1],
            B,
            width,
            0 if h is None else h.shape[-1],
            columns,
            *places,
            int(transposed),
            groups,
        ],
    )
    return y


def column_groups(columns: int) -> int:
    """Groups of 4 columns of a tile: as many as there are, in a power of two up to 16."""
    return min(1 << (-(-columns // TILE) - 1).bit_length(), THREADS * TILE // ROW_TILE)


def product_bytes(groups: int) -> int:
    """Shared memory of rows_product: the rows' starts, then chunks or the slices' sums."""
    chunks = DEPTH * (ROW_TILE + TILE + TILE * groups + TILE)
    slices = THREADS * TILE // ROW_TILE // groups
    sums = slices * ROW_TILE * TILE * groups
    return 8 * ROW_TILE + 4 * max(chunks, sums)


class OuterPlan(NamedTuple):
    """How a sum of outer products is cut: tiles of 8 ``high`` × 8 ``wide``, and splits of rows."""

    tiles: int
    high: int
    wide: int
    split_rows: int
    splits: int
    shared_bytes: int


def plan_outer(rows: int, I: int, J: int) -> OuterPlan:
    """Tiles of at most 128 × 128, evenly cut; depends on the sizes of one net alone."""
    down, across = -(-I // (16 * OUTER)), -(-J // (16 * OUTER))
    high, wide = -(-I // (down * OUTER)), -(-J // (across * OUTER))
    width = OUTER * (high + wide)
    depth = OUTER * min(THREADS // width, SHARERS)
    tiles = down * across
    most = max(1, SPLITS // tiles)
    split_rows = round_up(max(-(-rows // most), SHORTEST_SPLIT), depth)
    return OuterPlan(
        tiles, high, wide, split_rows, -(-rows // split_rows), 4 * 2 * depth * CHUNK_STRIDE
    )


def _outer_partials(
    run: Run, name: str, left: Tensor, x: Tensor | None, h: Tensor, steps: Tensor | None
) -> Tensor:
    """Σ left ⊗ [x, h_{t-1}, 1, first step?], or without x ⊗ [h, 1]; ``[G,splits,I,J]``."""
    _, S, B, i = left.shape
    T, H = h.shape[1], h.shape[-1]
    n, previous = (0, 0) if x is None else (x.shape[-1], 1)
    if T * B > MOST_ROWS:
        raise ValueError(f"got {T} steps of {B} sequences, need at most {MOST_ROWS} of both")
    J = n + H + 1 + previous
    cut = plan_outer(S * B, i, J)
    G = group_of(left, x, h)
    partial = run.scratch.take(name, left, G, cut.splits, i, J)
    run.launch(
        "outer_partials",
        grid(cut.tiles * cut.splits, G),
        (THREADS, 1, 1),
        cut.shared_bytes,
        [
            run.stop,
            distinct(added=left, input=x, factor=h),
            left,
            x,
            h,
            steps,
            partial,
            S,
            T,
            B,
            i,
            n,
            H,
            previous,
            cut.split_rows,
            cut.splits,
            cut.high,
            cut.wide,
        ],
    )
    return partial


# ---- torch's GEMMs, note 1


def _library_sums(
    gt: Tensor, gs: Tensor, h: Tensor, x: Tensor, steps: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same as the two partials, in one split."""
    n, H, k = x.shape[-1], h.shape[-1], gs.shape[-1]
    G = group_of(gt, gs, h, x)
    hidden, of_outputs = gt.new_empty(G, 1, H, n + H + 2), gt.new_empty(G, 1, k, H + 1)
    # The column of ones gives the bias in the pass over gt that the input weights need anyway.
    with_ones = torch.cat([x, x.new_ones(*x.shape[:3], 1)], dim=-1)
    inputs_and_bias = _outer(gt, with_ones)
    hidden[:, 0, :, :n] = inputs_and_bias[..., :n]
    hidden[:, 0, :, n + H] = inputs_and_bias[..., n]
    hidden[:, 0, :, n : n + H] = _outer(gt[:, 1:], h[:, :-1]) if gt.shape[1] > 1 else 0.0
    hidden[:, 0, :, n + H + 1] = gt[:, 0].sum(1)
    of_outputs[:, 0, :, :H] = _outer(gs, at_steps(steps, h))
    of_outputs[:, 0, :, H] = gs.sum((1, 2))
    return hidden, of_outputs


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Sum over time and batch: ``[G,T,B,i]``, ``[G,T,B,j]`` -> ``[G,i,j]``."""
    return torch.matmul(left.flatten(1, 2).mT, right.flatten(1, 2))


def _times(y: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y [G,T,B,i] · W [G,i,j] (+ bias [G,j])`` as few large GEMMs as the groups allow."""
    G, T, B, i = y.shape
    j = W.shape[-1]
    if W.shape[0] == 1 and (bias is None or bias.shape[0] == 1):
        rows = y.reshape(G * T * B, i)
        done = rows @ W[0] if bias is None else torch.addmm(bias[0], rows, W[0])
        return done.view(G, T, B, j)
    done = torch.matmul(y.flatten(1, 2), W)
    if bias is not None:
        done = done + bias.unsqueeze(1)
    return done.view(-1, T, B, j)


def _add_previous(u: Tensor, h: Tensor, V: Tensor) -> Tensor:
    """u_t + h_{t-1} V, with h = 0 before the first step; works in u where its groups allow."""
    if h.shape[1] == 1:
        return u
    G = group_of(u, h, V)
    if u.shape[0] != G:
        u = u.expand(G, *u.shape[1:]).contiguous()
    u[:, 1:] += _times(h[:, :-1], V)
    return u
