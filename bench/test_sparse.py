"""Sparse ops beside torch.sparse, and the recurrence on entries beside the dense one over H."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import hfcore as hf
from bench.interleave import Effort
from bench.test_ops import Call, race
from hfcore.bindings import recurrence, sparse
from hfcore.fan_in import distinct_columns

B, N, K = 256, 10_000, 15
TIME_B, TIME_T = 100, 30


class Weights:
    """A square matrix of N units that hear K others, cases on both sides, torch's own forms."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.pattern = sparse.ell_pattern(distinct_columns(N, N, K, draw), N)
        self.value = torch.randn(1, N, K, generator=draw)
        self.x, self.g = (torch.randn(1, B, N, generator=draw) for _ in range(2))
        self.cases, self.entries = torch.empty(1, B, N), torch.empty(1, N, K)
        rows, back = self.pattern.rows, self.pattern.transposed
        flat = self.value.flatten()
        assert back.place is not None
        self.csr = self._csr(rows, flat)
        self.csr_t = self._csr(back, flat[back.place.long()])
        self.csr_zero = self._csr(rows, torch.zeros_like(flat))

    @staticmethod
    def _csr(rows: sparse.Rows, values: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(rows.start.long(), rows.column.long(), values, (N, N))


def calls_of(w: Weights) -> dict[str, tuple[Call, dict[str, Call]]]:
    """Each op, and torch's: on the same arrays, and on arrays that somebody has transposed before.

    torch's result on the same arrays is transposed too, [units, cases]; nobody pays for turning it.
    """
    x, g = w.x[0], w.g[0]
    x_t, g_t = x.T.contiguous(), g.T.contiguous()
    same, given = "torch.sparse CSR", "transposed before: torch.sparse CSR"
    return {
        "ell_matmul": (
            lambda: sparse.ell_matmul(w.x, w.value, w.pattern, out=w.cases),
            {
                same: lambda: torch.sparse.mm(w.csr, x.T),
                given: lambda: torch.sparse.mm(w.csr, x_t),
            },
        ),
        "ell_matmul_t": (
            lambda: sparse.ell_matmul_t(w.g, w.value, w.pattern, out=w.cases),
            {
                same: lambda: torch.sparse.mm(w.csr_t, g.T),
                given: lambda: torch.sparse.mm(w.csr_t, g_t),
            },
        ),
        "ell_gradient": (
            lambda: sparse.ell_gradient(w.g, w.x, w.pattern, out=w.entries),
            {
                same: lambda: torch.sparse.sampled_addmm(w.csr_zero, g.T, x, beta=0.0),
                given: lambda: torch.sparse.sampled_addmm(w.csr_zero, g_t, x_t.T, beta=0.0),
            },
        ),
    }


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights()


@pytest.mark.parametrize("op", ["ell_matmul", "ell_matmul_t", "ell_gradient"])
def test_sparse(benchmark: BenchmarkFixture, effort: Effort, weights: Weights, op: str) -> None:
    ours, others = calls_of(weights)[op]
    race(
        benchmark,
        effort,
        op,
        f"B{B}-N{N}-K{K}",
        ours,
        others,
        flops=2.0 * B * N * K,
        bytes_moved=4.0 * (2 * B * N + N * K) + 4.0 * N * K,
    )


@pytest.mark.parametrize(
    ("fan_in", "H"),
    [*((K, H) for H in (64, 100, 150, 300, 1000)), *((60, H) for H in (200, 400, 600))],
)
def test_recurrence(benchmark: BenchmarkFixture, effort: Effort, fan_in: int, H: int) -> None:
    """The two scans of a Gauss-Newton product: entries against dense (kernels/sparse/choice.py)."""
    draw = torch.Generator().manual_seed(0)
    pattern = sparse.ell_pattern(distinct_columns(H, H, min(fan_in, H), draw), H)
    value = torch.randn(1, H, pattern.K, generator=draw) / (2 * pattern.K**0.5)
    W = sparse.ell_dense(value, pattern)
    u = torch.randn(1, TIME_T, TIME_B, H, generator=draw)
    d = torch.rand(1, TIME_T, TIME_B, H, generator=draw)
    forward, back = torch.empty_like(u), torch.empty_like(u)

    def entries() -> Tensor:
        sparse.ell_scan(u, d, value, pattern, out=forward)
        return sparse.ell_scan(u, d, value, pattern, transposed=True, reverse=True, out=back)

    def dense() -> Tensor:
        recurrence.linear_scan(u, d, W.mT, out=forward)
        return recurrence.linear_scan(u, d, W, reverse=True, out=back)

    race(
        benchmark,
        effort,
        f"recurrence on {fan_in} entries a unit",
        f"B{TIME_B}-T{TIME_T}-H{H}",
        entries,
        {"dense W_hh": dense},
        flops=4.0 * TIME_B * TIME_T * H * pattern.K,
    )


@pytest.mark.parametrize(("fan_in", "H"), [(K, 100), (K, 150), (K, 300), (60, 200), (60, 400)])
def test_product(
    benchmark: BenchmarkFixture,
    effort: Effort,
    monkeypatch: pytest.MonkeyPatch,
    fan_in: int,
    H: int,
) -> None:
    """A whole product of a sparse hf.RNN in both forms: where the rule draws its line."""
    draw = torch.Generator().manual_seed(0)
    net = hf.RNN(2, H, 1, sparse=True, fan_in=fan_in, generator=draw)
    x = torch.rand(TIME_T, TIME_B, 2, generator=draw)
    y = torch.rand(TIME_T, TIME_B, 1, generator=draw)
    mask = torch.zeros(TIME_T, TIME_B, dtype=torch.bool)
    mask[-1] = True

    def operator(entries: bool) -> hf.GaussNewton:
        monkeypatch.setattr(sparse, "ell_is_faster", lambda *_: entries)
        return hf.GaussNewton(net, hf.losses.SquaredError(), x, y, mask=mask)

    on_entries, on_dense = operator(True), operator(False)
    v = torch.randn(on_entries.shape[0], generator=draw)
    race(
        benchmark,
        effort,
        "Gauss-Newton product of a sparse RNN on its entries",
        f"B{TIME_B}-T{TIME_T}-H{H}-K{fan_in}",
        lambda: on_entries @ v,
        {"on a dense W_hh": lambda: on_dense @ v},
        flops=8.0 * TIME_B * TIME_T * H * fan_in,
    )
