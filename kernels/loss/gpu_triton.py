"""Loss ops in Triton. Formulas, shapes and masks: ``reference.py``; signatures too.

A program takes ROWS positions at a time and walks their k outputs in chunks of COLS. Positions
that the mask drops are not read. A class that is not one of the k outputs makes NaN (the CPU form,
which sees the data, raises). Every launch is on the current stream of the current device.

Model (memory bound, bytes per element of s in float32): value 8 (s, targets), gradient 12,
curvature 8, Hessian product 12; softmax classes add 8 a position. A row of up to COLS outputs is
WHOLE: it is read once and its maximum, sum and exponentials stay in registers. Longer rows are
swept two or three times. No barrier but the reduction over a row.

The value is summed in float64: a program over the positions of its block, then one program over
the blocks in order. Blocks depend on T·B and k alone, never on G.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hfcore.kernels.loss.reference import (
    HUBER,
    LOGISTIC,
    POISSON,
    RANK_ONE,
    SOFTMAX,
    SQUARED,
    RankOne,
)
from hfcore.kernels.triton_math import (
    divide,
    exp,
    float64_bits,
    from_bits,
    log1p,
    logistic,
    quotient,
)
from hfcore.kernels.triton_stop import raised
from hfcore.kernels.triton_variant import Variant, variant

KINDS = (SQUARED, LOGISTIC, SOFTMAX, HUBER, POISSON)
_SQUARED: tl.constexpr = tl.constexpr(0)
_LOGISTIC: tl.constexpr = tl.constexpr(1)
_SOFTMAX: tl.constexpr = tl.constexpr(2)
_HUBER: tl.constexpr = tl.constexpr(3)
_POISSON: tl.constexpr = tl.constexpr(4)
# What a mask is: absent, bytes 0/1, weights. What L'' has beside its diagonal: see reference.py.
_ABSENT: tl.constexpr = tl.constexpr(0)
_WEIGHTS: tl.constexpr = tl.constexpr(2)
_DIAGONAL: tl.constexpr = tl.constexpr(0)
_WEIGHTED: tl.constexpr = tl.constexpr(2)

# Elements of a tile, tiles of a block of the value, partial sums read at once.
TILE = 1024
TILES_PER_BLOCK = 8
FINISH = 1024
# fp fusion: a*b+c is one FMA as on the CPU (the default flips in Triton 3.10). maxnreg: left alone,
# ptxas spills a few words to reach the next step of occupancy.
OPTIONS: dict[str, int | bool] = {"num_warps": 4, "enable_fp_fusion": True, "maxnreg": 255}
# 4 elements a thread instead of 8: log1p and exp in float64 take many registers.
VALUE_OPTIONS: dict[str, int | bool] = {**OPTIONS, "num_warps": 8}


# ---------------------------------------------------------------------------- device functions


@triton.jit
def _kept(mask, rows, inside, MASK: tl.constexpr):
    """Which of the rows count."""
    if MASK == _ABSENT:
        return inside
    else:
        return inside & (tl.load(mask + rows, mask=inside, other=0) != 0)


@triton.jit
def _weighed(values, mask, rows, keep, MASK: tl.constexpr):
    """Values of whole rows ``[ROWS]`` or ``[ROWS,COLS]`` times the rows' weights."""
    if MASK == _WEIGHTS:
        weights = tl.load(mask + rows, mask=keep, other=0).to(values.dtype)
        if len(values.shape) == 2:
            return values * weights[:, None]
        else:
            return values * weights
    else:
        return values


