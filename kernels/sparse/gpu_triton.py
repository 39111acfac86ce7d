"""Sparse ops in Triton. Formulas: ``reference.py``, the order of the entries: ``layout.py``.

Cases are transposed to ``[G,columns,B]`` first, so that an entry reads one contiguous run of cases
wherever its column is. A product's program makes a tile of units by cases and walks its rows'
entries, the longest row's number of rounds; the transpose is the same kernel on the transposed
pattern, so no two programs add to one sum. A gradient's program takes some entries through all
cases. Passes through time launch the product once a step, with the state's formula applied before
the tile is stored, both in rows and transposed for the next step. Every launch is on the current
stream of the current device.

Model (memory bound, float32 bytes for E entries of a matrix m x n and B cases): product
4 B (E + 3n + m) of which the entries' runs come from L2 where 4 B n fits; gradient
4 B (2E + 2m + 2n). Sums of one result never cross programs: the bits depend on the shape alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from hfcore.kernels.sparse.layout import EllPattern, Rows
from hfcore.kernels.triton_math import logistic, tanh
from hfcore.kernels.triton_variant import Variant, variant

# What is done to a tile of products p before it is stored.
NOTHING, SCAN, TANH, LOGISTIC, RELU = range(5)
_SCAN: tl.constexpr = tl.constexpr(SCAN)
_TANH: tl.constexpr = tl.constexpr(TANH)
_LOGISTIC: tl.constexpr = tl.constexpr(LOGISTIC)
_RELU: tl.constexpr = tl.constexpr(RELU)
NONLINEAR = {"tanh": TANH, "logistic": LOGISTIC, "relu": RELU}

# Units (or entries) and cases of a tile.
UNITS = 16
CASES = 64
# fp fusion, maxnreg: kernels/loss.
OPTIONS: dict[str, int | bool] = {"num_warps": 4, "enable_fp_fusion": True, "maxnreg": 255}


# ---------------------------------------------------------------------------- kernels


@triton.jit
def _sum_entries(
    x_t, value, start, columns, places, units, cases, B, rows,
    HAS_PLACE: tl.constexpr, UNITS: tl.constexpr, CASES: tl.constexpr,
):  # fmt: skip
    """Σ over the entries of each unit's row of value · cases, ``[UNITS, CASES]``."""
    inside = units < rows
    begin = tl.load(start + units, mask=inside, other=0)
    end = tl.load(start + units + 1, mask=inside, other=0)
    total = tl.zeros([UNITS, CASES], x_t.dtype.element_ty)
    for k in range(0, tl.max(end - begin, axis=0)):
        e = begin + k
        has = e < end
        column = tl.load(columns + e, mask=has, other=0).to(tl.int64)
        if HAS_PLACE:
            w = tl.load(value + tl.load(places + e, mask=has, other=0), mask=has, other=0.0)
        else:
            w = tl.load(value + e, mask=has, other=0.0)
        run = x_t + column[:, None] * B + cases[None, :]
        total += w[:, None] * tl.load(run, mask=has[:, None] & (cases < B)[None, :], other=0.0)
    return total


