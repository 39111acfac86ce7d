"""Recurrence ops on CUDA kernels: plans shapes, allocates, launches. Float32 only.

The ops have the signatures of ``reference.py`` after a first parameter ``launch`` that starts a
kernel of ``gpu.cu`` by name; nothing here knows how (CuPy on a GPU, fibers on the CPU in tests).

No call waits for the device, and ``steps`` stays there, so every op can be captured in a CUDA
graph. ``stop`` is an int32 ``[1]`` flag on the device: where it is not zero every kernel exits at
once and leaves the result as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from hfcore.kernels.recurrence.layout import RnnShape, RnnWeights, split_flat

Dim3 = tuple[int, int, int]
Argument = Tensor | int | float | None
Launch = Callable[[str, Dim3, Dim3, int, Sequence[Argument]], None]


def _unnamed(_: str) -> AbstractContextManager[None]:
    return nullcontext()


# Names a pass for a profiler; the bindings put NVTX ranges here.
annotate: Callable[[str], AbstractContextManager[None]] = _unnamed

# Dynamic shared memory of a block: sm_80 has the least of the architectures that are compiled for.
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
SMALLEST_SHARED_LIMIT = min(SHARED_LIMIT.values())

NONLINEARITIES = ("tanh", "logistic", "relu")
GIVEN = 3  # the factor of a scan is d itself

# The constants of gpu_tile.cuh and what the kernels are compiled for.
ROWS, TILE, MAX_THREADS = 8, 4, 448
# Threads of a block up to H = 128: 8 warps, so that the four schedulers get two each.
FEW_THREADS = 256
# A thread's slice of K is no shorter than this: beyond it adding up costs more than it saves.
SHORTEST_SLICE = 4
# Input columns that join the K loop: reading them costs less than reading their product.
MOST_INPUTS = 32
ELEMENTWISE_THREADS = 256
# Nets in a group: the grid's second axis.
MOST_NETS = 65_535


def _round_up(size: int, to: int) -> int:
    return -(-size // to) * to


class Plan(NamedTuple):
    """How one recurrence runs; :func:`plan` is the rule that chooses.

    ``on_chip``: time loop inside the kernel, weights in shared memory; else one GEMM a step and a
    fused epilogue. ``hidden_on_chip``: V_hh too. ``inputs_on_chip``: the input product is part of
    the kernel's K loop; else one GEMM over the whole sequence comes before. ``split`` slices of K
    are summed by different threads.
    """

    on_chip: bool
    hidden_on_chip: bool
    inputs_on_chip: bool
    split: int
    threads: int
    shared_bytes: int


def plan(H: int, m: int, *, hidden: bool, shared_limit: int) -> Plan:
    """The form for H units and m input columns; ``hidden`` for an R-op, which has V_hh as well.

    The first of these that fits a block (``shared_limit`` bytes, and two threads a unit of 448):

    1. all weights on chip, if m ≤ 32 (beyond, a GEMM costs less than the longer chain);
    2. W_hh and V_hh on chip, inputs by one GEMM for the sequence;
    3. W_hh on chip, V_hh and inputs by one GEMM each for the sequence;
    4. one GEMM a step with a fused epilogue.

    With 232,448 bytes W_hh fits up to H = 220 and W_hh with V_hh up to 156; with 166,912 up
    to 184 and 128.
    """
    forms = [(hidden, True), (hidden, False), (False, False)]
    for hidden_on_chip, inputs_on_chip in forms:
        inputs = m if inputs_on_chip else 0
        fits = _on_chip(H, inputs, hidden_on_chip, inputs_on_chip)
        enough = fits.threads <= MAX_THREADS and inputs <= MOST_INPUTS
        if enough and fits.shared_bytes <= shared_limit:
            return fits
    return Plan(False, False, False, 0, ELEMENTWISE_THREADS, 0)


def _on_chip(H: int, m: int, hidden: bool, inputs: bool) -> Plan:
    """Slices of K, threads and shared memory of a block that holds these weights."""
    groups = -(-H // TILE)
    tiles = 2 * groups
    K = (2 * H if hidden else H) + m
    most = FEW_THREADS if 2 * H <= FEW_THREADS else MAX_THREADS
    split = max(1, min(most // tiles, -(-K // SHORTEST_SLICE)))
    threads = _round_up(max(tiles * split, 2 * H, ROWS * m), 32)
    weights, carry = groups * TILE * (K | 1), K * ROWS
    partial = split * groups * TILE * ROWS
    return Plan(True, hidden, inputs, split, threads, 4 * (weights + carry + partial))


def rnn_forward(
    launch: Launch,
    x: Tensor,
    w: RnnWeights,
    nonlinearity: str,
    steps: Tensor | None,
    *,
    states: bool = True,
    out: Tensor | None = None,
    stop: Tensor | None = None,
    shared_limit: int = SMALLEST_SHARED_LIMIT,
) -> tuple[Tensor | None, Tensor]:
    """``h [G,T,B,H]`` (None unless ``states``; in ``out`` if given) and ``s [G,T_out,B,k]``.

    Without ``states`` only the output steps are written. ``s`` is undefined after a ``stop``.
    """
    G = _group(x, *w)
    x, w, steps = _dense(x), _dense_weights(w), _optional(steps)
    T, B, n = x.shape[1:]
    H = w.W_hh.shape[-1]
    chosen = plan(H, n, hidden=False, shared_limit=shared_limit)
    kept = None if states or not chosen.on_chip else steps
    slots = T if kept is None else kept.numel()
    h = out if out is not None and states else x.new_empty(G, slots, B, H)
    fused = chosen.inputs_on_chip
    u = None if fused else _times(x, w.W_hx.mT)
    if chosen.on_chip:
        arguments = [w.W_hh, w.W_hx, w.b_h, w.b_init, x if fused else None, u]
        _launch_sequence(
            launch,
            "rnn_forward",
            chosen,
            (G, B),
            [
                stop,
                _distinct(
                    carry=w.W_hh,
                    input_weights=w.W_hx,
                    bias=w.b_h,
                    initial_bias=w.b_init,
                    input=x,
                    added=u,
                ),
                *arguments,
                kept,
                h,
                T,
                B,
                H,
                n if fused else 0,
                slots,
                NONLINEARITIES.index(nonlinearity),
                chosen.split,
            ],
        )
    else:
        assert u is not None
        _forward_by_steps(launch, u, w, nonlinearity, h, stop)
    at = h if kept is not None else _at(steps, h)
    s = _times(at, w.W_yh.mT, w.b_y)
    return (h if states else None), s


def linear_scan(
    launch: Launch,
    u: Tensor,
    d: Tensor,
    W: Tensor,
    a: Tensor | None,
    reverse: bool,
    *,
    out: Tensor | None = None,
    stop: Tensor | None = None,
    shared_limit: int = SMALLEST_SHARED_LIMIT,
) -> Tensor:
    """y_t = d_t ⊙ (y_{t∓1} W + u_t) + a_t for ``u, d, a, y [G,T,B,H]``, ``W [G,H,H]``."""
    G = _group(u, d, W, a)
    u, d, W, a = _dense(u), _dense(d), _dense(W), _optional(a)
    y = u.new_empty(G, *u.shape[1:]) if out is None else out
    terms = ScanTerms(W, None, None, u, d, a, None, GIVEN, 1.0)
    return _scan(launch, terms, y, reverse, stop, shared_limit)


def rnn_backward(
    launch: Launch,
    x: Tensor,
    h: Tensor,
    w: RnnWeights,
    gs: Tensor,
    nonlinearity: str,
    steps: Tensor | None,
    *,
    out: Tensor | None = None,
    stop: Tensor | None = None,
    shared_limit: int = SMALLEST_SHARED_LIMIT,
) -> Tensor:
    """Flat parameter gradient ``[G,N]`` by BPTT from ``gs = ∂L/∂s [G,T_out,B,k]``."""
    G = _group(x, h, *w, gs)
    x, h, w, gs, steps = _dense(x), _dense(h), _dense_weights(w), _dense(gs), _optional(steps)
    with annotate("reverse scan"):
        gt = _reverse(launch, h, w, gs, None, nonlinearity, steps, 0.0, stop, shared_limit)
    with annotate("gradient products"):
        return _parameter_gradient(launch, gt, gs, h, x, steps, None, (1.0, 0.0), G, out, stop)


def rnn_gauss_newton(
    launch: Launch,
    x: Tensor,
    h: Tensor,
    w: RnnWeights,
    v: Tensor,
    c: Tensor,
    rank_one: bool,
    nonlinearity: str,
    steps: Tensor | None,
    scale: float,
    structural: float,
    damping: float,
    *,
    out: Tensor | None = None,
    stop: Tensor | None = None,
    shared_limit: int = SMALLEST_SHARED_LIMIT,
) -> Tensor:
    """scale·(Jᵀ L'' J + structural·D-term) v + damping·v, flat ``[G,N]`` -> ``[G,N]``.

    R-op kernel, L'' at the output steps, reverse scan kernel, gradient GEMMs (all of
    :func:`reference.rnn_gauss_newton`). Without structural damping the R-op writes Rh at the
    output steps only, and no work of the outputs is done at any other step.
    """
    G = _group(x, h, *w, v, c)
    x, h, w, v, c = _dense(x), _dense(h), _dense_weights(w), _dense(v), _dense(c)
    steps = _optional(steps)
    tangent = RnnWeights(
        *map(_dense, split_flat(v, RnnShape(x.shape[-1], h.shape[-1], c.shape[-1])))
    )
    kept = None if structural else steps
    with annotate("R-op"):
        Rh = _tangent(launch, x, h, w, tangent, nonlinearity, kept, stop, shared_limit)
    Rh_at, h_at = (Rh if kept is not None else _at(steps, Rh)), _at(steps, h)
    gs = c * (_times(Rh_at, w.W_yh.mT) + _times(h_at, tangent.W_yh.mT, tangent.b_y))
    if rank_one:
        gs = gs - c * gs.sum(-1, keepdim=True)
    a = Rh if structural else None
    with annotate("reverse scan"):
        gt = _reverse(launch, h, w, gs, a, nonlinearity, steps, structural, stop, shared_limit)
    with annotate("gradient products"):
        return _parameter_gradient(launch, gt, gs, h, x, steps, v, (scale, damping), G, out, stop)


# ---- the two passes of a product


def _tangent(
    launch: Launch,
    x: Tensor,
    h: Tensor,
    w: RnnWeights,
    v: RnnWeights,
    nonlinearity: str,
    kept: Tensor | None,
    stop: Tensor | None,
    shared_limit: int,
) -> Tensor:
    """R-op through time: Rh at the steps ``kept [T_out]``, or at all; ``[G,T or T_out,B,H]``."""
    T, B, n = x.shape[1:]
    H = h.shape[-1]
    G = _group(x, h, w.W_hh, v.W_hx, v.W_hh, v.b_h, v.b_init)
    chosen = plan(H, n, hidden=True, shared_limit=shared_limit)
    fused, hidden = chosen.inputs_on_chip, chosen.hidden_on_chip
    u = None if fused else _times(x, v.W_hx.mT)
    if not hidden:
        assert u is not None
        u = _add_previous(u, h, v.W_hh.mT)
    if not chosen.on_chip:
        assert u is not None
        Rh = x.new_empty(G, T, B, H)
        code = NONLINEARITIES.index(nonlinearity)
        terms = ScanTerms(w.W_hh.mT, v.b_h, v.b_init, u, h, None, None, code, 0.0)
        _scan_by_steps(launch, terms, Rh, False, stop)
        return _at(kept, Rh)
    slots = T if kept is None else kept.numel()
    Rh = x.new_empty(G, slots, B, H)
    _launch_sequence(
        launch,
        "rnn_tangent",
        chosen,
        (G, B),
        [
            stop,
            _distinct(
                carry=w.W_hh,
                hidden=v.W_hh,
                input_weights=v.W_hx,
                bias=v.b_h,
                initial_bias=v.b_init,
                input=x,
                added=u,
                factor=h,
            ),
            w.W_hh,
            v.W_hh if hidden else None,
            v.W_hx,
            v.b_h,
            v.b_init,
            x if fused else None,
            u,
            h,
            kept,
            Rh,
            T,
            B,
            H,
            n if fused else 0,
            slots,
            NONLINEARITIES.index(nonlinearity),
            chosen.split,
        ],
    )
    return Rh


def _reverse(
    launch: Launch,
    h: Tensor,
    w: RnnWeights,
    gs: Tensor,
    a: Tensor | None,
    nonlinearity: str,
    steps: Tensor | None,
    structural: float,
    stop: Tensor | None,
    shared_limit: int,
) -> Tensor:
    """gt_t = e'(t_t) ⊙ (gt_{t+1} W_hh + gs_t W_yh) + structural·a_t, ``[G,T,B,H]``."""
    T, B, H = h.shape[1:]
    k = gs.shape[-1]
    G = _group(h, w.W_hh, w.W_yh, gs, a)
    gt = h.new_empty(G, T, B, H)
    code = NONLINEARITIES.index(nonlinearity)
    chosen = plan(H, k, hidden=False, shared_limit=shared_limit)
    if chosen.inputs_on_chip:
        terms = ScanTerms(w.W_hh, None, None, None, h, a, steps, code, structural)
        _launch_scan(launch, chosen, terms, (w.W_yh, gs), gt, True, stop)
        return gt
    u = _times(gs, w.W_yh)
    terms = ScanTerms(w.W_hh, None, None, u, h, a, steps, code, structural)
    return _scan(launch, terms, gt, True, stop, shared_limit)


