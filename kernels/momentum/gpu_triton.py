"""The momentum update in Triton. Formulas, shapes and rounding: ``reference.py``; signature too.

A program takes BLOCK elements of one net; a net that is not active ends it at its first load. Every
launch is on the current stream of the current device; nothing is allocated and nothing waits for
the host. a·b + c is one FMA, as on the CPU. No element sees another: the bits of a net are those
that it has alone.

Model (memory bound, bytes an element in float32): 20 (θ, v, g; θ, v), with ``ahead`` 24, and 28
with an L2 term as well, which reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from hfcore.kernels.triton_variant import Variant, variant

BLOCK = 1024
# 8 warps: 4 elements a thread, one 16-byte access in float32. fp fusion, maxnreg: kernels/loss.
OPTIONS: dict[str, int | bool] = {"num_warps": 8, "enable_fp_fusion": True, "maxnreg": 128}


@triton.jit
def _retired(active, g, HAS_ACTIVE: tl.constexpr):
    """Whether net g is left alone; without ``active`` none is."""
    if HAS_ACTIVE:
        return tl.load(active + g) == 0
    else:
        return False


@triton.jit
def momentum_update_kernel(
    theta, velocity, gradient, learning_rate, momentum, lookahead, l2, ahead, active,
    N, blocks, gradient_net,
    HAS_L2: tl.constexpr, HAS_AHEAD: tl.constexpr, HAS_ACTIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """v = μ v − ε (g + l2 a); θ += v; ahead = θ + lookahead·v; grid G·blocks."""
    task = tl.program_id(0)
    g = task // blocks
    if _retired(active, g, HAS_ACTIVE):
        return
    kind = theta.dtype.element_ty
    index = (task % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = index < N
    at = g.to(tl.int64) * N + index
    old = tl.load(theta + at, mask=here, other=0.0)
    d = tl.load(gradient + g.to(tl.int64) * gradient_net + index, mask=here, other=0.0)
    if HAS_L2:
        a = old
        if HAS_AHEAD:
            a = tl.load(ahead + at, mask=here, other=0.0)
        d += tl.load(l2 + g).to(kind) * a
    v = tl.load(velocity + at, mask=here, other=0.0) * tl.load(momentum + g).to(kind)
    v -= d * tl.load(learning_rate + g).to(kind)
    new = old + v
    tl.store(velocity + at, v, mask=here)
    tl.store(theta + at, new, mask=here)
    if HAS_AHEAD:
        tl.store(ahead + at, new + v * tl.load(lookahead + g).to(kind), mask=here)


@triton.jit
def lookahead_point_kernel(
    theta, velocity, momentum, out, active, N, blocks,
    HAS_ACTIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = θ + μ v; grid G·blocks."""
    task = tl.program_id(0)
    g = task // blocks
    if _retired(active, g, HAS_ACTIVE):
        return
    index = (task % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = index < N
    at = g.to(tl.int64) * N + index
    v = tl.load(velocity + at, mask=here, other=0.0)
    new = tl.load(theta + at, mask=here, other=0.0) + v * tl.load(momentum + g).to(v.dtype)
    tl.store(out + at, new, mask=here)


def momentum_update(
    theta: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    learning_rate: Tensor,
    momentum: Tensor,
    lookahead: Tensor,
    l2: Tensor | None,
    ahead: Tensor | None,
    active: Tensor | None,
) -> None:
    """In place; arrays contiguous, ``gradient [G or 1, N]``, coefficients on the data's device."""
    G, N = theta.shape
    blocks = triton.cdiv(N, BLOCK)
    momentum_update_kernel[(G * blocks,)](
        theta, velocity, gradient, learning_rate, momentum, lookahead, l2, ahead,
        None if active is None else active.view(torch.uint8),
        N, blocks, 0 if gradient.shape[0] == 1 else N,
        HAS_L2=l2 is not None, HAS_AHEAD=ahead is not None, HAS_ACTIVE=active is not None,
        BLOCK=BLOCK, **OPTIONS,
    )  # fmt: skip


def lookahead_point(
    theta: Tensor, velocity: Tensor, momentum: Tensor, out: Tensor, active: Tensor | None
) -> None:
    """out = θ + μ v ``[G,N]``; arrays contiguous, ``momentum`` on the data's device."""
    G, N = theta.shape
    blocks = triton.cdiv(N, BLOCK)
    lookahead_point_kernel[(G * blocks,)](
        theta, velocity, momentum, out, None if active is None else active.view(torch.uint8),
        N, blocks, HAS_ACTIVE=active is not None, BLOCK=BLOCK, **OPTIONS,
    )  # fmt: skip


# ---------------------------------------------------------------------------- ahead of time


def variants() -> Iterator[Variant]:
    """Both kernels by dtype, terms and alignment, as the launches above ask for them."""
    for dtype in ("fp32", "fp64"):
        for aligned in (False, True):
            for which in range(8):
                yield _of_update(dtype, aligned, which)
            for has_active in (False, True):
                yield _of_lookahead(dtype, aligned, has_active)


def _of_update(dtype: str, aligned: bool, which: int) -> Variant:
    coefficients = dict.fromkeys(("learning_rate", "momentum", "lookahead"), "*fp64")
    arrays = dict.fromkeys(("theta", "velocity", "gradient"), f"*{dtype}")
    sizes = dict.fromkeys(("N", "blocks", "gradient_net"), "i32")
    optional = {"l2": "*fp64", "ahead": f"*{dtype}", "active": "*u8"}
    given = {n: t for bit, (n, t) in enumerate(optional.items()) if which >> bit & 1}
    flags = {f"HAS_{n.upper()}": n in given for n in optional}
    made = variant(
        momentum_update_kernel,
        f"momentum_update-{dtype}-{'-'.join(given) or 'plain'}-aligned_{aligned}",
        {**arrays, **coefficients, **given, **sizes},
        {**flags, **dict.fromkeys(optional.keys() - given.keys()), "BLOCK": BLOCK},
        OPTIONS,
        aligned=aligned,
        quick=dtype == "fp32" and which in (0, 7),
    )
    return made._replace(aligned=(*made.aligned, "N", "gradient_net")) if aligned else made


def _of_lookahead(dtype: str, aligned: bool, has_active: bool) -> Variant:
    arrays = dict.fromkeys(("theta", "velocity", "out"), f"*{dtype}")
    active, absent = ({"active": "*u8"}, {}) if has_active else ({}, {"active": None})
    made = variant(
        lookahead_point_kernel,
        f"lookahead_point-{dtype}-active_{has_active}-aligned_{aligned}",
        {**arrays, "momentum": "*fp64", **active, "N": "i32", "blocks": "i32"},
        {"HAS_ACTIVE": has_active, **absent, "BLOCK": BLOCK},
        OPTIONS,
        aligned=aligned,
        quick=dtype == "fp32" and has_active,
    )
    return made._replace(aligned=(*made.aligned, "N")) if aligned else made