@triton.jit
def ell_product_kernel(
    x_t, value, start, columns, places, out, out_t, u, d, a, B, rows, tiles, across,
    x_net, value_net, out_net, out_t_net, u_net, d_net, a_net,
    FINISH: tl.constexpr, FIRST: tl.constexpr, HAS_PLACE: tl.constexpr, HAS_OUT_T: tl.constexpr,
    HAS_A: tl.constexpr, UNITS: tl.constexpr, CASES: tl.constexpr,
):  # fmt: skip
    """out = finish(x Aᵀ), one tile a program; FIRST: of the step that has no state before it.

    Grid G·tiles.
    """
    g = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    units = (tile // across) * UNITS + tl.arange(0, UNITS)
    cases = (tile % across) * CASES + tl.arange(0, CASES)
    if FIRST:
        y = tl.zeros([UNITS, CASES], u.dtype.element_ty)
    else:
        y = _sum_entries(x_t + g * x_net, value + g * value_net, start, columns, places, units,
                         cases, B, rows, HAS_PLACE, UNITS, CASES)  # fmt: skip
    here = (units < rows)[:, None] & (cases < B)[None, :]
    at = cases[None, :].to(tl.int64) * rows + units[:, None]
    if FINISH != 0:
        y += tl.load(u + g * u_net + at, mask=here, other=0.0)
    if FINISH == _SCAN:
        y *= tl.load(d + g * d_net + at, mask=here, other=0.0)
        if HAS_A:
            y += tl.load(a + g * a_net + at, mask=here, other=0.0)
    elif FINISH == _TANH:
        y = tanh(y)
    elif FINISH == _LOGISTIC:
        y = logistic(y)
    elif FINISH == _RELU:
        y = tl.where(y < 0.0, 0.0, y)  # keeps NaN
    tl.store(out + g * out_net + at, y, mask=here)
    if HAS_OUT_T:
        turned = units[:, None].to(tl.int64) * B + cases[None, :]
        tl.store(out_t + g * out_t_net + turned, y, mask=here)


@triton.jit
def ell_gradient_kernel(
    g_t, x_t, index, out, B, K, places, blocks, g_net, x_net,
    ENTRIES: tl.constexpr, CASES: tl.constexpr,
):  # fmt: skip
    """out[i,k] = Σ_b g[b,i] x[b,index[i,k]], 0 behind a short row; grid G·blocks."""
    g = (tl.program_id(0) // blocks).to(tl.int64)
    e = (tl.program_id(0) % blocks) * ENTRIES + tl.arange(0, ENTRIES)
    inside = e < places
    column = tl.load(index + e, mask=inside, other=0)
    before = tl.load(index + e - 1, mask=inside & (e % K > 0), other=-1)
    left = g_t + g * g_net + (e // K).to(tl.int64)[:, None] * B
    right = x_t + g * x_net + column.to(tl.int64)[:, None] * B
    sums = tl.zeros([ENTRIES, CASES], g_t.dtype.element_ty)
    for b in range(0, B, CASES):
        cases = b + tl.arange(0, CASES)
        here = inside[:, None] & (cases < B)[None, :]
        sums += tl.load(left + cases[None, :], mask=here, other=0.0) * tl.load(
            right + cases[None, :], mask=here, other=0.0
        )
    total = tl.where(column == before, 0.0, tl.sum(sums, axis=1))
    tl.store(out + g * places + e, total, mask=inside)


# ---------------------------------------------------------------------------- launches


def product(x: Tensor, value: Tensor, rows: Rows, out: Tensor) -> Tensor:
    """x Aᵀ ``[G,B,rows]`` into ``out``; ``value [G,places]`` is flat."""
    _launch(x.mT.contiguous(), value, rows, out, NOTHING)
    return out


def gradient(g: Tensor, x: Tensor, pattern: EllPattern, out: Tensor) -> Tensor:
    """gᵀx at the entries, ``[G,m,K]``, into ``out``."""
    g_t, x_t = g.mT.contiguous(), x.mT.contiguous()
    places = pattern.index.numel()
    blocks = -(-places // UNITS)
    ell_gradient_kernel[(out.shape[0] * blocks,)](
        g_t, x_t, pattern.index, out, g.shape[1], pattern.K, places, blocks, _net(g_t), _net(x_t),
        ENTRIES=UNITS, CASES=CASES, **OPTIONS,
    )  # fmt: skip
    return out


def scan(
    u: Tensor,
    d: Tensor,
    value: Tensor,
    rows: Rows,
    a: Tensor | None,
    reverse: bool,
    out: Tensor,
) -> Tensor:
    """y_t = d_t ⊙ (y_{t∓1} Aᵀ + u_t) + a_t into ``out [G,T,B,H]``."""
    return _through_time(u, value, rows, out, SCAN, reverse, d, a)


def hidden(u: Tensor, value: Tensor, rows: Rows, nonlinearity: str, out: Tensor) -> Tensor:
    """h_t = e(u_t + h_{t-1} Aᵀ) into ``out [G,T,B,H]``."""
    return _through_time(u, value, rows, out, NONLINEAR[nonlinearity], False, None, None)


def _through_time(
    u: Tensor,
    value: Tensor,
    rows: Rows,
    out: Tensor,
    finish: int,
    reverse: bool,
    d: Tensor | None,
    a: Tensor | None,
) -> Tensor:
    G, T, B, H = out.shape
    states = out.new_empty(2, G, H, B)
    for step in range(T):
        t = T - 1 - step if reverse else step
        _launch(
            None if step == 0 else states[(step - 1) % 2],
            value,
            rows,
            out[:, t],
            finish,
            None if step == T - 1 else states[step % 2],
            u[:, t],
            None if d is None else d[:, t],
            None if a is None else a[:, t],
        )
    return out


def _launch(
    x_t: Tensor | None,
    value: Tensor,
    rows: Rows,
    out: Tensor,
    finish: int,
    out_t: Tensor | None = None,
    u: Tensor | None = None,
    d: Tensor | None = None,
    a: Tensor | None = None,
) -> None:
    """One product; ``x_t`` None: the first step, whose product is zero."""
    G, B = out.shape[:2]
    across = -(-B // CASES)
    tiles = -(-rows.rows // UNITS) * across
    ell_product_kernel[(G * tiles,)](
        x_t, value, rows.start, rows.column, rows.place, out, out_t, u, d, a,
        B, rows.rows, tiles, across,
        *(_net(array) for array in (x_t, value, out, out_t, u, d, a)),
        FINISH=finish, FIRST=x_t is None, HAS_PLACE=rows.place is not None,
        HAS_OUT_T=out_t is not None, HAS_A=a is not None, UNITS=UNITS, CASES=CASES, **OPTIONS,
    )  # fmt: skip


def _net(array: Tensor | None) -> int:
    """Elements from one net of the group to the next, 0 where all share one."""
    return 0 if array is None or array.shape[0] == 1 else array.stride(0)


# ---------------------------------------------------------------------------- ahead of time

_FINISHES = {"product": NOTHING, "scan": SCAN, **NONLINEAR}


def variants() -> Iterator[Variant]:
    """Every kernel by dtype and form, as the launches above ask for it."""
    for dtype in ("fp32", "fp64"):
        for name, finish in _FINISHES.items():
            # first step, places, a: what each form can meet; a product alone has no first step.
            for first in (False, True) if finish else (False,):
                for place in (False, True):
                    for a in (False, True) if finish == SCAN else (False,):
                        quick = dtype == "fp32" and place and not first and finish <= TANH
                        yield _of_product(dtype, name, finish, first, place, a, quick)
        arrays = dict.fromkeys(("g_t", "x_t", "out"), f"*{dtype}")
        sizes = dict.fromkeys(("B", "K", "places", "blocks", "g_net", "x_net"), "i32")
        yield variant(
            ell_gradient_kernel,
            f"ell_gradient-{dtype}",
            {**arrays, "index": "*i32", **sizes},
            {"ENTRIES": UNITS, "CASES": CASES},
            OPTIONS,
            quick=dtype == "fp32",
        )


def _of_product(
    dtype: str, name: str, finish: int, first: bool, place: bool, a: bool, quick: bool
) -> Variant:
    present = {
        "x_t": not first, "value": True, "out": True, "out_t": finish != NOTHING,
        "u": finish != NOTHING, "d": finish == SCAN, "a": a,
    }  # fmt: skip
    integers = {"start": True, "columns": True, "places": place}
    types = {n: f"*{dtype}" for n, has in present.items() if has}
    types |= {n: "*i32" for n, has in integers.items() if has}
    absent = {n: None for n, has in {**present, **integers}.items() if not has}
    nets = ("x_net", "value_net", "out_net", "out_t_net", "u_net", "d_net", "a_net")
    sizes = dict.fromkeys(("B", "rows", "tiles", "across", *nets), "i32")
    flags = {
        "FINISH": finish, "FIRST": first, "HAS_PLACE": place, "HAS_OUT_T": finish != NOTHING,
        "HAS_A": a, "UNITS": UNITS, "CASES": CASES,
    }  # fmt: skip
    label = f"ell_product-{dtype}-{name}-first_{first}-place_{place}-a_{a}"
    return variant(
        ell_product_kernel, label, {**types, **sizes}, {**flags, **absent}, OPTIONS, quick=quick
    )
