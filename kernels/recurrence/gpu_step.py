"""The recurrence of nets that no cluster serves on tensor cores: plans and launches gpu_step.cu.

A step is one kernel: the product of all units by all sequences, cut into splits of K where there
are few of both, with the nonlinearity or the factor on it. All other products are over all steps at
once: ``gpu_products.py``. ``gpu_choice.py`` says which nets these kernels serve. Quality and note 1
are those of ``gpu_tensor.py``.
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
SOURCE = "gpu_step.cu"
BINARY = "gpu_step.fatbin"
CAPABILITIES = ((8, 0), (9, 0), (10, 0))

# The constants of gpu_step_product.cuh.
TILES, GROUPS, COLUMNS, PACK_WARPS = 4, 2, 7, 8
THREADS = 32 * TILES * GROUPS
# Blocks that splits fill up to: one for each of 132 multiprocessors, on every GPU, so that all cut
# alike. A split has no fewer chunks than SHORTEST_SPLIT, for its sums to be worth their way.
BLOCKS, MOST_SPLITS, SHORTEST_SPLIT = 132, 8, 4


class StepPlan(NamedTuple):
    """Tiles of 16 units (and chunks of K), tiles of 8 sequences, blocks of a split, splits."""

    tiles: int
    columns: int
    blocks: int
    splits: int

    @property
    def groups(self) -> int:
        """Of 7 tiles of sequences."""
        return -(-self.columns // COLUMNS)


def plan(B: int, H: int) -> StepPlan:
    """How a step of B sequences of one net of H units is cut; G nets are cut alike."""
    tiles, columns = -(-H // UNITS), -(-B // SEQUENCES)
    blocks = -(-tiles // TILES) * -(-columns // (COLUMNS * GROUPS))
    splits = max(1, min(MOST_SPLITS, BLOCKS // blocks, tiles // SHORTEST_SPLIT))
    return StepPlan(tiles, columns, blocks, splits)


def rnn_forward(run: Run, u: Tensor, w: RnnWeights, nonlinearity: str, h: Tensor) -> None:
    """Write the states to ``h [G,T,B,H]``; ``u [1 or G,T,B,H]`` are the products of the inputs."""
    G, T, B, H = h.shape
    steps = _Steps(run, w.W_hh, (G, B, H), like=h, transposed=False)
    own = distinct(carry=w.W_hh, bias=w.b_h, initial_bias=w.b_init, added=u)
    code = NONLINEARITIES.index(nonlinearity)
    for t in range(T):
        rest: list[Argument] = [u, w.b_h, w.b_init, h, t, T, B, H]
        steps.launch("rnn_forward_step_tensor", own, rest, [code])


def rnn_tangent(
    run: Run, u: Tensor, h: Tensor, w: RnnWeights, v: RnnWeights, nonlinearity: str, Rh: Tensor
) -> None:
    """Write Rh to ``Rh [G,T,B,H]``; ``u [1 or G,T,B,H]`` are V_hx x_t + V_hh h_{t-1}."""
    terms = _Terms(w.W_hh, v.b_h, v.b_init, u, h, None, None, nonlinearity, 0.0)
    _scan(run, terms, Rh, reverse=False)


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
    terms = _Terms(w.W_hh, None, None, u, h, a, steps, nonlinearity, structural)
    _scan(run, terms, gt, reverse=True)


class _Terms(NamedTuple):
    """Of a scan, as gpu_step.cu says; W is transposed where it is in reverse."""

    W: Tensor
    bias: Tensor | None
    initial_bias: Tensor | None
    u: Tensor
    factor: Tensor
    a: Tensor | None
    steps: Tensor | None
    nonlinearity: str
    coefficient: float


def _scan(run: Run, of: _Terms, y: Tensor, *, reverse: bool) -> None:
    G, T, B, H = y.shape
    steps = _Steps(run, of.W, (G, B, H), like=y, transposed=reverse)
    own = distinct(
        carry=of.W,
        bias=of.bias,
        initial_bias=of.initial_bias,
        added=of.u,
        factor=of.factor,
        structural=of.a,
    )
    slots = T if of.steps is None else of.steps.numel()
    code = NONLINEARITIES.index(of.nonlinearity)
    for t in reversed(range(T)) if reverse else range(T):
        rest: list[Argument] = [
            of.u,
            of.factor,
            of.a,
            of.bias,
            of.initial_bias,
            of.steps,
            y,
            t,
            T,
            B,
            H,
            slots,
        ]
        steps.launch("linear_scan_step_tensor", own, rest, [code, float(of.coefficient)])


class _Steps:
    """The steps of one pass over G nets: their weights, packed, and what goes from step to step."""

    def __init__(
        self, run: Run, W: Tensor, size: tuple[int, int, int], *, like: Tensor, transposed: bool
    ) -> None:
        assert run.tensor.step is not None  # gpu_choice.py was asked
        self._start, self._stop, self._net_stride = run.tensor.step, run.stop, run.net_stride
        (self._G, B, H), take = size, run.scratch.take
        self._plan = tiles, columns, _, splits = plan(B, H)
        sums = LANE_WORDS * tiles * columns * splits if splits > 1 else 1
        counters = self._G * tiles * self._plan.groups
        packed = take("packed", like, W.shape[0], 3 * tiles * tiles * LANE_WORDS)
        self._counters = take("counters", like, counters)
        self._partial = take("partial", like, self._G, sums)
        self._rows = take("rows", like, 2, self._G, tiles * columns * CHUNK_WORDS)
        self._packed, self._done = packed, 0
        self._start(
            "pack_step_weights",
            grid(-(-(tiles * tiles) // PACK_WARPS), W.shape[0]),
            (32 * PACK_WARPS, 1, 1),
            0,
            [self._stop, run.net_stride, W, packed, self._counters, counters, H, int(transposed)],
        )

    def launch(
        self, kernel: str, own: int, rest: Sequence[Argument], last: Sequence[Argument]
    ) -> None:
        """The step after those before; nothing is carried into the first, which has no splits."""
        before, after = self._rows[(self._done + 1) % 2], self._rows[self._done % 2]
        first = self._done == 0
        splits = 1 if first else self._plan.splits
        self._start(
            kernel,
            grid(self._plan.blocks * splits, self._G),
            (THREADS, 1, 1),
            0,
            [
                self._stop,
                own,
                self._net_stride,
                self._packed,
                None if first else before,
                after,
                self._partial,
                self._counters,
                *rest,
                splits,
                *last,
            ],
        )
        self._done += 1
