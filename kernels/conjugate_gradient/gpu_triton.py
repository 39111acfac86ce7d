"""CG vector updates in Triton, and a CG iteration whose scalars never leave the device.

Formulas: ``reference.py``. A vector of N elements is cut into at most BLOCKS blocks by N alone; a
program sums its block in float64, and whoever needs the total sums the blocks again in the same
order: two passes, no atomics, the same bits every run. Every launch is on the current stream of
the current device; nothing is allocated and nothing waits for the host from :func:`start` on.

One iteration is a product A p and four launches:

====================  ====================================  ==================================
kernel                does                                  bytes per element (float32, no M)
====================  ====================================  ==================================
cg_dot_partials       pᵀAp by block                         8   (p, Ap)
cg_update             α; x, r, z; rᵀz, xᵀ(r+b) by block     28  (x, p, r, Ap, b; x, r)
cg_finish             φ, β, history, stop test, snapshot    the partial sums, one program
cg_direction          p = z + β p; snapshot of x            12  (z, p; p), 8 more for a snapshot
====================  ====================================  ==================================

A preconditioner M adds 12 (M; z; and z is no longer r). At N = 3·10⁶ that is 144 MB an iteration,
30 µs at 4.8 TB/s. No barrier but the tree of each block sum. Once the stop flag is raised every
kernel exits at its first load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hfcore.kernels.triton_math import divide
from hfcore.kernels.triton_stop import raised
from hfcore.kernels.triton_variant import Variant, variant

BLOCK = 1024  # elements that a program takes at once
BLOCKS = 512  # programs at most: 4 for each of 132 multiprocessors
# 8 warps: 4 elements a thread, one 16-byte access in float32. fp fusion, maxnreg: kernels/loss.
OPTIONS: dict[str, int | bool] = {"num_warps": 8, "enable_fp_fusion": True, "maxnreg": 128}
# Where it fits, 64 registers a thread: all 512 programs are resident at once, 4 a multiprocessor.
LEAN_OPTIONS: dict[str, int | bool] = {**OPTIONS, "maxnreg": 64}
# Vectors of a multiple of this many elements are moved 16 bytes at a time.
PADDING = 16

# Stop flag: 0 while the solve goes on, else why it ended. NONFINITE: a product, the iterate is the
# one before it; BAD_ITERATE: φ or rᵀz of the iterate itself.
RUNNING, MAX_ITERATIONS, PROGRESS, RESIDUAL, NONPOSITIVE, NONFINITE, BAD_ITERATE = range(7)
_MAX_ITERATIONS: tl.constexpr = tl.constexpr(MAX_ITERATIONS)
_PROGRESS: tl.constexpr = tl.constexpr(PROGRESS)
_RESIDUAL: tl.constexpr = tl.constexpr(RESIDUAL)
_NONPOSITIVE: tl.constexpr = tl.constexpr(NONPOSITIVE)
_NONFINITE: tl.constexpr = tl.constexpr(NONFINITE)
_BAD_ITERATE: tl.constexpr = tl.constexpr(BAD_ITERATE)

# Rows of `partial [4, BLOCKS]`.
_PAP: tl.constexpr = tl.constexpr(0)
_RZ: tl.constexpr = tl.constexpr(1)
_XRB: tl.constexpr = tl.constexpr(2)
_RR: tl.constexpr = tl.constexpr(3)
# `scalars` float64: rᵀz, β, progress tolerance, residual tolerance.
SCALARS = 4
_S_RZ: tl.constexpr = tl.constexpr(0)
_S_BETA: tl.constexpr = tl.constexpr(1)
_S_TOLERANCE: tl.constexpr = tl.constexpr(2)
_S_RESIDUAL: tl.constexpr = tl.constexpr(3)
# `counters` int32: stop flag, iterations done, products done, snapshot to take or −1, whether the
# start is zero (the stop flag of the product A x₀).
COUNTERS = 5
STOP, ITERATIONS, PRODUCTS, SLOT, ZERO_START = range(COUNTERS)
_STOP: tl.constexpr = tl.constexpr(STOP)
_ITERATIONS: tl.constexpr = tl.constexpr(ITERATIONS)
_PRODUCTS: tl.constexpr = tl.constexpr(PRODUCTS)
_SLOT: tl.constexpr = tl.constexpr(SLOT)
_ZERO_START: tl.constexpr = tl.constexpr(ZERO_START)

_BLOCKS: tl.constexpr = tl.constexpr(BLOCKS)
_INFINITY: tl.constexpr = tl.constexpr(float("inf"))


# ---------------------------------------------------------------------------- device functions


@triton.jit
def _total(partial, row, count):
    """Σ partial[row, :count], in one order wherever it is computed."""
    index = tl.arange(0, _BLOCKS)
    return tl.sum(tl.load(partial + row * _BLOCKS + index, mask=index < count, other=0.0), axis=0)


@triton.jit
def _put(partial, row, sums):
    tl.store(partial + row * _BLOCKS + tl.program_id(0), tl.sum(sums, axis=0))


@triton.jit
def _finite(a):
    return tl.abs(a) < _INFINITY


# ---------------------------------------------------------------------------- kernels


@triton.jit
def cg_dot_partials_kernel(
    a, b, partial, stop, N, per_block, HAS_STOP: tl.constexpr, BLOCK: tl.constexpr
):
    """partial[0] = aᵀb by block."""
    if raised(stop, HAS_STOP):
        return
    at = tl.program_id(0).to(tl.int64) * per_block
    last = tl.minimum(at + per_block, N)
    total = tl.zeros([BLOCK], tl.float64)
    while at < last:
        index = at + tl.arange(0, BLOCK)
        here = index < N
        left = tl.load(a + index, mask=here, other=0.0).to(tl.float64)
        right = tl.load(b + index, mask=here, other=0.0).to(tl.float64)
        total += left * right
        at += BLOCK
    _put(partial, _PAP, total)


@triton.jit
def cg_update_kernel(
    x, r, z, p, Ap, b, M, partial, scalars, stop, N, per_block, blocks,
    HAS_M: tl.constexpr, HAS_Z: tl.constexpr, HAS_STOP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x += αp, r −= αAp, z = r/M with α = rᵀz/pᵀAp; partial[1:] = rᵀz, xᵀ(r+b), rᵀr by block.

    Nothing is read or written where pᵀAp is not positive and finite.
    """
    if raised(stop, HAS_STOP):
        return
    pAp = _total(partial, _PAP, blocks)
    if (pAp > 0.0) & (pAp < _INFINITY):
        alpha = (tl.load(scalars + _S_RZ) / pAp).to(x.dtype.element_ty)
        at = tl.program_id(0).to(tl.int64) * per_block
        last = tl.minimum(at + per_block, N)
        rz = tl.zeros([BLOCK], tl.float64)
        xrb = tl.zeros([BLOCK], tl.float64)
        rr = tl.zeros([BLOCK], tl.float64)
        while at < last:
            index = at + tl.arange(0, BLOCK)
            here = index < N
            new_x = tl.load(x + index, mask=here, other=0.0)
            new_x += alpha * tl.load(p + index, mask=here, other=0.0)
            new_r = tl.load(r + index, mask=here, other=0.0)
            new_r -= alpha * tl.load(Ap + index, mask=here, other=0.0)
            tl.store(x + index, new_x, mask=here)
            tl.store(r + index, new_r, mask=here)
            wide_r = new_r.to(tl.float64)
            if HAS_M:
                new_z = divide(new_r, tl.load(M + index, mask=here, other=1.0))
                rz += wide_r * new_z.to(tl.float64)
                rr += wide_r * wide_r
            else:
                new_z = new_r
                rz += wide_r * wide_r
            if HAS_Z:
                tl.store(z + index, new_z, mask=here)
            wide_b = tl.load(b + index, mask=here, other=0.0).to(tl.float64)
            xrb += new_x.to(tl.float64) * (wide_r + wide_b)
            at += BLOCK
        _put(partial, _RZ, rz)
        _put(partial, _XRB, xrb)
        if HAS_M:
            _put(partial, _RR, rr)


