"""Every op by itself, against its reference and against plain torch where torch has the op."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from time import perf_counter

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import hfcore as hf
from bench.interleave import Contestant, Effort, compare
from hfcore.bindings import conjugate_gradient, draws, loss, recurrence
from hfcore.kernels.recurrence import RnnWeights

Call = Callable[[], object]

# Calls are repeated within one turn until it takes this long.
TURN = 2e-3

B, T, H, n, k = 1000, 100, 100, 2, 1


def race(
    benchmark: BenchmarkFixture,
    effort: Effort,
    op: str,
    shape: str,
    call: Call,
    others: dict[str, Call] | None = None,
    *,
    flops: float | None,
    bytes_moved: float | None = None,
) -> None:
    """Interleave ``call`` on the automatic backend, on the reference, and the others."""

    def reference() -> object:
        with hf.use_backend("reference"):
            return call()

    ours = call()
    ours = ours.clone() if isinstance(ours, Tensor) else ours
    plain = reference()
    if isinstance(ours, Tensor) and isinstance(plain, Tensor):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)
    lineup = {"hfcore": call, "reference backend": reference, **(others or {})}
    first, *rest = (Contestant(name, run, repeat=_repeat(run)) for name, run in lineup.items())
    compare(
        benchmark, effort, first, rest, group=op, case=shape, flops=flops, bytes_moved=bytes_moved
    )


def _repeat(run: Call) -> int:
    run()
    start = perf_counter()
    run()
    return max(1, round(TURN / (perf_counter() - start)))


class Net:
    """Weights, data, states and torch's own RNN for the recurrence ops; ``G`` nets at once."""

    def __init__(self, G: int = 1, B: int = B, T: int = T) -> None:
        draw = torch.Generator().manual_seed(0)
        models = [hf.RNN(n, H, k, generator=draw) for _ in range(G)]
        self.w = RnnWeights(
            *(
                torch.stack([p.detach() for p in ps])
                for ps in zip(*(m.parameters() for m in models), strict=True)
            )
        )
        self.x = torch.rand(1, T, B, n, generator=draw)
        self.last = torch.tensor([T - 1])
        h, s = recurrence.rnn_forward(self.x, self.w, steps=self.last)
        assert h is not None
        self.h, self.c = h, torch.ones_like(s)
        self.u = torch.randn(1, T, B, H, generator=draw)
        self.d = 1 - h[:1].square()
        self.v = torch.randn(G, sum(p.numel() for p in models[0].parameters()), generator=draw)
        self.torch_rnn = torch.nn.RNN(n, H)


def test_rnn_forward(benchmark: BenchmarkFixture, effort: Effort) -> None:
    net = Net()

    @torch.no_grad()
    def torch_rnn() -> object:
        return net.torch_rnn(net.x[0])

    race(
        benchmark,
        effort,
        "rnn_forward",
        f"B{B}-T{T}-H{H}-n{n}-k{k}-last",
        lambda: recurrence.rnn_forward(net.x, net.w, steps=net.last)[1],
        {"torch.nn.RNN forward": torch_rnn},
        flops=(2.0 * H * H + 2 * n * H) * B * T,
    )


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_linear_scan(benchmark: BenchmarkFixture, effort: Effort, reverse: bool) -> None:
    net = Net()
    W, out, result = net.w.W_hh, torch.empty(T, B, H), torch.empty(1, T, B, H)
    carry = torch.empty(B, H)
    u, d, y = net.u[0].unbind(0), net.d[0].unbind(0), out.unbind(0)
    order = list(reversed(range(T))) if reverse else list(range(T))

    def by_hand() -> Tensor:
        torch.mul(u[order[0]], d[order[0]], out=y[order[0]])
        for before, t in pairwise(order):
            torch.addmm(u[t], y[before], W[0], out=carry)
            torch.mul(carry, d[t], out=y[t])
        return out

    race(
        benchmark,
        effort,
        "linear_scan",
        f"B{B}-T{T}-H{H}-{'reverse' if reverse else 'forward'}",
        lambda: recurrence.linear_scan(net.u, net.d, W, reverse=reverse, out=result),
        {"torch by hand": by_hand},
        flops=2.0 * H * H * B * T,
    )


