"""The recurrence of larger nets on tensor cores: plans and launches gpu_cluster.cu.

A cluster of 8 blocks holds the pieces of W_hh in its registers, takes 8 sequences through time, and
passes their states from block to block in shared memory. All other products (inputs, V_hh, outputs,
the gradients of weights) are over all steps at once: ``gpu_products.py``. ``gpu_choice.py`` says
which nets these kernels serve. Quality and note 1 are those of ``gpu_tensor.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from hfcore.kernels.gpu_launch import Argument, grid
from hfcore.kernels.recurrence.gpu_launch import Run, distinct
from hfcore.kernels.recurrence.gpu_tensor import CHUNK_WORDS, LANE_WORDS, SEQUENCES, UNITS
from hfcore.kernels.recurrence.layout import NONLINEARITIES, RnnWeights

# What these kernels are compiled from and to, and the architectures on which a gate compiles them
# without spills (tests/gates/test_nvcc.py).
SOURCE = "gpu_cluster.cu"
BINARY = "gpu_cluster.fatbin"
CAPABILITIES = ((9, 0), (10, 0))

# The constants of gpu_cluster_scan.cuh.
BLOCKS, SLICES, SUM_WORDS = 8, 4, 152


class ClusterPlan(NamedTuple):
    """A form of gpu_cluster.cu: chunks of 16 units in a slice, tiles of 16 units a block."""

    chunks: int
    tiles: int
    all_in_registers: int  # chunks whose smallest pieces are not in shared memory

    @property
    def threads(self) -> int:
        return 32 * self.tiles * SLICES

    @property
    def shared_bytes(self) -> int:
        rows = 2 * SLICES * self.chunks * CHUNK_WORDS
        sums = SLICES * self.tiles * SUM_WORDS
        beside = SLICES * self.tiles * (self.chunks - self.all_in_registers) * LANE_WORDS
        return 4 * (rows + sums + beside)


PLANS = (
    ClusterPlan(3, 2, 3),
    ClusterPlan(4, 2, 4),
    ClusterPlan(5, 3, 5),
    ClusterPlan(6, 3, 6),
    ClusterPlan(7, 4, 1),
    ClusterPlan(8, 4, 1),
)
MOST_UNITS = UNITS * SLICES * PLANS[-1].chunks
MOST_SHARED = max(p.shared_bytes for p in PLANS)


def plan(H: int) -> ClusterPlan:
    """The smallest form that holds H units; ValueError beyond 512."""
    for form in PLANS:
        if UNITS * SLICES * form.chunks >= H:
            return form
    raise ValueError(f"H: got {H}, need at most {MOST_UNITS}")


def rnn_forward(
    run: Run, u: Tensor, w: RnnWeights, nonlinearity: str, kept: Tensor | None, h: Tensor
) -> None:
    """Write the states to ``h [G,T or T_out,B,H]``, at the steps ``kept [T_out]`` or at all.

    ``u [1 or G,T,B,H]`` are the products of the inputs.
    """
    G, slots, B, H = h.shape
    _launch(
        run,
        "rnn_forward",
        (G, B, H),
        [
            run.stop,
            distinct(carry=w.W_hh, bias=w.b_h, initial_bias=w.b_init, added=u),
            run.net_stride,
            w.W_hh,
            w.b_h,
            w.b_init,
            u,
            kept,
            h,
            u.shape[1],
            B,
            H,
            slots,
            NONLINEARITIES.index(nonlinearity),
        ],
    )


def rnn_tangent(
    run: Run,
    u: Tensor,
    h: Tensor,
    w: RnnWeights,
    v: RnnWeights,
    nonlinearity: str,
    kept: Tensor | None,
    Rh: Tensor,
) -> None:
    """Write Rh to ``Rh [G,T or T_out,B,H]``, at the steps ``kept [T_out]`` or at all.

    ``u [1 or G,T,B,H]`` are the products V_hx x_t + V_hh h_{t-1}.
    """
    G, slots, B, H = Rh.shape
    _launch(
        run,
        "rnn_tangent",
        (G, B, H),
        [
            run.stop,
            distinct(carry=w.W_hh, bias=v.b_h, initial_bias=v.b_init, added=u, factor=h),
            run.net_stride,
            w.W_hh,
            v.b_h,
            v.b_init,
            u,
            h,
            kept,
            Rh,
            u.shape[1],
            B,
            H,
            slots,
            NONLINEARITIES.index(nonlinearity),
        ],
    )


def rnn_backward(
    run: Run,
    u: Tensor,
    h: Tensor,
    w: RnnWeights,
    a: Tensor | None,
    nonlinearity: str,
    steps: Tensor | None,
    structural: float,
    gt: Tensor,
) -> None:
    """Write gt_t to ``gt [G,T,B,H]``; ``u [1 or G,T_out,B,H]`` are the products gs_t W_yh.

    It has structural·``a [1 or G,T,B,H]`` added.
    """
    G, T, B, H = gt.shape
    _launch(
        run,
        "rnn_backward",
        (G, B, H),
        [
            run.stop,
            distinct(carry=w.W_hh, added=u, factor=h, structural=a),
            run.net_stride,
            w.W_hh,
            u,
            h,
            a,
            steps,
            gt,
            T,
            B,
            H,
            T if steps is None else steps.numel(),
            NONLINEARITIES.index(nonlinearity),
            float(structural),
        ],
    )


def _launch(
    run: Run, kernel: str, size: tuple[int, int, int], arguments: Sequence[Argument]
) -> None:
    """Start a kernel: one cluster for 8 sequences of one net; ``size`` is (G, B, H)."""
    assert run.tensor.cluster is not None  # gpu_choice.py was asked
    G, B, H = size
    form = plan(H)
    blocks = grid(BLOCKS * -(-B // SEQUENCES), G)
    run.tensor.cluster(
        f"{kernel}_cluster_{form.chunks}",
        blocks,
        (form.threads, 1, 1),
        form.shared_bytes,
        arguments,
    )