# ---- one scan, in either form


class ScanTerms(NamedTuple):
    """Arguments of y_t = d_t ⊙ (y_{t∓1} W + u_t + bias) + coefficient·a_t.

    ``u [G,T_out,B,H]`` exists at ``steps`` only, if these are given. ``factor`` is d, or the
    states h that ``nonlinearity`` derives it from.
    """

    W: Tensor
    bias: Tensor | None
    initial_bias: Tensor | None
    u: Tensor | None
    factor: Tensor
    a: Tensor | None
    steps: Tensor | None
    nonlinearity: int
    coefficient: float


def _scan(
    launch: Launch,
    terms: ScanTerms,
    y: Tensor,
    reverse: bool,
    stop: Tensor | None,
    shared_limit: int,
) -> Tensor:
    chosen = plan(y.shape[-1], 0, hidden=False, shared_limit=shared_limit)
    if chosen.on_chip:
        _launch_scan(launch, chosen, terms, None, y, reverse, stop)
    else:
        _scan_by_steps(launch, terms, y, reverse, stop)
    return y


def _launch_scan(
    launch: Launch,
    chosen: Plan,
    terms: ScanTerms,
    outputs: tuple[Tensor, Tensor] | None,
    y: Tensor,
    reverse: bool,
    stop: Tensor | None,
) -> None:
    """The on-chip scan; ``outputs`` are W_yh and gs where the kernel multiplies them itself."""
    W_yh, gs = (None, None) if outputs is None else outputs
    G, T, B, H = y.shape
    _launch_sequence(
        launch,
        "linear_scan",
        chosen,
        (G, B),
        [
            stop,
            _distinct(
                carry=terms.W,
                input_weights=W_yh,
                input=gs,
                added=terms.u,
                factor=terms.factor,
                structural=terms.a,
            ),
            terms.W,
            W_yh,
            gs,
            terms.u,
            terms.factor,
            terms.a,
            terms.steps,
            y,
            T,
            B,
            H,
            0 if gs is None else gs.shape[-1],
            T if terms.steps is None else terms.steps.numel(),
            terms.nonlinearity,
            int(reverse),
            float(terms.coefficient),
            chosen.split,
        ],
    )