def test_rnn_backward(benchmark: BenchmarkFixture, effort: Effort) -> None:
    net = Net()
    gs = torch.randn_like(net.c)
    last = net.torch_rnn(net.x[0])[0][-1]
    weights = list(net.torch_rnn.parameters())
    gh = torch.randn_like(last)
    race(
        benchmark,
        effort,
        "rnn_backward",
        f"B{B}-T{T}-H{H}-n{n}-k{k}-last",
        lambda: recurrence.rnn_backward(net.x, net.h, net.w, gs, steps=net.last),
        {
            "torch.nn.RNN backward": lambda: torch.autograd.grad(
                last, weights, gh, retain_graph=True
            )
        },
        flops=(4.0 * H * H + 2 * n * H) * B * T,
    )


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "distinct"])
def test_rnn_gauss_newton_group(benchmark: BenchmarkFixture, effort: Effort, shared: bool) -> None:
    """Four tangents at once, of one net (``matmat``) or of four nets, against four calls."""
    G, B, T = 4, 200, 50
    net = Net(1 if shared else G, B, T)
    v = torch.randn(G, net.v.shape[1], generator=torch.Generator().manual_seed(1))

    def product(*group: slice) -> Tensor:
        rows = [
            recurrence.rnn_gauss_newton(
                net.x,
                net.h if shared else net.h[g],
                net.w if shared else RnnWeights(*(p[g] for p in net.w)),
                v[g],
                net.c if shared else net.c[g],
                steps=net.last,
                scale=1 / B,
            )
            for g in group
        ]
        return torch.cat(rows)

    race(
        benchmark,
        effort,
        "rnn_gauss_newton of a group",
        f"G{G}-{'shared' if shared else 'distinct'}-B{B}-T{T}-H{H}-n{n}-k{k}-last",
        lambda: product(slice(0, G)),
        {"hfcore, one at a time": lambda: product(*(slice(g, g + 1) for g in range(G)))},
        flops=8.0 * H * H * B * T * G,
    )


# Arithmetic operations an element, an exponential counted as one, and float32 arrays that pass.
@pytest.mark.parametrize("kind", loss.KINDS)
@pytest.mark.parametrize(
    ("op", "operations", "arrays"),
    [("value", 3, 2), ("gradient", 2, 3), ("curvature", 2, 2), ("hessian_product", 2, 3)],
)
def test_loss(
    benchmark: BenchmarkFixture, effort: Effort, kind: str, op: str, operations: int, arrays: int
) -> None:
    T, B, k = 100, 100, 100
    draw = torch.Generator().manual_seed(0)
    s = torch.randn(1, T, B, k, generator=draw)
    mask = torch.rand(1, T, B, generator=draw) < 0.9
    soft = kind == "softmax"
    y = torch.randint(k, (1, T, B), generator=draw) if soft else torch.rand(s.shape, generator=draw)
    c = loss.loss_curvature(kind, s, y, mask)
    calls: dict[str, Call] = {
        "value": lambda: loss.loss_value(kind, s, y, mask),
        "gradient": lambda: loss.loss_gradient(kind, s, y, mask),
        "curvature": lambda: loss.loss_curvature(kind, s, y, mask),
        "hessian_product": lambda: loss.loss_hessian_product(c, s, rank_one=soft),
    }
    race(
        benchmark,
        effort,
        f"loss_{op}",
        f"{kind}-T{T}-B{B}-k{k}",
        calls[op],
        flops=float(operations * s.numel()),
        bytes_moved=4.0 * arrays * s.numel(),
    )


@pytest.mark.parametrize("N", [10_501, 1_000_000], ids=lambda N: f"N{N}")
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "preconditioned"])
def test_cg_update(
    benchmark: BenchmarkFixture, effort: Effort, N: int, preconditioned: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    x, r, p, b = (torch.randn(N, generator=draw) for _ in range(4))
    z = torch.empty(N) if preconditioned else r
    M = torch.rand(N, generator=draw) + 1 if preconditioned else None
    Ap = p.clone()
    arrays = 10 if preconditioned else 7
    race(
        benchmark,
        effort,
        "cg_update",
        f"N{N}-{'preconditioned' if preconditioned else 'plain'}",
        lambda: conjugate_gradient.cg_update(x, r, z, p, Ap, b, 1e-3 * N, M),
        flops=12.0 * N,
        bytes_moved=4.0 * arrays * N,
    )


@pytest.mark.parametrize("N", [10_501, 1_000_000], ids=lambda N: f"N{N}")
def test_cg_direction(benchmark: BenchmarkFixture, effort: Effort, N: int) -> None:
    p, z = torch.randn(N), torch.randn(N)
    race(
        benchmark,
        effort,
        "cg_direction",
        f"N{N}",
        lambda: conjugate_gradient.cg_direction(p, z, 0.5),
        flops=2.0 * N,
        bytes_moved=12.0 * N,
    )


@pytest.mark.parametrize("N", [40_000, 1_000_000], ids=lambda N: f"N{N}")
def test_uniform(benchmark: BenchmarkFixture, effort: Effort, N: int) -> None:
    """Numbers of a counter-based stream, in the place of torch's generator."""
    out, other = torch.empty(N), torch.empty(N)
    generator = torch.Generator().manual_seed(0)
    race(
        benchmark,
        effort,
        "uniform",
        f"N{N}",
        lambda: draws.uniform(0, 1, out),
        {"torch's uniform_": lambda: other.uniform_(generator=generator)},
        flops=None,
        bytes_moved=4.0 * N,
    )