@triton.jit
def _row_maximum(s, rows, keep, k, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Largest of each row; NaN may be passed over, s − max is NaN there all the same."""
    most = tl.full([ROWS], float("-inf"), s.dtype.element_ty)
    col = 0
    while col < k:
        cols = col + tl.arange(0, COLS)
        here = keep[:, None] & (cols < k)[None, :]
        x = tl.load(s + rows[:, None] * k + cols[None, :], mask=here, other=float("-inf"))
        most = tl.maximum(most, tl.max(x, axis=1))
        col += COLS
    # A dropped row must not compute −inf − (−inf).
    return tl.where(keep, most, 0.0)


@triton.jit
def _row_sum_of_exp(s, rows, keep, k, most, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Σ exp(s − most) of each row in float64; the exponentials in most's dtype."""
    total = tl.zeros([ROWS], tl.float64)
    col = 0
    while col < k:
        cols = col + tl.arange(0, COLS)
        here = keep[:, None] & (cols < k)[None, :]
        x = tl.load(s + rows[:, None] * k + cols[None, :], mask=here, other=float("-inf"))
        e = exp(x.to(most.dtype) - most[:, None]).to(tl.float64)
        total += tl.sum(tl.where(here, e, 0.0), axis=1)
        col += COLS
    return total


@triton.jit
def _whole_row(s, rows, keep, k, WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Rows of at most COLS outputs in one load: s, exp(s − max), its sum in float64, the maximum.

    ``WIDE``: s, exponentials and maximum in float64. The bits of the two sweeps above.
    """
    cols = tl.arange(0, COLS)
    here = keep[:, None] & (cols < k)[None, :]
    x = tl.load(s + rows[:, None] * k + cols[None, :], mask=here, other=float("-inf"))
    most = tl.where(keep, tl.max(x, axis=1), 0.0)
    if WIDE:
        x = x.to(tl.float64)
        most = most.to(tl.float64)
    e = exp(x - most[:, None])
    return x, e, tl.sum(tl.where(here, e.to(tl.float64), 0.0), axis=1), most


@triton.jit
def _softmax_gradient(p, cols, classes, k):
    """p − 1 at the class; NaN in rows whose class is not one of the k outputs."""
    d = tl.where(cols[None, :] == classes[:, None], p - 1.0, p)
    return tl.where(((classes >= 0) & (classes < k))[:, None], d, float("nan"))


@triton.jit
def _put(out, values, rows, cols, inside, keep, k):
    """A tile to ``out``, zero in rows that are not kept."""
    within = inside[:, None] & (cols < k)[None, :]
    values = tl.where(keep[:, None] & (cols < k)[None, :], values, 0.0)
    tl.store(out + rows[:, None] * k + cols[None, :], values, mask=within)


@triton.jit
def _pair(c, Rs, rows, cols, inside, k):
    """A tile of c and of Rs, zero outside."""
    at = rows[:, None] * k + cols[None, :]
    here = inside[:, None] & (cols < k)[None, :]
    return tl.load(c + at, mask=here, other=0.0), tl.load(Rs + at, mask=here, other=0.0)


@triton.jit
def _sums(a, b, total, mass):
    """total + Σ a b and mass + Σ a of each row, in float64."""
    a = a.to(tl.float64)
    return total + tl.sum(a * b.to(tl.float64), axis=1), mass + tl.sum(a, axis=1)


@triton.jit
def _removed(total, mass, FORM: tl.constexpr):
    """What a product takes off Rs: cᵀRs ``total`` [/ Σc ``mass``]."""
    if FORM == _WEIGHTED:
        # Weights may be of any size: the rounded division.
        return tl.where(mass == 0.0, 0.0, divide(total, tl.where(mass == 0.0, 1.0, mass)))
    else:
        return total


@triton.jit
def _row_at_class(s, rows, keep, classes, k):
    """s at the class of each row, NaN for a class that is not one of the k outputs."""
    valid = keep & (classes >= 0) & (classes < k)
    picked = tl.load(s + rows * k + classes, mask=valid, other=0.0)
    return tl.where(valid, picked, float("nan"))


@triton.jit
def _row_losses(s, targets, rows, keep, k, delta, KIND: tl.constexpr, WHOLE: tl.constexpr,
                ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """Loss of each row in float64; whatever, for rows that are not kept."""
    if KIND == _SOFTMAX:
        classes = tl.load(targets + rows, mask=keep, other=0)
        if WHOLE:
            x, _, total, most = _whole_row(s, rows, keep, k, True, ROWS, COLS)
            chosen = tl.arange(0, COLS)[None, :] == classes[:, None]
            at = tl.sum(tl.where(chosen, x, 0.0), axis=1)
            at = tl.where((classes >= 0) & (classes < k), at, float("nan"))
        else:
            most = _row_maximum(s, rows, keep, k, ROWS, COLS).to(tl.float64)
            total = _row_sum_of_exp(s, rows, keep, k, most, ROWS, COLS)
            at = _row_at_class(s, rows, keep, classes, k).to(tl.float64)
        return log1p(tl.where(keep, total - 1.0, 0.0)) + (most - at)
    else:
        total = tl.zeros([ROWS], tl.float64)
        col = 0
        while col < k:
            cols = col + tl.arange(0, COLS)
            here = keep[:, None] & (cols < k)[None, :]
            at = rows[:, None] * k + cols[None, :]
            x = tl.load(s + at, mask=here, other=0.0).to(tl.float64)
            y = tl.load(targets + at, mask=here, other=0.0).to(tl.float64)
            if KIND == _SQUARED:
                losses = 0.5 * (x - y) * (x - y)
            elif KIND == _HUBER:
                d = tl.abs(x - y)
                losses = tl.where(d <= delta, 0.5 * d * d, delta * (d - 0.5 * delta))
            elif KIND == _POISSON:
                losses = exp(x) - y * x
            else:
                # softplus(s) − y s, with softplus(s) = max(s, 0) + log1p(exp(−|s|))
                losses = tl.where(x > 0.0, x, 0.0) - y * x + log1p(exp(-tl.abs(x)))
            total += tl.sum(tl.where(here, losses, 0.0), axis=1)
            col += COLS
        return total


# ---------------------------------------------------------------------------- kernels


@triton.jit
def loss_value_partials_kernel(
    s, targets, mask, partial, P, k, blocks, s_net, targets_net, mask_net, delta_bits,
    KIND: tl.constexpr, MASK: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """partial[g, block] = Σ loss over the positions of one block; grid G·blocks."""
    task = tl.program_id(0)
    g = (task // blocks).to(tl.int64)
    s += g * s_net
    targets += g * targets_net
    if MASK != _ABSENT:
        mask += g * mask_net
    delta = from_bits(delta_bits)
    total = tl.zeros([ROWS], tl.float64)
    row = (task % blocks).to(tl.int64) * (ROWS * TILES)
    last = tl.minimum(row + ROWS * TILES, P)
    while row < last:
        rows = row + tl.arange(0, ROWS)
        keep = _kept(mask, rows, rows < P, MASK)
        losses = _row_losses(s, targets, rows, keep, k, delta, KIND, WHOLE, ROWS, COLS)
        losses = _weighed(losses, mask, rows, keep, MASK)
        total += tl.where(keep, losses, 0.0)
        row += ROWS
    tl.store(partial + task, tl.sum(total, axis=0))


@triton.jit
def loss_value_finish_kernel(partial, value, blocks, scale_bits, CHUNK: tl.constexpr):
    """value[g] = scale · Σ partial[g, :]; grid G."""
    g = tl.program_id(0).to(tl.int64)
    total = tl.zeros([CHUNK], tl.float64)
    at = 0
    while at < blocks:
        index = at + tl.arange(0, CHUNK)
        total += tl.load(partial + g * blocks + index, mask=index < blocks, other=0.0)
        at += CHUNK
    tl.store(value + g, tl.sum(total, axis=0) * from_bits(scale_bits))


@triton.jit
def loss_gradient_kernel(
    s, targets, mask, out, P, k, tiles, s_net, targets_net, mask_net, scale_bits, delta_bits,
    KIND: tl.constexpr, MASK: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """out = scale·mask·∂loss/∂s, one tile of positions a program; grid G·tiles."""
    task = tl.program_id(0)
    g = (task // tiles).to(tl.int64)
    s += g * s_net
    targets += g * targets_net
    if MASK != _ABSENT:
        mask += g * mask_net
    rows = (task % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < P
    keep = _kept(mask, rows, inside, MASK)
    scale = from_bits(scale_bits).to(s.dtype.element_ty)
    delta = from_bits(delta_bits).to(s.dtype.element_ty)
    out += g * P * k
    if KIND == _SOFTMAX:
        classes = tl.load(targets + rows, mask=keep, other=0)
    if WHOLE:
        _, e, total, _ = _whole_row(s, rows, keep, k, False, ROWS, COLS)
        inverse = quotient(1.0, tl.where(keep, total, 1.0)).to(s.dtype.element_ty)
        cols = tl.arange(0, COLS)
        d = _softmax_gradient(e * inverse[:, None], cols, classes, k) * scale
        _put(out, _weighed(d, mask, rows, keep, MASK), rows, cols, inside, keep, k)
    else:
        if KIND == _SOFTMAX:
            most = _row_maximum(s, rows, keep, k, ROWS, COLS)
            total = _row_sum_of_exp(s, rows, keep, k, most, ROWS, COLS)
            inverse = quotient(1.0, tl.where(keep, total, 1.0)).to(s.dtype.element_ty)
        col = 0
        while col < k:
            cols = col + tl.arange(0, COLS)
            at = rows[:, None] * k + cols[None, :]
            here = keep[:, None] & (cols < k)[None, :]
            x = tl.load(s + at, mask=here, other=0.0)
            if KIND == _SOFTMAX:
                p = exp(x - most[:, None]) * inverse[:, None]
                d = _softmax_gradient(p, cols, classes, k)
            else:
                y = tl.load(targets + at, mask=here, other=0.0)
                predicted = x
                if KIND == _LOGISTIC:
                    predicted = logistic(x)
                if KIND == _POISSON:
                    predicted = exp(x)
                d = predicted - y
                if KIND == _HUBER:
                    d = tl.where(tl.abs(d) > delta, tl.where(d > 0.0, delta, -delta), d)
            _put(out, _weighed(d * scale, mask, rows, keep, MASK), rows, cols, inside, keep, k)
            col += COLS


@triton.jit
def loss_curvature_kernel(
    s, targets, mask, out, P, k, tiles, s_net, targets_net, mask_net, delta_bits,
    KIND: tl.constexpr, MASK: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """out = diagonal of the unscaled L''; ``targets`` for Huber's loss; grid G·tiles."""
    task = tl.program_id(0)
    g = (task // tiles).to(tl.int64)
    s += g * s_net
    if KIND == _HUBER:
        targets += g * targets_net
    if MASK != _ABSENT:
        mask += g * mask_net
    rows = (task % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < P
    keep = _kept(mask, rows, inside, MASK)
    out += g * P * k
    if WHOLE:
        _, e, total, _ = _whole_row(s, rows, keep, k, False, ROWS, COLS)
        inverse = quotient(1.0, tl.where(keep, total, 1.0)).to(s.dtype.element_ty)
        c = _weighed(e * inverse[:, None], mask, rows, keep, MASK)
        _put(out, c, rows, tl.arange(0, COLS), inside, keep, k)
    else:
        if KIND == _SOFTMAX:
            most = _row_maximum(s, rows, keep, k, ROWS, COLS)
            total = _row_sum_of_exp(s, rows, keep, k, most, ROWS, COLS)
            inverse = quotient(1.0, tl.where(keep, total, 1.0)).to(s.dtype.element_ty)
        col = 0
        while col < k:
            cols = col + tl.arange(0, COLS)
            at = rows[:, None] * k + cols[None, :]
            here = keep[:, None] & (cols < k)[None, :]
            if KIND == _SQUARED:
                c = tl.full([ROWS, COLS], 1.0, s.dtype.element_ty)
            else:
                x = tl.load(s + at, mask=here, other=0.0)
                if KIND == _SOFTMAX:
                    c = exp(x - most[:, None]) * inverse[:, None]
                elif KIND == _HUBER:
                    d = x - tl.load(targets + at, mask=here, other=0.0)
                    delta = from_bits(delta_bits).to(s.dtype.element_ty)
                    c = tl.where(tl.abs(d) <= delta, 1.0, tl.where(d == d, 0.0, d))
                elif KIND == _POISSON:
                    c = exp(x)
                else:
                    # p(1 − p) without the cancellation of 1 − p
                    e = exp(-tl.abs(x))
                    c = quotient(e, (1.0 + e) * (1.0 + e))
            _put(out, _weighed(c, mask, rows, keep, MASK), rows, cols, inside, keep, k)
            col += COLS


@triton.jit
def loss_hessian_product_kernel(
    c, Rs, out, stop, P, k, tiles, c_net, Rs_net, scale_bits,
    FORM: tl.constexpr, HAS_STOP: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """out = scale·(c ⊙ Rs − [rank one] c (cᵀRs) [/ Σc]); grid G·tiles."""
    if raised(stop, HAS_STOP):
        return
    task = tl.program_id(0)
    g = (task // tiles).to(tl.int64)
    c += g * c_net
    Rs += g * Rs_net
    out += g * P * k
    rows = (task % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < P
    scale = from_bits(scale_bits).to(c.dtype.element_ty)
    total = tl.zeros([ROWS], tl.float64)
    mass = tl.zeros([ROWS], tl.float64)
    if WHOLE:
        cols = tl.arange(0, COLS)
        a, b = _pair(c, Rs, rows, cols, inside, k)
        total, mass = _sums(a, b, total, mass)
        dot = _removed(total, mass, FORM).to(c.dtype.element_ty)
        _put(out, a * (b - dot[:, None]) * scale, rows, cols, inside, inside, k)
    else:
        if FORM != _DIAGONAL:
            col = 0
            while col < k:
                a, b = _pair(c, Rs, rows, col + tl.arange(0, COLS), inside, k)
                total, mass = _sums(a, b, total, mass)
                col += COLS
        dot = _removed(total, mass, FORM).to(c.dtype.element_ty)
        col = 0
        while col < k:
            cols = col + tl.arange(0, COLS)
            a, b = _pair(c, Rs, rows, cols, inside, k)
            _put(out, a * (b - dot[:, None]) * scale, rows, cols, inside, inside, k)
            col += COLS


# ---------------------------------------------------------------------------- launches


class Plan(NamedTuple):
    """How T·B positions of k outputs are cut: ROWS × COLS a tile, tiles and blocks of a net."""

    P: int
    k: int
    rows: int
    cols: int
    tiles: int
    blocks: int

    def constants(self, *, sums: bool) -> dict[str, int | bool]:
        """What a kernel is compiled for; ``sums``: whether it sums over a row before it writes."""
        return {"ROWS": self.rows, "COLS": self.cols, "WHOLE": sums and self.k <= self.cols}


def plan(T: int, B: int, k: int) -> Plan:
    """Whole rows of up to TILE outputs; longer rows are walked in chunks. Independent of G."""
    cols = min(triton.next_power_of_2(k), TILE)
    rows = TILE // cols
    P = T * B
    return Plan(P, k, rows, cols, -(-P // rows), -(-P // (rows * TILES_PER_BLOCK)))


def loss_value(
    kind: str, s: Tensor, targets: Tensor, mask: Tensor | None, scale: float, delta: float = 1.0
) -> Tensor:
    """scale·Σ loss over outputs by their weights, ``[G]`` float64."""
    G, cut = _group(s, targets, mask), plan(*s.shape[1:])
    s, targets, keep = _dense(s), _dense(targets), _bytes(mask)
    partial = torch.empty(G * cut.blocks, dtype=torch.float64, device=s.device)
    value = torch.empty(G, dtype=torch.float64, device=s.device)
    loss_value_partials_kernel[(G * cut.blocks,)](
        s, targets, keep, partial, cut.P, cut.k, cut.blocks, _net(s), _net(targets), _net(keep),
        float64_bits(delta), KIND=KINDS.index(kind), MASK=_mask_form(keep),
        TILES=TILES_PER_BLOCK, **cut.constants(sums=kind == SOFTMAX), **VALUE_OPTIONS,
    )  # fmt: skip
    loss_value_finish_kernel[(G,)](
        partial, value, cut.blocks, float64_bits(scale), CHUNK=FINISH, **OPTIONS
    )
    return value


def loss_gradient(
    kind: str,
    s: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    scale: float,
    delta: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """∂L/∂s ``[G,T,B,k]`` in s's dtype; ``out`` may be ``s`` itself."""
    G, cut = _group(s, targets, mask), plan(*s.shape[1:])
    out = _out(out, G, s)
    s, targets, keep = _dense(s), _dense(targets), _bytes(mask)
    loss_gradient_kernel[(G * cut.tiles,)](
        s, targets, keep, out, cut.P, cut.k, cut.tiles, _net(s), _net(targets), _net(keep),
        float64_bits(scale), float64_bits(delta), KIND=KINDS.index(kind), MASK=_mask_form(keep),
        **cut.constants(sums=kind == SOFTMAX), **OPTIONS,
    )  # fmt: skip
    return out


def loss_curvature(
    kind: str,
    s: Tensor,
    targets: Tensor | None,
    mask: Tensor | None,
    delta: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """Diagonal c ``[G,T,B,k]`` of the unscaled L''; ``out`` may be ``s`` itself.

    ``targets`` are read for Huber's loss alone.
    """
    y = targets if kind == HUBER else None
    G, cut = _group(s, y, mask), plan(*s.shape[1:])
    out = _out(out, G, s)
    s, y, keep = _dense(s), None if y is None else _dense(y), _bytes(mask)
    loss_curvature_kernel[(G * cut.tiles,)](
        s, y, keep, out, cut.P, cut.k, cut.tiles, _net(s), _net(y), _net(keep),
        float64_bits(delta), KIND=KINDS.index(kind), MASK=_mask_form(keep),
        **cut.constants(sums=kind == SOFTMAX), **OPTIONS,
    )  # fmt: skip
    return out


def loss_hessian_product(
    c: Tensor,
    Rs: Tensor,
    rank_one: RankOne,
    scale: float,
    out: Tensor | None = None,
    stop: Tensor | None = None,
) -> Tensor:
    """scale·L''Rs ``[G,T,B,k]``; ``out`` may be ``c`` or ``Rs``.

    With ``stop`` (int32 ``[1]``) not zero nothing is read or written.
    """
    G, cut = _group(c, Rs), plan(*c.shape[1:])
    out = _out(out, G, c)
    c, Rs = _dense(c), _dense(Rs)
    loss_hessian_product_kernel[(G * cut.tiles,)](
        c, Rs, out, stop, cut.P, cut.k, cut.tiles, _net(c), _net(Rs), float64_bits(scale),
        FORM=RANK_ONE.index(rank_one), HAS_STOP=stop is not None,
        **cut.constants(sums=bool(rank_one)), **OPTIONS,
    )  # fmt: skip
    return out


def _group(*arrays: Tensor | None) -> int:
    return max(a.shape[0] for a in arrays if a is not None)


def _net(array: Tensor | None) -> int:
    """Elements from one net of the group to the next, 0 where all share one."""
    return 0 if array is None or array.shape[0] == 1 else array[0].numel()


def _dense(array: Tensor) -> Tensor:
    """Contiguous, a group axis expanded from one net cut back to length 1."""
    array = array.detach()
    if array.shape[0] > 1 and array.stride(0) == 0:
        array = array[:1]
    return array.contiguous()


def _mask_form(keep: Tensor | None) -> int:
    """Absent, bytes or weights."""
    if keep is None:
        return 0
    return 1 if keep.dtype == torch.uint8 else 2


def _bytes(mask: Tensor | None) -> Tensor | None:
    """A bool mask as the bytes it is."""
    if mask is None:
        return None
    mask = _dense(mask)
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask


def _out(out: Tensor | None, G: int, like: Tensor) -> Tensor:
    if out is not None:
        return out
    return torch.empty((G, *like.shape[1:]), dtype=like.dtype, device=like.device)


# ---------------------------------------------------------------------------- ahead of time


def variants() -> Iterator[Variant]:
    """Every kernel by kind, dtype, mask and form of the tile, as the launches above ask for it."""
    yield variant(
        loss_value_finish_kernel,
        "loss_value_finish",
        {"partial": "*fp64", "value": "*fp64", "blocks": "i32", "scale_bits": "i64"},
        {"CHUNK": FINISH},
        OPTIONS,
        quick=True,
    )
    for dtype in ("fp32", "fp64"):
        for k in (1, 3, 200, 3000):
            cut = plan(8, 1024, k)
            quick = dtype == "fp32" and k == 3
            for kind, name in enumerate(KINDS):
                for mask in (None, "u8", dtype):
                    short = quick and mask == "u8" and name in (LOGISTIC, SOFTMAX, HUBER)
                    yield from _of_kind(kind, name, dtype, mask, cut, short)
            for rank_one in RANK_ONE:
                yield from _of_product(rank_one, dtype, cut, quick)


def _of_kind(
    kind: int, name: str, dtype: str, mask: str | None, cut: Plan, quick: bool
) -> Iterator[Variant]:
    label = f"{name}-{dtype}-mask_{mask}-k{cut.k}"
    masks = {} if mask is None else {"mask": f"*{mask}"}
    absent = {"mask": None} if mask is None else {}
    form = 0 if mask is None else 1 if mask == "u8" else 2
    tile = cut.constants(sums=name == SOFTMAX)
    constants = {"KIND": kind, "MASK": form, **tile, **absent}
    sizes = {"P": "i32", "k": "i32", "s_net": "i32", "mask_net": "i32", "delta_bits": "i64"}
    targets = {"targets": "*i64" if name == SOFTMAX else f"*{dtype}", "targets_net": "i32"}
    s, out, scale = {"s": f"*{dtype}"}, {"out": f"*{dtype}", "tiles": "i32"}, {"scale_bits": "i64"}
    partial = {"partial": "*fp64", "blocks": "i32"}
    yield variant(
        loss_value_partials_kernel,
        f"loss_value_partials-{label}",
        {**s, **targets, **masks, **sizes, **partial},
        {**constants, "TILES": TILES_PER_BLOCK},
        VALUE_OPTIONS,
        quick=quick,
    )
    yield variant(
        loss_gradient_kernel,
        f"loss_gradient-{label}",
        {**s, **targets, **masks, **sizes, **out, **scale},
        constants,
        OPTIONS,
        quick=quick,
    )
    curvature_targets = targets if name == HUBER else {"targets_net": "i32"}
    yield variant(
        loss_curvature_kernel,
        f"loss_curvature-{label}",
        {**s, **curvature_targets, **masks, **sizes, **out},
        constants if name == HUBER else {**constants, "targets": None},
        OPTIONS,
        quick=quick,
    )


def _of_product(rank_one: RankOne, dtype: str, cut: Plan, quick: bool) -> Iterator[Variant]:
    arrays = {name: f"*{dtype}" for name in ("c", "Rs", "out")}
    sizes = dict.fromkeys(("P", "k", "tiles", "c_net", "Rs_net"), "i32")
    for has_stop in (False, True):
        yield variant(
            loss_hessian_product_kernel,
            f"loss_hessian_product-{dtype}-rank_one_{rank_one}-stop_{has_stop}-k{cut.k}",
            {**arrays, **sizes, "scale_bits": "i64", **({"stop": "*i32"} if has_stop else {})},
            {"FORM": RANK_ONE.index(rank_one), "HAS_STOP": has_stop}
            | cut.constants(sums=bool(rank_one))
            | ({} if has_stop else {"stop": None}),
            OPTIONS,
            quick=quick and has_stop,
        )