def _forward_by_steps(
    launch: Launch,
    u: Tensor,
    w: RnnWeights,
    nonlinearity: str,
    h: Tensor,
    stop: Tensor | None,
) -> None:
    """The forward pass by one GEMM and one epilogue a step."""
    G, T, B, H = h.shape
    z = h.new_empty(G, B, H)
    distinct = _distinct(bias=w.b_h, initial_bias=w.b_init, added=u)
    code = NONLINEARITIES.index(nonlinearity)
    for t in range(T):
        if t > 0:
            _step_product(h[:, t - 1], w.W_hh.mT, z)
        arguments = [stop, distinct, z if t else None, u, w.b_h, w.b_init, h, t, T, B, H, code]
        _launch_elements(launch, "rnn_forward_step", (G, B * H), arguments)


def _scan_by_steps(
    launch: Launch, terms: ScanTerms, y: Tensor, reverse: bool, stop: Tensor | None
) -> None:
    """The scan by one GEMM and one epilogue a step."""
    G, T, B, H = y.shape
    W, bias, initial_bias, u, factor, a, steps, code, coefficient = terms
    z = y.new_empty(G, B, H)
    distinct = _distinct(bias=bias, initial_bias=initial_bias, added=u, factor=factor, structural=a)
    slots = T if steps is None else steps.numel()
    previous: int | None = None
    for t in reversed(range(T)) if reverse else range(T):
        if previous is not None:
            _step_product(y[:, previous], W, z)
        carried = None if previous is None else z
        arguments: list[Argument] = [
            stop,
            distinct,
            carried,
            u,
            factor,
            a,
            bias,
            initial_bias,
            steps,
            y,
            t,
            T,
            B,
        ]
        arguments += [H, slots, code, float(coefficient)]
        _launch_elements(launch, "linear_scan_step", (G, B * H), arguments)
        previous = t