@triton.jit
def cg_direction_kernel(
    p, z, x, snapshots, scalars, counters, N, per_block, snapshot_stride,
    IN_SOLVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """p = z + βp; within a solve also snapshots[slot] = x where this iteration is kept."""
    if raised(counters, IN_SOLVE):  # the stop flag is the first of them
        return
    beta = tl.load(scalars + _S_BETA).to(p.dtype.element_ty)
    start = tl.program_id(0).to(tl.int64) * per_block
    last = tl.minimum(start + per_block, N)
    at = start
    while at < last:
        index = at + tl.arange(0, BLOCK)
        here = index < N
        old = tl.load(p + index, mask=here, other=0.0)
        tl.store(p + index, old * beta + tl.load(z + index, mask=here, other=0.0), mask=here)
        at += BLOCK
    if IN_SOLVE:
        slot = tl.load(counters + _SLOT)
        if slot >= 0:
            snapshots += slot.to(tl.int64) * snapshot_stride
            at = start
            while at < last:
                index = at + tl.arange(0, BLOCK)
                here = index < N
                tl.store(snapshots + index, tl.load(x + index, mask=here, other=0.0), mask=here)
                at += BLOCK


@triton.jit
def cg_totals_kernel(partial, out, count):
    """out[row] = Σ partial[row]; one program a row."""
    row = tl.program_id(0)
    tl.store(out + row, _total(partial, row, count))


@triton.jit
def cg_zero_start_kernel(partial, counters, blocks):
    """Whether x₀ is all zero, from x₀ᵀx₀ by block; NaN is not."""
    zero = _total(partial, _PAP, blocks) == 0.0
    tl.store(counters + _ZERO_START, zero.to(tl.int32))


@triton.jit
def cg_start_kernel(
    x, r, z, p, Ap, b, M, partial, counters, N, per_block,
    HAS_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """r = b − A x₀, p = z = r/M; partial[1:3] = rᵀz, xᵀ(r+b) by block. A zero x₀ reads no Ap."""
    nonzero = tl.load(counters + _ZERO_START) == 0
    at = tl.program_id(0).to(tl.int64) * per_block
    last = tl.minimum(at + per_block, N)
    rz = tl.zeros([BLOCK], tl.float64)
    xrb = tl.zeros([BLOCK], tl.float64)
    while at < last:
        index = at + tl.arange(0, BLOCK)
        here = index < N
        rhs = tl.load(b + index, mask=here, other=0.0)
        new_r = rhs - tl.load(Ap + index, mask=here & nonzero, other=0.0)
        tl.store(r + index, new_r, mask=here)
        new_z = new_r
        if HAS_M:
            new_z = divide(new_r, tl.load(M + index, mask=here, other=1.0))
            tl.store(z + index, new_z, mask=here)
        tl.store(p + index, new_z, mask=here)
        wide_r = new_r.to(tl.float64)
        rz += wide_r * new_z.to(tl.float64)
        wide_x = tl.load(x + index, mask=here, other=0.0).to(tl.float64)
        xrb += wide_x * (wide_r + rhs.to(tl.float64))
        at += BLOCK
    _put(partial, _RZ, rz)
    _put(partial, _XRB, xrb)


@triton.jit
def cg_start_finish_kernel(partial, scalars, counters, history, blocks):
    """rᵀz, φ₀, the product counted; stops where rᵀz is zero or not finite."""
    rz = _total(partial, _RZ, blocks)
    tl.store(scalars + _S_RZ, rz)
    tl.store(history, -0.5 * _total(partial, _XRB, blocks))
    tl.store(counters + _PRODUCTS, 1 - tl.load(counters + _ZERO_START))
    if rz == 0.0:
        tl.store(counters + _STOP, _RESIDUAL)
    if not _finite(rz):
        tl.store(counters + _STOP, _NONFINITE)


@triton.jit
def cg_finish_kernel(
    partial, scalars, counters, history, lookback, slots, blocks, max_iterations,
    HAS_M: tl.constexpr,
):  # fmt: skip
    """After the update of iteration i: φ, β, history, stop test, snapshot to take; one program.

    ``lookback[i]`` is k of the progress rule, 0 where it does not apply yet; ``slots[i]`` the
    snapshot that keeps iterate i, or −1.
    """
    if tl.load(counters + _STOP) != 0:
        return
    tl.store(counters + _PRODUCTS, tl.load(counters + _PRODUCTS) + 1)
    pAp = _total(partial, _PAP, blocks)
    if (pAp > 0.0) & (pAp < _INFINITY):
        i = tl.load(counters + _ITERATIONS) + 1
        rz = _total(partial, _RZ, blocks)
        phi = -0.5 * _total(partial, _XRB, blocks)
        tl.store(counters + _ITERATIONS, i)
        tl.store(history + i, phi)
        rr = rz
        if HAS_M:
            rr = _total(partial, _RR, blocks)
        k = tl.load(lookback + i)
        then = tl.load(history + i - k)
        tolerance = k.to(tl.float64) * tl.load(scalars + _S_TOLERANCE)
        falling = (k > 0) & (then < 0.0) & (phi < 0.0)
        # Where it does not apply φ may be zero; 1 keeps the division harmless.
        progress = (phi - then) / tl.where(falling, phi, 1.0)
        # From the weakest to the strongest reason, as the host solver would meet them.
        reason = tl.where(i >= max_iterations, _MAX_ITERATIONS, 0)
        reason = tl.where(falling & (progress < tolerance), _PROGRESS, reason)
        limit = tl.load(scalars + _S_RESIDUAL)
        reason = tl.where(tl.sqrt(rr) < limit, _RESIDUAL, reason)
        reason = tl.where(_finite(phi) & _finite(rz), reason, _BAD_ITERATE)
        tl.store(counters + _STOP, reason)
        tl.store(counters + _SLOT, tl.load(slots + i))
        tl.store(scalars + _S_BETA, rz / tl.load(scalars + _S_RZ))
        tl.store(scalars + _S_RZ, rz)
    else:
        # −∞ and NaN are not finite; zero and below are no positive curvature.
        stop = tl.where(_finite(pAp), _NONPOSITIVE, _NONFINITE)
        tl.store(counters + _STOP, stop)


# ---------------------------------------------------------------------------- single updates


def options_of(single: bool, has_z: bool = False) -> dict[str, int | bool]:
    """How a kernel on vectors is compiled: float64 and a z of its own need more registers."""
    return LEAN_OPTIONS if single and not has_z else OPTIONS


def blocks_of(N: int) -> tuple[int, int]:
    """(blocks, elements of each): at most BLOCKS blocks of whole BLOCKs; depends on N alone."""
    per_block = -(-N // (BLOCKS * BLOCK)) * BLOCK
    return -(-N // per_block), per_block


def dot(a: Tensor, b: Tensor) -> float:
    """aᵀb of vectors ``[N]`` in float64; waits for the device."""
    partial, out = _scratch(a, 4, BLOCKS), _scratch(a, 1)
    blocks = _dot_partials(a, b, partial, None)
    cg_totals_kernel[(1,)](partial, out, blocks, **OPTIONS)
    return float(out)


def cg_update(
    x: Tensor,
    r: Tensor,
    z: Tensor,
    p: Tensor,
    Ap: Tensor,
    b: Tensor,
    rz: float,
    preconditioner: Tensor | None,
) -> tuple[float, float, float]:
    """One CG step in place on ``[N]``; gives (pᵀAp, new rᵀz, φ(x)); waits for the device."""
    partial, totals = _scratch(x, 4, BLOCKS), _scratch(x, 4)
    scalars = _scratch(x, SCALARS).fill_(rz)
    blocks = _dot_partials(p, Ap, partial, None)
    _update(x, r, z, p, Ap, b, preconditioner, partial, scalars, None)
    cg_totals_kernel[(4,)](partial, totals, blocks, **OPTIONS)
    pAp, new_rz, xrb, _ = totals.tolist()
    if not 0.0 < pAp < float("inf"):
        return pAp, rz, float("nan")
    return pAp, new_rz, -0.5 * xrb


def cg_direction(p: Tensor, z: Tensor, beta: float) -> None:
    """p = z + β p, in place on vectors ``[N]``."""
    scalars = _scratch(p, SCALARS).fill_(beta)
    blocks, per_block = blocks_of(p.numel())
    cg_direction_kernel[(blocks,)](
        p, z, None, None, scalars, None, p.numel(), per_block, 0,
        IN_SOLVE=False, BLOCK=BLOCK, **_options(p),
    )  # fmt: skip


def _options(v: Tensor, has_z: bool = False) -> dict[str, int | bool]:
    return options_of(v.dtype == torch.float32, has_z)


def _scratch(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device=like.device)


def _dot_partials(a: Tensor, b: Tensor, partial: Tensor, stop: Tensor | None) -> int:
    blocks, per_block = blocks_of(a.numel())
    cg_dot_partials_kernel[(blocks,)](
        a, b, partial, stop, a.numel(), per_block,
        HAS_STOP=stop is not None, BLOCK=BLOCK, **_options(a),
    )  # fmt: skip
    return blocks


def _update(
    x: Tensor,
    r: Tensor,
    z: Tensor,
    p: Tensor,
    Ap: Tensor,
    b: Tensor,
    M: Tensor | None,
    partial: Tensor,
    scalars: Tensor,
    stop: Tensor | None,
) -> None:
    has_z = z.data_ptr() != r.data_ptr()
    blocks, per_block = blocks_of(x.numel())
    cg_update_kernel[(blocks,)](
        x, r, z, p, Ap, b, M, partial, scalars, stop, x.numel(), per_block, blocks,
        HAS_M=M is not None, HAS_Z=has_z, HAS_STOP=stop is not None,
        BLOCK=BLOCK, **_options(x, has_z),
    )  # fmt: skip


# ---------------------------------------------------------------------------- a whole solve


# (r, z): z = M⁻¹ r, on vectors of the padded length.
Inverse = Callable[[Tensor, Tensor], object]


@dataclass(frozen=True)
class Workspace:
    """All that a solve reads and writes. Vectors have one length, padded to PADDING by zeros.

    ``z`` is ``r`` itself without a preconditioner; ``M`` (padded by ones) is a diagonal one.
    ``history [max + 1]`` holds φ after every iteration, so the ring that the progress rule looks
    back in never wraps.
    ``snapshots [slots, padded N]``; ``lookback``, ``slots`` int32 ``[max + 1]`` as in
    :func:`cg_finish_kernel`. ``partial`` float64 ``[4, BLOCKS]``.
    """

    x: Tensor
    r: Tensor
    z: Tensor
    p: Tensor
    Ap: Tensor
    b: Tensor
    M: Tensor | None
    snapshots: Tensor
    history: Tensor
    lookback: Tensor
    slots: Tensor
    partial: Tensor
    scalars: Tensor
    counters: Tensor

    @property
    def stop(self) -> Tensor:
        """The stop flag, int32 ``[1]``."""
        return self.counters[STOP : STOP + 1]

    @property
    def zero_start(self) -> Tensor:
        """Non-zero where x₀ is zero and A x₀ need not be computed: int32 ``[1]``."""
        return self.counters[ZERO_START : ZERO_START + 1]


def start(w: Workspace) -> None:
    """Before the product A x₀ into ``Ap``: clears the counters, tells whether x₀ is zero."""
    w.counters.zero_()
    blocks = _dot_partials(w.x, w.x, w.partial, None)
    cg_zero_start_kernel[(1,)](w.partial, w.counters, blocks, **OPTIONS)


def start_residual(w: Workspace, inverse: Inverse | None = None) -> None:
    """After it: r, z, p, rᵀz and φ₀; ``inverse(r, z)`` is z = M⁻¹ r where M is no diagonal."""
    N = w.x.numel()
    blocks, per_block = blocks_of(N)
    cg_start_kernel[(blocks,)](
        w.x, w.r, w.z, w.p, w.Ap, w.b, w.M, w.partial, w.counters, N, per_block,
        HAS_M=w.M is not None, BLOCK=BLOCK, **_options(w.x, w.M is not None),
    )  # fmt: skip
    if inverse is not None:
        inverse(w.r, w.z)
        w.p.copy_(w.z)
        _dot_partials(w.r, w.z, w.partial[_RZ.value :], None)
    cg_start_finish_kernel[(1,)](w.partial, w.scalars, w.counters, w.history, blocks, **OPTIONS)


def iterate(w: Workspace, inverse: Inverse | None = None) -> None:
    """One iteration after the product A p into ``Ap``; nothing once the stop flag is raised.

    ``inverse`` as in :func:`start_residual`; it is also called then, and nobody reads its result.
    """
    stop = w.stop
    blocks = _dot_partials(w.p, w.Ap, w.partial, stop)
    z = w.z if inverse is None else w.r
    _update(w.x, w.r, z, w.p, w.Ap, w.b, w.M, w.partial, w.scalars, stop)
    if inverse is not None:
        w.partial[_RR.value].copy_(w.partial[_RZ.value])
        inverse(w.r, w.z)
        _dot_partials(w.r, w.z, w.partial[_RZ.value :], stop)
    cg_finish_kernel[(1,)](
        w.partial, w.scalars, w.counters, w.history, w.lookback, w.slots, blocks,
        w.history.numel() - 1, HAS_M=w.M is not None or inverse is not None, **OPTIONS,
    )  # fmt: skip
    _direction(w)


def go_on(w: Workspace) -> None:
    """Take up a solve that stopped at the end of ``history``, which has become longer."""
    w.counters[STOP] = RUNNING
    w.counters[SLOT] = -1
    _direction(w)


def _direction(w: Workspace) -> None:
    N = w.x.numel()
    blocks, per_block = blocks_of(N)
    cg_direction_kernel[(blocks,)](
        w.p, w.z, w.x, w.snapshots, w.scalars, w.counters, N, per_block, N,
        IN_SOLVE=True, BLOCK=BLOCK, **_options(w.p),
    )  # fmt: skip


# ---------------------------------------------------------------------------- ahead of time


def variants() -> Iterator[Variant]:
    """Every kernel as the launches above ask for it."""
    f8, i4 = "*fp64", "*i32"
    yield variant(
        cg_totals_kernel,
        "cg_totals",
        {"partial": f8, "out": f8, "count": "i32"},
        {},
        OPTIONS,
    )
    yield variant(
        cg_zero_start_kernel,
        "cg_zero_start",
        {"partial": f8, "counters": i4, "blocks": "i32"},
        {},
        OPTIONS,
    )
    yield variant(
        cg_start_finish_kernel,
        "cg_start_finish",
        {"partial": f8, "scalars": f8, "counters": i4, "history": f8, "blocks": "i32"},
        {},
        OPTIONS,
    )
    finish = {"partial": f8, "scalars": f8, "counters": i4, "history": f8, "lookback": i4}
    finish |= {"slots": i4, "blocks": "i32", "max_iterations": "i32"}
    for has_M in (False, True):
        yield variant(
            cg_finish_kernel, f"cg_finish-M_{has_M}", finish, {"HAS_M": has_M}, OPTIONS, quick=has_M
        )
    for dtype in ("fp32", "fp64"):
        # Any N and any pointer; N and pointers multiples of 16, as within a solve.
        for aligned in (False, True):
            yield from _of_vectors(dtype, aligned)


def _of_vectors(dtype: str, aligned: bool) -> Iterator[Variant]:
    t, f8, i4 = f"*{dtype}", "*fp64", "*i32"
    label = f"{dtype}-aligned_{aligned}"
    sizes = {"N": "i32", "per_block": "i32"}
    solve = {"x": t, "snapshots": t, "counters": i4}
    quick = dtype == "fp32" and aligned

    def of(
        kernel: object, name: str, types: dict[str, str], constants: dict[str, object]
    ) -> Variant:
        options = options_of(dtype == "fp32", "M" in types or constants.get("HAS_Z") is True)
        made = variant(
            kernel, name, types, constants | {"BLOCK": BLOCK}, options, aligned=aligned, quick=quick
        )
        if not aligned:
            return made
        multiples = [n for n in (*sizes, "snapshot_stride") if n in types]
        return made._replace(aligned=(*made.aligned, *multiples))

    for has_stop in (False, True):
        stop, absent = ({"stop": i4}, {}) if has_stop else ({}, {"stop": None})
        yield of(
            cg_dot_partials_kernel,
            f"cg_dot_partials-{label}-stop_{has_stop}",
            {"a": t, "b": t, "partial": f8, **stop, **sizes},
            {"HAS_STOP": has_stop, **absent},
        )
        for has_M in (False, True):
            M, no_M = ({"M": t}, {}) if has_M else ({}, {"M": None})
            arrays = dict.fromkeys(("x", "r", "z", "p", "Ap", "b"), t)
            # Outside of a solve z may be a vector of its own without M, too.
            for has_Z in sorted({has_M, has_M or not has_stop}):
                yield of(
                    cg_update_kernel,
                    f"cg_update-{label}-stop_{has_stop}-M_{has_M}-z_{has_Z}",
                    {**arrays, **M, "partial": f8, "scalars": f8, **stop, **sizes, "blocks": "i32"},
                    {"HAS_M": has_M, "HAS_Z": has_Z, "HAS_STOP": has_stop, **absent, **no_M},
                )
            if not has_stop:
                yield of(
                    cg_start_kernel,
                    f"cg_start-{label}-M_{has_M}",
                    {**arrays, **M, "partial": f8, "counters": i4, **sizes},
                    {"HAS_M": has_M, **no_M},
                )
    for in_solve in (False, True):
        yield of(
            cg_direction_kernel,
            f"cg_direction-{label}-in_solve_{in_solve}",
            {"p": t, "z": t, "scalars": f8, **sizes, "snapshot_stride": "i32"}
            | (solve if in_solve else {}),
            {"IN_SOLVE": in_solve, **({} if in_solve else dict.fromkeys(solve))},
        )
