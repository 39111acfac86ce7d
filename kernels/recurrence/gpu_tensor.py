"""The recurrence on tensor cores in float32 quality: plans and launches gpu_tensor.cu.

Every float32 is taken as the sum of three bfloat16, and six of the nine products are summed:
errors are those of float32 products (``tests/support/tensor_core_errors.py`` prints both).
``gpu_choice.py`` says which nets these kernels serve, :func:`plan` in which form.

Note 1: results do not depend on the group or on the order of blocks, but may differ in their last
bits between generations of GPUs, whose tensor cores cut sums in ways of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from hfcore.kernels.gpu_launch import Argument, grid
from hfcore.kernels.recurrence import gpu_products as products
from hfcore.kernels.recurrence.gpu_launch import Run, distinct, group_of
from hfcore.kernels.recurrence.layout import NONLINEARITIES, RnnWeights

# What these kernels are compiled from and to, and the architectures on which a gate compiles them
# without spills (tests/gates/test_nvcc.py).
SOURCE = "gpu_tensor.cu"
BINARY = "gpu_tensor.fatbin"
CAPABILITIES = ((8, 0), (9, 0), (10, 0))

# The constants of gpu_tensor_tile.cuh, and the numbers of chunks that gpu_tensor.cu has.
UNITS, SEQUENCES, CHUNK_WORDS = 16, 8, 192
CHUNKS = (2, 4, 7, 8)
MOST_UNITS = UNITS * CHUNKS[-1]
LANE_WORDS = 32 * 4  # four values a lane
# Chunks of the R-op whose weights are in registers with all their pieces.
TANGENT_PIECES = {2: 2, 4: 4, 7: 1, 8: 1}
# Chunks of backpropagation, and whose weights are in registers with all their pieces likewise.
BACKWARD_PIECES = {2: 2, 4: 4, 7: 1}
# Of one step, which is counted in an int there.
MOST_ELEMENTS = 2**31


class TensorPlan(NamedTuple):
    """How one pass runs: chunks of 16 units, and whether its inputs are in their padding.

    Inputs that are not are multiplied for the whole sequence beforehand (``gpu_products.py``).
    """

    chunks: int
    inputs_on_chip: bool


def plan(H: int, m: int) -> TensorPlan | None:
    """The form for H units and m input columns, or None for H > 128.

    The smallest that holds units and inputs; where none does, the smallest that holds the units.
    """
    for columns, inputs in ((H + m, True), (H, False)):
        for chunks in CHUNKS:
            if columns <= UNITS * chunks:
                return TensorPlan(chunks, inputs)
    return None


def holds(B: int, H: int, m: int, *, with_gradient: bool) -> bool:
    """Whether these kernels run B sequences of a net of H units with m inputs.

    ``with_gradient``: whether :func:`rnn_backward` does.
    """
    held = plan(H, m) is not None and B * max(H, m) < MOST_ELEMENTS
    return held and (not with_gradient or _backward_chunks(H, m) is not None)


def rnn_forward(
    run: Run, x: Tensor, w: RnnWeights, nonlinearity: str, kept: Tensor | None, h: Tensor
) -> None:
    """Write the states to ``h [G,T or T_out,B,H]``, at the steps ``kept [T_out]`` or at all."""
    T, B, n = x.shape[1:]
    G, slots, _, H = h.shape
    chunks, fused = _plan(H, n)
    u = None if fused else products.step_inputs(run, True, x, w.W_hx)
    _launch(
        run,
        "rnn_forward",
        chunks,
        (G, B),
        32 * chunks,
        2 * CHUNK_WORDS * chunks,
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
        ],
    )


def rnn_tangent(
    run: Run,
    x: Tensor,
    h: Tensor,
    w: RnnWeights,
    v: RnnWeights,
    nonlinearity: str,
    kept: Tensor | None,
    Rh: Tensor,
) -> None:
    """Write Rh to ``Rh [G,T or T_out,B,H]``, at the steps ``kept [T_out]`` or at all."""
    T, B, n = x.shape[1:]
    G, slots, _, H = Rh.shape
    chunks, fused = _plan(H, n)
    u = None if fused else products.step_inputs(run, True, x, v.W_hx)
    beside = 2 * chunks * (chunks - TANGENT_PIECES[chunks]) * LANE_WORDS
    _launch(
        run,
        "rnn_tangent",
        chunks,
        (G, B),
        64 * chunks,
        (4 * CHUNK_WORDS + 2 * LANE_WORDS) * chunks + beside,
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
            v.W_hh,
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
        ],
    )


def _backward_chunks(H: int, n: int) -> int | None:
    """Chunks that hold H units, n inputs, a one, and one of the first step; None: none do."""
    return next((c for c in BACKWARD_PIECES if H + n + 2 <= UNITS * c), None)


def rnn_backward(
    run: Run,
    x: Tensor,
    h: Tensor,
    w: RnnWeights,
    gs: Tensor,
    a: Tensor | None,
    nonlinearity: str,
    steps: Tensor | None,
    structural: float,
) -> Tensor:
    """Σ_t gt_tᵀ·[x_t, h_{t-1}, 1, first step?] of every 8 sequences, ``[G,splits,H,n+H+2]``.

    ``gs [G,T_out,B,k]`` at ``steps``; gt has structural·``a [G,T,B,H]`` added.
    """
    T, B, n = x.shape[1:]
    H, k = h.shape[-1], gs.shape[-1]
    G = group_of(x, h, w.W_hh, w.W_yh, gs, a)
    chunks = _backward_chunks(H, n)
    assert chunks is not None  # holds() was asked
    fused = H + k <= UNITS * chunks
    u = None if fused else products.step_inputs(run, True, gs, w.W_yh, transposed=False)
    partial = run.scratch.take("hidden", h, G, -(-B // SEQUENCES), H, n + H + 2)
    beside = chunks * (chunks - BACKWARD_PIECES[chunks]) * LANE_WORDS
    _launch(
        run,
        "rnn_backward",
        chunks,
        (G, B),
        64 * chunks,
        4 * CHUNK_WORDS * chunks + beside,
        [
            run.stop,
            distinct(
                carry=w.W_hh,
                input_weights=w.W_yh,
                bias=gs,
                input=x,
                added=u,
                factor=h,
                structural=a,
            ),
            run.net_stride,
            w.W_hh,
            w.W_yh,
            x,
            h,
            gs if fused else None,
            u,
            a,
            steps,
            partial,
            T,
            B,
            H,
            n,
            k if fused else 0,
            T if steps is None else steps.numel(),
            NONLINEARITIES.index(nonlinearity),
            float(structural),
        ],
    )
    return partial


def _plan(H: int, m: int) -> TensorPlan:
    chosen = plan(H, m)
    assert chosen is not None  # holds() was asked
    return chosen


def _launch(
    run: Run,
    kernel: str,
    chunks: int,
    size: tuple[int, int],
    threads: int,
    words: int,
    arguments: Sequence[Argument],
) -> None:
    """Start a kernel: one block for 8 sequences of one net; ``size`` is (G, B)."""
    assert run.tensor.block is not None  # gpu_choice.py was asked
    G, B = size
    blocks = grid(-(-B // SEQUENCES), G)
    run.tensor.block(f"{kernel}_tensor_{chunks}", blocks, (threads, 1, 1), 4 * words, arguments)
