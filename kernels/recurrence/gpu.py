"""Recurrence ops on CUDA kernels: plans shapes, allocates, launches. Float32 only.

The ops have the signatures of ``reference.py`` after a first parameter ``launch`` that starts a
kernel of ``gpu.cu`` by name; nothing here knows how (CuPy on a GPU, fibers on the CPU in tests).
``tensor`` starts those on tensor cores likewise: what ``gpu_choice.py`` gives them runs there, in
float32 quality, and all else in true float32.

No call waits for the device, and ``steps`` stays there, so every op can be captured in a CUDA
graph. ``stop`` is an int32 ``[1]`` flag on the device: where it is not zero every kernel exits at
once and leaves the result as it was (torch's GEMMs of larger nets run on: note 1 of
``gpu_products.py``). With a ``scratch`` of its own a product allocates nothing from its second
call on, if ``out`` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from hfcore.kernels.gpu_launch import Argument, Launch, dense, grid, in_rows, optional, round_up
from hfcore.kernels.recurrence import gpu_cluster, gpu_step, gpu_tensor
from hfcore.kernels.recurrence import gpu_products as products
from hfcore.kernels.recurrence.gpu_choice import tensor_form
from hfcore.kernels.recurrence.gpu_launch import (
    ELEMENTWISE_THREADS,
    NO_TENSOR_CORES,
    Run,
    TensorLaunch,
    at_steps,
    distinct,
    group_of,
)
from hfcore.kernels.recurrence.layout import (
    NONLINEARITIES,
    Curvature,
    ForwardPass,
    RnnShape,
    RnnWeights,
    split_flat,
)
from hfcore.kernels.scratch import Scratch

__all__ = [
    "linear_scan",
    "plan",
    "rnn_backward",
    "rnn_forward",
    "rnn_gauss_newton",
]


# Names a stretch of work for a profiler.
Annotate = Callable[[str], AbstractContextManager[None]]


def unnamed(_: str) -> AbstractContextManager[None]:
    """No names."""
    return nullcontext()


# Dynamic shared memory of a block: sm_80 has the least of the architectures that are compiled for.
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
SMALLEST_SHARED_LIMIT = min(SHARED_LIMIT.values())

GIVEN = 3  # the factor of a scan is d itself

# The constants of gpu_tile.cuh and what the kernels are compiled for.
ROWS, TILE, MAX_THREADS = 8, 4, 448
# Threads of a block up to H = 128: 8 warps, so that the four schedulers get two each.
FEW_THREADS = 256
# A thread's slice of K is no shorter than this: beyond it adding up costs more than it saves.
SHORTEST_SLICE = 4
# Input columns that join the K loop: reading them costs less than reading their product.
MOST_INPUTS = 32
# The constants of gpu_registers.cuh: slices of K, lengths of a slice.
SLICES = 8
LENGTHS = (4, 8, 13, 16)
MOST_IN_REGISTERS = SLICES * LENGTHS[-1]
STEP_NUMBERS = 4  # words of Rooms::numbers


class Plan(NamedTuple):
    """How one recurrence runs; :func:`plan` is the rule that chooses.

    ``on_chip``: time loop inside the kernel, weights in registers or in shared memory; else one
    GEMM a step and a fused epilogue. ``hidden_on_chip``: V_hh too. ``inputs_on_chip``: the input
    product is part of the kernel; else one product over the whole sequence (``gpu_products.py``)
    comes before. ``in_registers``: the kernel of ``gpu_registers.cuh``, with ``split`` the length
    of a slice of K; else ``split`` slices of K are summed by different threads.
    """

    on_chip: bool
    hidden_on_chip: bool
    inputs_on_chip: bool
    in_registers: bool
    split: int
    threads: int
    shared_bytes: int


def plan(H: int, m: int, *, hidden: bool, shared_limit: int) -> Plan:
    """The form for H units and m input columns; ``hidden`` for an R-op, which has V_hh as well.

    The first of these that fits a block (``shared_limit`` bytes, and two threads a unit of 448):

    1. all weights on chip, if m ≤ 32 (beyond, a product costs less than the longer chain);
    2. W_hh and V_hh on chip, inputs by one product for the sequence;
    3. W_hh on chip, V_hh and inputs by one product for the sequence;
    4. one GEMM of torch's a step with a fused epilogue.

    On chip is in registers up to H = 128 (1 and 2; shared memory passes W_hh and V_hh on to them),
    in shared memory beyond. With 232,448 bytes W_hh fits there up to H = 220 and W_hh with V_hh up
    to 156; with 166,912 up to 184 and 128.
    """
    forms = [(hidden, True), (hidden, False), (False, False)]
    for hidden_on_chip, inputs_on_chip in forms:
        inputs = m if inputs_on_chip else 0
        in_registers = H <= MOST_IN_REGISTERS and hidden_on_chip == hidden
        form = _in_registers if in_registers else _in_shared_memory
        fits = form(H, inputs, hidden_on_chip, inputs_on_chip)
        enough = fits.threads <= MAX_THREADS and inputs <= MOST_INPUTS
        if enough and fits.shared_bytes <= shared_limit:
            return fits
    return Plan(False, False, False, False, 0, ELEMENTWISE_THREADS, 0)


def own_products(H: int, shared_limit: int) -> bool:
    """Whether products over all steps are kernels of this package: where W_hh fits on chip."""
    return plan(H, 0, hidden=False, shared_limit=shared_limit).on_chip


def _in_registers(H: int, m: int, hidden: bool, inputs: bool) -> Plan:
    """Length of a slice, threads and shared memory of a block; V takes the place of W there."""
    length = next(length for length in LENGTHS if SLICES * length >= H)
    # 16 columns by all rows a warp, which leaves registers for V, or 32 columns by half of them.
    warps = -(-H // 16) if hidden else 2 * -(-H // 32)
    threads = max(32 * warps, round_up(ROWS * m, 32))
    rows = (4 if hidden else 2) * SLICES * (length | 1) * ROWS
    words = rows + m * (2 * ROWS + H) + (H - 1) * (H | 1) + H + STEP_NUMBERS
    return Plan(True, hidden, inputs, True, length, threads, 4 * words)


def _in_shared_memory(H: int, m: int, hidden: bool, inputs: bool) -> Plan:
    """Slices of K, threads and shared memory of a block that holds these weights."""
    groups = -(-H // TILE)
    tiles = 2 * groups
    K = (2 * H if hidden else H) + m
    most = FEW_THREADS if 2 * H <= FEW_THREADS else MAX_THREADS
    split = max(1, min(most // tiles, -(-K // SHORTEST_SLICE)))
    threads = round_up(max(tiles * split, 2 * H, ROWS * m), 32)
    weights, carry = groups * TILE * (K | 1), K * ROWS
    partial = split * groups * TILE * ROWS
    return Plan(True, hidden, inputs, False, split, threads, 4 * (weights + carry + partial))


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
    tensor: TensorLaunch = NO_TENSOR_CORES,
) -> tuple[Tensor | None, Tensor]:
    """``h [G,T,B,H]`` (None unless ``states``; in ``out`` if given) and ``s [G,T_out,B,k]``.

    Without ``states`` only the output steps are written. ``s`` is undefined after a ``stop``.
    """
    G = group_of(x, *w)
    parameters, net_stride = in_rows(*w)
    run = Run(launch, stop, shared_limit, Scratch(), tensor, net_stride)
    x, w, steps = dense(x), RnnWeights(*parameters), optional(steps)
    T, B, n = x.shape[1:]
    H = w.W_hh.shape[-1]
    own = own_products(H, shared_limit)
    chosen = plan(H, n, hidden=False, shared_limit=shared_limit)
    form = tensor_form(run, B, H, n)
    by_steps = form == "step" or (form is None and not chosen.on_chip)
    kept = None if states or by_steps else steps
    slots = T if kept is None else kept.numel()
    h = out if out is not None and states else x.new_empty(G, slots, B, H)
    if form == "block":
        gpu_tensor.rnn_forward(run, x, w, nonlinearity, kept, h)
    elif form == "cluster":
        u = products.step_inputs(run, own, x, w.W_hx)
        gpu_cluster.rnn_forward(run, u, w, nonlinearity, kept, h)
    elif form == "step":
        u = products.step_inputs(run, own, x, w.W_hx)
        gpu_step.rnn_forward(run, u, w, nonlinearity, h)
    else:
        _forward(run, own, chosen, x, w, nonlinearity, kept, h)
    s = products.outputs(run, own, h, kept is not None, w.W_yh, w.b_y, steps)
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
    G = group_of(u, d, W, a)
    (W,), net_stride = in_rows(W)
    run = Run(launch, stop, shared_limit, Scratch(), net_stride=net_stride)
    u, d, a = dense(u), dense(d), optional(a)
    y = u.new_empty(G, *u.shape[1:]) if out is None else out
    return _scan(run, ScanTerms(W, None, None, u, d, a, None, GIVEN, 1.0), y, reverse)


def rnn_backward(
    launch: Launch,
    at: ForwardPass,
    gs: Tensor,
    *,
    out: Tensor | None = None,
    stop: Tensor | None = None,
    shared_limit: int = SMALLEST_SHARED_LIMIT,
    tensor: TensorLaunch = NO_TENSOR_CORES,
    annotate: Annotate = unnamed,
) -> Tensor:
    """Flat parameter gradient ``[G,N]`` by BPTT from ``gs = ∂L/∂s [G,T_out,B,k]``."""
    (x, _, w, nonlinearity, steps), h = at, at.states
    G = group_of(x, h, *w, gs)
    (W_hh, W_yh), net_stride = in_rows(w.W_hh, w.W_yh)
    w = w._replace(W_hh=W_hh, W_yh=W_yh)
    run = Run(launch, stop, shared_limit, Scratch(), tensor, net_stride)
    x, h, gs, steps = dense(x), dense(h), dense(gs), optional(steps)
    out = _flat(out, G, x, h, gs)
    own = own_products(h.shape[-1], shared_limit)
    with annotate("reverse scan"):
        gt, hidden = _reverse_sums(run, own, x, h, w, gs, None, nonlinearity, steps, 0.0)
    with annotate("gradient products"):
        return products.parameter_gradient(
            run, own, gt, gs, h, x, steps, None, (1.0, 0.0), out, False, hidden
        )


def rnn_gauss_newton(
    launch: Launch,
    at: ForwardPass,
    v: Tensor,
    curvature: Curvature,
    *,
    out: Tensor | None = None,
    accumulate: bool = False,
    stop: Tensor | None = None,
    scratch: Scratch | None = None,
    shared_limit: int = SMALLEST_SHARED_LIMIT,
    tensor: TensorLaunch = NO_TENSOR_CORES,
    annotate: Annotate = unnamed,
) -> Tensor:
    """The product of :class:`Curvature` with flat tangents, ``[G,N]`` -> ``[G,N]``.

    R-op kernel, L'' at the output steps, reverse scan kernel, gradient products (all of
    :func:`reference.rnn_gauss_newton`). Without structural damping the R-op writes Rh at the
    output steps only, and no work of the outputs is done at any other step. ``accumulate`` adds to
    ``out``.
    """
    (x, _, w, nonlinearity, steps), h = at, at.states
    c, rank_one, scale, structural, damping = curvature
    G = group_of(x, h, *w, v, c)
    (W_hh, W_yh, v), net_stride = in_rows(w.W_hh, w.W_yh, v)
    w = w._replace(W_hh=W_hh, W_yh=W_yh)
    kept_scratch = Scratch() if scratch is None else scratch
    run = Run(launch, stop, shared_limit, kept_scratch, tensor, net_stride)
    x, h, c, steps = dense(x), dense(h), dense(c), optional(steps)
    out = _flat(out, G, x, h, c)
    own = own_products(h.shape[-1], shared_limit)
    tangent = split_flat(v, RnnShape(x.shape[-1], h.shape[-1], c.shape[-1]))
    kept = None if curvature.is_structural else steps
    with annotate("R-op"):
        Rh = _tangent(run, own, x, h, w, tangent, nonlinearity, kept)
        gs = products.output_curvature(
            run,
            own,
            Rh,
            kept is not None,
            h,
            w.W_yh,
            tangent.W_yh,
            tangent.b_y,
            c,
            rank_one,
            steps,
        )
    if isinstance(structural, Tensor):
        Rh, structural = Rh.mul_(structural), 1.0  # nobody reads Rh itself any more
    a = Rh if curvature.is_structural else None
    with annotate("reverse scan"):
        gt, hidden = _reverse_sums(run, own, x, h, w, gs, a, nonlinearity, steps, structural)
    with annotate("gradient products"):
        return products.parameter_gradient(
            run, own, gt, gs, h, x, steps, v, (scale, damping), out, accumulate, hidden
        )


def _flat(out: Tensor | None, G: int, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
    """The flat result ``[G,N]``: ``out`` or a new one."""
    N = RnnShape(x.shape[-1], h.shape[-1], c.shape[-1]).numel
    return x.new_empty(G, N) if out is None else out


# ---- the passes


def _forward(
    run: Run,
    own: bool,
    chosen: Plan,
    x: Tensor,
    w: RnnWeights,
    nonlinearity: str,
    kept: Tensor | None,
    h: Tensor,
) -> None:
    """The forward pass by FFMA: states to ``h [G,slots,B,H]``, at the steps ``kept`` or at all."""
    T, B, n = x.shape[1:]
    G, slots, _, H = h.shape
    fused = chosen.inputs_on_chip
    u = None if fused else products.step_inputs(run, own, x, w.W_hx)
    if chosen.on_chip:
        _launch_sequence(
            run,
            "rnn_forward",
            chosen,
            (G, B),
            [
                run.stop,
                distinct(
                    carry=w.W_hh,
                    input_weights=w.W_hx,
                    bias=w.b_h,
                    initial_bias=w.b_init,
                    input=x,
                    added=u,
                ),
                run.net_stride,
                w.W_hh,
                w.W_hx,
                w.b_h,
                w.b_init,
                x if fused else None,
                u,
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
        _forward_by_steps(run, u, w, nonlinearity, h)


def _tangent(
    run: Run,
    own: bool,
    x: Tensor,
    h: Tensor,
    w: RnnWeights,
    v: RnnWeights,
    nonlinearity: str,
    kept: Tensor | None,
) -> Tensor:
    """R-op through time: Rh at the steps ``kept [T_out]``, or at all; ``[G,T or T_out,B,H]``."""
    T, B, n = x.shape[1:]
    H = h.shape[-1]
    G = group_of(x, h, w.W_hh, v.W_hx, v.W_hh, v.b_h, v.b_init)
    slots = T if kept is None else kept.numel()
    form = tensor_form(run, B, H, n)
    if form == "block":
        Rh = run.scratch.take("Rh", x, G, slots, B, H)
        gpu_tensor.rnn_tangent(run, x, h, w, v, nonlinearity, kept, Rh)
        return Rh
    if form is not None:
        added = products.step_inputs(run, own, x, v.W_hx, h=h, V=v.W_hh)
        Rh = run.scratch.take("Rh", x, G, T if form == "step" else slots, B, H)
        if form == "cluster":
            gpu_cluster.rnn_tangent(run, added, h, w, v, nonlinearity, kept, Rh)
            return Rh
        gpu_step.rnn_tangent(run, added, h, w, v, nonlinearity, Rh)
        return at_steps(kept, Rh)
    chosen = plan(H, n, hidden=True, shared_limit=run.shared_limit)
    fused, hidden = chosen.inputs_on_chip, chosen.hidden_on_chip
    u: Tensor | None = None
    if not hidden:
        u = products.step_inputs(run, own, x, v.W_hx, h=h, V=v.W_hh)
    elif not fused:
        u = products.step_inputs(run, own, x, v.W_hx)
    code = NONLINEARITIES.index(nonlinearity)
    if not chosen.on_chip:
        assert u is not None
        Rh = run.scratch.take("Rh", x, G, T, B, H)
        terms = ScanTerms(w.W_hh.mT, v.b_h, v.b_init, u, h, None, None, code, 0.0)
        _scan_by_steps(run, terms, Rh, False)
        return at_steps(kept, Rh)
    Rh = run.scratch.take("Rh", x, G, slots, B, H)
    _launch_sequence(
        run,
        "rnn_tangent",
        chosen,
        (G, B),
        [
            run.stop,
            distinct(
                carry=w.W_hh,
                hidden=v.W_hh,
                input_weights=v.W_hx,
                bias=v.b_h,
                initial_bias=v.b_init,
                input=x,
                added=u,
                factor=h,
            ),
            run.net_stride,
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
            code,
            chosen.split,
        ],
    )
    return Rh


def _reverse_sums(
    run: Run,
    own: bool,
    x: Tensor,
    h: Tensor,
    w: RnnWeights,
    gs: Tensor,
    a: Tensor | None,
    nonlinearity: str,
    steps: Tensor | None,
    structural: float,
) -> tuple[Tensor | None, Tensor | None]:
    """gt of :func:`_reverse` and None, or None and the sums that one block makes in its place."""
    T, B, H = h.shape[1:]
    form = tensor_form(run, B, H, x.shape[-1], with_gradient=True)
    if form == "block":
        return None, gpu_tensor.rnn_backward(run, x, h, w, gs, a, nonlinearity, steps, structural)
    if form is not None:
        gt = run.scratch.take("gt", h, group_of(h, w.W_hh, w.W_yh, gs, a), T, B, H)
        u = products.step_inputs(run, own, gs, w.W_yh, transposed=False)
        larger = gpu_cluster if form == "cluster" else gpu_step
        larger.rnn_backward(run, u, h, w, a, nonlinearity, steps, structural, gt)
        return gt, None
    return _reverse(run, own, h, w, gs, a, nonlinearity, steps, structural), None


def _reverse(
    run: Run,
    own: bool,
    h: Tensor,
    w: RnnWeights,
    gs: Tensor,
    a: Tensor | None,
    nonlinearity: str,
    steps: Tensor | None,
    structural: float,
) -> Tensor:
    """gt_t = e'(t_t) ⊙ (gt_{t+1} W_hh + gs_t W_yh) + structural·a_t, ``[G,T,B,H]``."""
    T, B, H = h.shape[1:]
    k = gs.shape[-1]
    G = group_of(h, w.W_hh, w.W_yh, gs, a)
    gt = run.scratch.take("gt", h, G, T, B, H)
    code = NONLINEARITIES.index(nonlinearity)
    chosen = plan(H, k, hidden=False, shared_limit=run.shared_limit)
    if chosen.inputs_on_chip:
        terms = ScanTerms(w.W_hh, None, None, None, h, a, steps, code, structural)
        _launch_scan(run, chosen, terms, (w.W_yh, gs), gt, True)
        return gt
    u = products.step_inputs(run, own, gs, w.W_yh, transposed=False)
    terms = ScanTerms(w.W_hh, None, None, u, h, a, steps, code, structural)
    return _scan(run, terms, gt, True)


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