def _step_product(y: Tensor, W: Tensor, z: Tensor) -> None:
    """``z [G,B,H]`` = ``y [G,B,H]`` · ``W [1 or G,H,H]``."""
    torch.bmm(y, W.expand(y.shape[0], -1, -1), out=z)


# ---- products over the whole sequence


def _parameter_gradient(
    launch: Launch,
    gt: Tensor,
    gs: Tensor,
    h: Tensor,
    x: Tensor,
    steps: Tensor | None,
    v: Tensor | None,
    factors: tuple[float, float],
    G: int,
    out: Tensor | None,
    stop: Tensor | None,
) -> Tensor:
    """scale·[gtᵀ·[x, h_{t-1}, 1], gsᵀ·[h, 1]] + damping·v, flat ``[G,N]``."""
    n, H, k = x.shape[-1], h.shape[-1], gs.shape[-1]
    summed = _group(gt, gs, h, x)
    shape = RnnShape(n, H, k)
    g = gt.new_empty(summed, shape.numel)
    parts = split_flat(g, shape)
    # The column of ones gives the bias in the pass over gt that the input weights need anyway.
    with_ones = torch.cat([x, x.new_ones(*x.shape[:3], 1)], dim=-1)
    inputs_and_bias = _outer(gt, with_ones)
    parts.W_hx.copy_(inputs_and_bias[..., :n])
    parts.b_h.copy_(inputs_and_bias[..., n])
    if gt.shape[1] > 1:
        parts.W_hh.copy_(_outer(gt[:, 1:], h[:, :-1]))
    else:
        parts.W_hh.zero_()
    parts.W_yh.copy_(_outer(gs, _at(steps, h)))
    parts.b_init.copy_(gt[:, 0].sum(1))
    parts.b_y.copy_(gs.sum((1, 2)))
    out = g.new_empty(G, shape.numel) if out is None else out
    scale, damping = map(float, factors)
    distinct = _distinct(factor=g, added=v)
    arguments: list[Argument] = [stop, distinct, g, v, out, shape.numel, scale, damping]
    _launch_elements(launch, "scale_and_damp", (G, shape.numel), arguments)
    return out