def _scan(run: Run, terms: ScanTerms, y: Tensor, reverse: bool) -> Tensor:
    chosen = plan(y.shape[-1], 0, hidden=False, shared_limit=run.shared_limit)
    if chosen.on_chip:
        _launch_scan(run, chosen, terms, None, y, reverse)
    else:
        _scan_by_steps(run, terms, y, reverse)
    return y


def _launch_scan(
    run: Run,
    chosen: Plan,
    terms: ScanTerms,
    outputs: tuple[Tensor, Tensor] | None,
    y: Tensor,
    reverse: bool,
) -> None:
    """The on-chip scan; ``outputs`` are W_yh and gs where the kernel multiplies them itself."""
    W_yh, gs = (None, None) if outputs is None else outputs
    G, T, B, H = y.shape
    _launch_sequence(
        run,
        "linear_scan",
        chosen,
        (G, B),
        [
            run.stop,
            distinct(
                carry=terms.W,
                input_weights=W_yh,
                input=gs,
                added=terms.u,
                factor=terms.factor,
                structural=terms.a,
            ),
            run.net_stride,
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


def _forward_by_steps(run: Run, u: Tensor, w: RnnWeights, nonlinearity: str, h: Tensor) -> None:
    """The forward pass by one GEMM and one epilogue a step."""
    G, T, B, H = h.shape
    z = run.scratch.take("z", h, G, B, H)
    own = distinct(bias=w.b_h, initial_bias=w.b_init, added=u)
    code = NONLINEARITIES.index(nonlinearity)
    for t in range(T):
        if t > 0:
            _step_product(h[:, t - 1], w.W_hh.mT, z)
        carried = z if t else None
        arguments = [
            run.stop, own, run.net_stride, carried, u, w.b_h, w.b_init, h, t, T, B, H, code
        ]  # fmt: skip
        _launch_elements(run, "rnn_forward_step", (G, B * H), arguments)


def _scan_by_steps(run: Run, terms: ScanTerms, y: Tensor, reverse: bool) -> None:
    """The scan by one GEMM and one epilogue a step."""
    G, T, B, H = y.shape
    W, bias, initial_bias, u, factor, a, steps, code, coefficient = terms
    z = run.scratch.take("z", y, G, B, H)
    own = distinct(bias=bias, initial_bias=initial_bias, added=u, factor=factor, structural=a)
    slots = T if steps is None else steps.numel()
    previous: int | None = None
    for t in reversed(range(T)) if reverse else range(T):
        if previous is not None:
            _step_product(y[:, previous], W, z)
        carried = None if previous is None else z
        arguments: list[Argument] = [
            run.stop,
            own,
            run.net_stride,
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
        _launch_elements(run, "linear_scan_step", (G, B * H), arguments)
        previous = t


def _step_product(y: Tensor, W: Tensor, z: Tensor) -> None:
    """``z [G,B,H]`` = ``y [G,B,H]`` · ``W [1 or G,H,H]``."""
    torch.bmm(y, W.expand(y.shape[0], -1, -1), out=z)


# ---- launching


def _launch_sequence(
    run: Run, kernel: str, chosen: Plan, size: tuple[int, int], arguments: Sequence[Argument]
) -> None:
    """Start an on-chip kernel: one block for 8 sequences of one net; ``size`` is (G, B)."""
    G, B = size
    block = (chosen.threads, 1, 1)
    kernel = f"{kernel}_registers" if chosen.in_registers else kernel
    run.launch(kernel, grid(-(-B // ROWS), G), block, chosen.shared_bytes, arguments)


def _launch_elements(
    run: Run, kernel: str, size: tuple[int, int], arguments: Sequence[Argument]
) -> None:
    """Start an elementwise kernel; ``size`` is (G, elements of one net)."""
    G, elements = size
    blocks = -(-elements // ELEMENTWISE_THREADS)
    run.launch(kernel, grid(blocks, G), (ELEMENTWISE_THREADS, 1, 1), 0, arguments)