def _at(steps: Tensor | None, y: Tensor) -> Tensor:
    """The chosen steps of ``y [G,T,B,i]``."""
    return y if steps is None else y.index_select(1, steps)


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
    G = _group(u, h, V)
    if u.shape[0] != G:
        u = u.expand(G, *u.shape[1:]).contiguous()
    u[:, 1:] += _times(h[:, :-1], V)
    return u


# ---- launching


def _launch_sequence(
    launch: Launch, kernel: str, chosen: Plan, size: tuple[int, int], arguments: Sequence[Argument]
) -> None:
    """Start an on-chip kernel: one block for 8 sequences of one net; ``size`` is (G, B)."""
    G, B = size
    launch(kernel, _grid(-(-B // ROWS), G), (chosen.threads, 1, 1), chosen.shared_bytes, arguments)


def _launch_elements(
    launch: Launch, kernel: str, size: tuple[int, int], arguments: Sequence[Argument]
) -> None:
    """Start an elementwise kernel; ``size`` is (G, elements of one net)."""
    G, elements = size
    blocks = -(-elements // ELEMENTWISE_THREADS)
    launch(kernel, _grid(blocks, G), (ELEMENTWISE_THREADS, 1, 1), 0, arguments)


def _grid(blocks: int, G: int) -> Dim3:
    if G > MOST_NETS:
        raise ValueError(f"the group has {G} nets or tangents, need at most {MOST_NETS}")
    return blocks, G, 1


def _distinct(
    *,
    carry: Tensor | None = None,
    hidden: Tensor | None = None,
    input_weights: Tensor | None = None,
    bias: Tensor | None = None,
    initial_bias: Tensor | None = None,
    input: Tensor | None = None,
    added: Tensor | None = None,
    factor: Tensor | None = None,
    structural: Tensor | None = None,
) -> int:
    """Bit mask of the arrays that have a group axis of their own, in the order of gpu_scan.cuh."""
    order = (carry, hidden, input_weights, bias, initial_bias, input, added, factor, structural)
    return sum(1 << bit for bit, a in enumerate(order) if a is not None and a.shape[0] > 1)


def _group(*arrays: Tensor | None) -> int:
    """Nets in the group: the longest first axis."""
    return max(a.shape[0] for a in arrays if a is not None)


def _dense(a: Tensor) -> Tensor:
    """Detached, C-contiguous, float32; an axis expanded from one net is cut back to length 1."""
    if a.dtype not in (torch.float32, torch.int64):
        raise TypeError(f"the CUDA recurrence kernels got {a.dtype}, need torch.float32")
    a = a.detach()
    if a.ndim > 1 and a.shape[0] > 1 and a.stride(0) == 0:
        a = a[:1]
    return a.contiguous().resolve_neg()


def _optional(a: Tensor | None) -> Tensor | None:
    return None if a is None else _dense(a)


def _dense_weights(w: RnnWeights) -> RnnWeights:
    return RnnWeights(*map(_dense, w))
