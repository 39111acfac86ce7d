"""The ops on CUDA data against their references, on the shapes and groups of the CPU tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.bindings import conjugate_gradient, dense, draws, loss, recurrence, tensor_cores
from hfcore.bindings.contrastive import contrastive_update
from hfcore.bindings.draws import uniform
from hfcore.bindings.forms.dense import cuda as dense_form
from hfcore.bindings.forms.dense import measured
from hfcore.bindings.momentum import Step, lookahead_point, momentum_update
from hfcore.bindings.net import net_update
from hfcore.kernels.dense import gpu as dense_gpu
from hfcore.kernels.recurrence import RnnWeights
from oracles.cases import dense as layers
from oracles.cases import gated as cells
from oracles.cases import momentum as updates
from oracles.cases import net as nets
from oracles.cases import recurrence as of
from oracles.cases import sparse

pytestmark = pytest.mark.gpu


# All forms of the rule: inputs on chip or not, V on chip or not, one GEMM a step.
LARGE = (
    of.Size(6, 1000, 2, 100, 1),
    of.Size(5, 130, 2, 128, 3),
    of.Size(4, 65, 100, 150, 7),
    of.Size(4, 33, 5, 224, 2),
    of.Size(3, 40, 3, 300, 5),
    of.Size(3, 17, 64, 1024, 64),
)


def on_gpu(case: Any) -> Any:
    """The case's arrays on the GPU, expanded axes still expanded."""
    for name in ("x", "h", "v", "gs", "c", "u", "d", "a", "W"):
        setattr(case, name, moved(getattr(case, name)))
    case.w = RnnWeights(*map(moved, case.w))
    case.steps = None if case.steps is None else case.steps.cuda()
    return case


def moved(t: Tensor) -> Tensor:
    if t.shape[0] > 1 and t.stride(0) == 0:
        return t[:1].cuda().expand(t.shape)
    return t.cuda()


def results(case: Any) -> dict[str, Tensor]:
    """Every recurrence op on the case, by the backend in force."""
    x, w, steps, e = case.x, case.w, case.steps, case.nonlinearity
    h, s = recurrence.rnn_forward(x, w, nonlinearity=e, steps=steps)
    assert h is not None
    options = {"rank_one": True, "structural": 0.3, "damping": 0.2, "scale": 0.7}
    return {
        "h": h,
        "s": s,
        "s alone": recurrence.rnn_forward(x, w, nonlinearity=e, steps=steps, states=False)[1],
        "scan": recurrence.linear_scan(case.u, case.d, case.W, case.a),
        "reverse": recurrence.linear_scan(case.u, case.d, case.W, reverse=True),
        "gradient": recurrence.rnn_backward(x, case.h, w, case.gs, nonlinearity=e, steps=steps),
        "product": case.product(**options),
        "plain product": case.product(),
    }


def check(case: Any) -> None:
    """CUDA against the reference in float64 on the CPU."""
    size = case.size
    wide = {name: getattr(case, name) for name in ("x", "h", "v", "gs", "c", "u", "d", "a", "W")}
    w = case.w
    for name, value in wide.items():
        setattr(case, name, value.double())
    case.w = RnnWeights(*(p.double() for p in w))
    with hf.use_backend("reference"):
        want = results(case)
    for name, value in wide.items():
        setattr(case, name, value)
    case.w = w
    with hf.use_backend("cuda"):
        got = results(on_gpu(case))
    for name, value in got.items():
        of.assert_close(value.cpu(), want[name], of.tolerance(torch.float32, size))


@pytest.mark.parametrize("steps", of.STEPS)
@pytest.mark.parametrize("size", of.SIZES, ids=str)
def test_every_size(size: Any, steps: str) -> None:
    check(of.Case(size, torch.float32, "tanh", "alone", steps))


@pytest.mark.parametrize("nonlinearity", recurrence.NONLINEARITIES)
@pytest.mark.parametrize("group", of.GROUPS)
def test_every_group_and_nonlinearity(group: str, nonlinearity: str) -> None:
    check(of.Case(of.Size(5, 33, 3, 20, 2), torch.float32, nonlinearity, group, "scattered"))


@pytest.mark.parametrize("group", ["alone", "tangents", "distinct"])
@pytest.mark.parametrize("size", LARGE, ids=str)
def test_every_form_of_the_rule(size: Any, group: str) -> None:
    check(of.Case(size, torch.float32, "tanh", group, "last"))


# Every form on tensor cores, inputs in the padding and beside, gradients on them and not.
ON_TENSOR_CORES = (
    of.Size(3, 17, 1, 1, 1),
    of.Size(6, 33, 3, 20, 2),
    of.Size(5, 65, 30, 31, 33),
    of.Size(7, 130, 2, 100, 1),
    of.Size(200, 1000, 2, 100, 1),
    of.Size(4, 65, 3, 120, 2),
    of.Size(4, 33, 5, 128, 2),
)
# Every form of a cluster, B of one wave and of several.
ON_CLUSTERS = (
    of.Size(3, 17, 1, 129, 1),
    of.Size(4, 256, 3, 200, 2),
    of.Size(30, 100, 225, 300, 225),
    of.Size(200, 1000, 2, 300, 1),
    of.Size(5, 33, 2, 384, 3),
    of.Size(4, 65, 2, 448, 1),
    of.Size(20, 40, 3, 512, 5),
)


# One kernel a step: with splits and without, one group of sequences and several blocks of them.
BY_STEPS = (
    of.Size(4, 7, 2, 513, 1),
    of.Size(20, 100, 64, 1024, 64),
    of.Size(4, 1000, 2, 600, 3),
    of.Size(3, 4000, 2, 300, 1),
)


@pytest.mark.parametrize("group", ["alone", "tangents", "distinct"])
@pytest.mark.parametrize("size", ON_TENSOR_CORES + ON_CLUSTERS + BY_STEPS, ids=str)
def test_recurrence_on_tensor_cores(size: Any, group: str) -> None:
    """To the same tolerances as true float32; the same bits each time."""
    with hf.set_matmul_precision("bf16x6"):
        served = tensor_cores.in_words("recurrence.rnn_forward", torch.device("cuda"))
        launch = tensor_cores.launchers(torch.device("cuda"))
        served_by = launch.cluster if size in ON_CLUSTERS else launch.block
        if served_by is None:
            pytest.skip(f"NOT RUN: recurrences are{served}")
        case = of.Case(size, torch.float32, "tanh", group, "scattered")
        check(case)
        first, second = results(case), results(case)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_strides_and_buffers() -> None:
    case = on_gpu(of.Case(of.Size(5, 9, 3, 20, 2), torch.float32))
    want = recurrence.linear_scan(case.u, case.d, case.W)
    strided = case.u.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert torch.equal(recurrence.linear_scan(strided, case.d, case.W), want)
    out = torch.full_like(want, math.nan)
    assert recurrence.linear_scan(case.u, case.d, case.W, out=out) is out
    assert torch.equal(out, want)


def test_on_another_stream_and_device() -> None:
    """Kernels run on torch's current stream: what is enqueued before them is seen."""
    case = on_gpu(of.Case(of.Size(9, 200, 3, 64, 2), torch.float32))
    want = recurrence.linear_scan(case.u, case.d, case.W)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = torch.zeros_like(case.u)
        torch.cuda._sleep(10_000_000)
        late.copy_(case.u)
        got = recurrence.linear_scan(late, case.d, case.W)
    side.synchronize()
    assert torch.equal(got, want)
    if torch.cuda.device_count() > 1:
        other = torch.device("cuda", 1)
        moved_there = (t.to(other) for t in (case.u, case.d, case.W))
        assert torch.equal(recurrence.linear_scan(*moved_there).cpu(), want.cpu())


# Both forms: all steps in one kernel, and one product a step.
LARGE_CELLS = (
    (6, 1000, 2, 100),
    (4, 65, 3, 114),
    (4, 65, 3, 128),
    (3, 33, 5, 129),
    (3, 17, 64, 512),
)


@pytest.mark.parametrize("shape", [*cells.SHAPES, *LARGE_CELLS], ids=str)
@pytest.mark.parametrize("cell", cells.CELLS)
def test_gated(cell: str, shape: tuple[int, ...]) -> None:
    with hf.use_backend("cuda"):
        cells.Case(shape, torch.float32, cell).to("cuda").check(with_Rx=True)


@pytest.mark.parametrize("H", [17, 129])
@pytest.mark.parametrize("group", cells.GROUPS)
@pytest.mark.parametrize("cell", cells.CELLS)
def test_gated_group(cell: str, group: str, H: int) -> None:
    """Twice the same bits."""
    case = cells.Case((3, 33, 5, H), torch.float32, cell, group).to("cuda")
    with hf.use_backend("cuda"):
        case.check(with_Rx=True)
        first, second = case.results(with_Rx=True), case.results(with_Rx=True)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def layer_on_gpu(case: Any) -> Any:
    """The layer's arrays on the GPU; weights keep their odd offsets and group strides."""
    for name in ("a", "z", "y", "Ra", "add", "delta"):
        setattr(case, name, getattr(case, name).cuda())
    for weights, biases in (("W", "b"), ("V", "v_b")):
        G, size = getattr(case, weights).shape[0], case.m * case.n
        flat = torch.empty(G, size + case.m + 3, device="cuda", dtype=case.dtype)
        W, b = flat[:, 1 : 1 + size].view(G, case.m, case.n), flat[:, 1 + size : -2]
        setattr(case, weights, W.copy_(getattr(case, weights)))
        setattr(case, biases, b.copy_(getattr(case, biases)))
    case.device = "cuda"
    return case


def check_layer(case: Any, eps: float) -> None:
    """CUDA within the bounds of the CPU tests, for products of this rounding."""
    want = layers.oracle(case)
    with hf.use_backend("cuda"):
        found = layers.all_results(layer_on_gpu(case))
    K = max(case.B, 2 * case.n, case.m)
    for name, got in found.items():
        exact, terms = (t[: got.shape[0]] for t in want[name])
        excess = (got.cpu().double() - exact).abs() - (8 + 2 * math.sqrt(K)) * eps * terms
        assert not bool((excess > 0).any() | excess.isnan().any()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [*layers.SHAPES, (1000, 400, 130)], ids=str)
@pytest.mark.parametrize("e", dense.ACTIVATIONS)
def test_dense(e: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check_layer(layers.Case(shape, dtype, e), float(torch.finfo(dtype).eps))


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "triton"])
@pytest.mark.parametrize("group", layers.GROUPS)
def test_dense_group(group: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(dense_form, "compiled_form", lambda *_: False)
    check_layer(layers.Case((300, 17, 33), torch.float32, "tanh", group), 1.2e-7)


@pytest.mark.parametrize("shape", [*layers.SHAPES, (1000, 400, 130), (300, 784, 400)], ids=str)
def test_dense_in_six_bfloat16_products(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bounds of true float32, and with the same bits each time."""
    monkeypatch.setattr(measured, "precision", lambda *_: "bf16x6")
    case = layers.Case(shape, torch.float32, "tanh")
    check_layer(case, 1.2e-7)
    with hf.use_backend("cuda"):
        first, second = layers.all_results(case), layers.all_results(case)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_form_of_a_dense_layer_is_timed_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measured, "_file", lambda device: tmp_path / "choices.txt")
    measured._choices.cache_clear()
    case = layer_on_gpu(layers.Case((300, 17, 33), torch.float32, "tanh"))
    with hf.set_matmul_precision("bf16x6"), hf.use_backend("cuda"):
        layers.all_results(case)
        lines = (tmp_path / "choices.txt").read_text().splitlines()
        layers.all_results(case)
    assert {line.split()[0] for line in lines} == {
        "dense_forward", "dense_rforward", "dense_backward", "dense_gradient"
    }  # fmt: skip
    assert (tmp_path / "choices.txt").read_text().splitlines() == lines
    measured._choices.cache_clear()


@pytest.mark.parametrize("key", [(0, 0), (1, 1), (2**31 - 1, 2**32 - 1)])
def test_counted_numbers_are_those_of_the_cpu(key: tuple[int, int]) -> None:
    for count in (1, 1025, 20_000):
        got, want = (draws.shuffled(*key, count, torch.device(d)) for d in ("cuda", "cpu"))
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("tile", dense_gpu.TILES, ids=lambda tile: tile.name)
@pytest.mark.parametrize("shape", [(1, 1, 1), (131, 65, 17), (1000, 400, 130)], ids=str)
def test_every_tile_of_the_dense_kernels(
    shape: tuple[int, int, int], tile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_gpu, "tile_of", lambda *_: tile)
    monkeypatch.setattr(dense_gpu, "splits_of", lambda m, n, B: (tile, -(-B // min(B, 3))))
    check_layer(layers.Case(shape, torch.float32, "tanh"), 1.2e-7)


def test_a_layer_of_a_group_has_the_bits_that_it_has_alone() -> None:
    case = layer_on_gpu(layers.Case((600, 65, 33), torch.float32, "tanh", "nets"))
    together = layers.all_results(case)
    names = ("z", "a", "W", "b", "V", "v_b", "Ra", "add", "delta", "y")
    whole = {name: getattr(case, name) for name in names}
    nets, case.G = case.G, 1
    for g in range(nets):
        for name, value in whole.items():
            setattr(case, name, value[g : g + 1])
        alone = layers.all_results(case)
        assert all(torch.equal(together[name][g], alone[name][0]) for name in alone)


@pytest.mark.parametrize("kind", loss.KINDS)
@pytest.mark.parametrize("net", nets.NETS)
def test_whole_nets(net: str, kind: str) -> None:
    case = nets.Case(net, 17, kind, torch.float32, G=3)
    for name in ("x", "targets", "theta", "out"):
        setattr(case, name, getattr(case, name).cuda())
    with hf.use_backend("cuda"):
        losses, gradient = case.run()
    for name in ("x", "targets", "theta"):
        setattr(case, name, getattr(case, name).cpu())
    want_losses, want = nets.oracle(case)
    assert float((gradient.cpu().double() - want).norm()) <= 1e-5 * float(want.norm())
    torch.testing.assert_close(losses.cpu(), want_losses, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", loss.KINDS)
@pytest.mark.parametrize("net", nets.NETS)
def test_updates_of_whole_nets(net: str, kind: str) -> None:
    """θ and v of CPU and CUDA data after one update."""
    case = nets.Case(net, 17, kind, torch.float32, G=3)
    step, moved = Step(0.1, 0.9, 0.9, 0.01), []
    for device in ("cpu", "cuda"):
        theta, x, y = (t.to(device) for t in (case.theta, case.x, case.targets))
        velocity = theta / 10
        theta = theta.clone()
        active = torch.tensor([True, False, True])
        with hf.use_backend(device):
            losses = net_update(case.net, x, y, theta, velocity, step, active=active)
        moved.append([t.cpu() for t in (theta, velocity, losses)])
    for got, want in zip(*moved, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("hidden", ["logistic", "linear"])
@pytest.mark.parametrize("visible", ["logistic", "linear"])
def test_contrastive_divergence(visible: str, hidden: str) -> None:
    """θ, v and errors of CPU and CUDA data after one update, from the same counted numbers."""
    draw, moved = torch.Generator().manual_seed(0), []
    v, theta = torch.rand(2, 33, 50, generator=draw), torch.randn(2, 50 * 17 + 67, generator=draw)
    for device in ("cpu", "cuda"):
        noise = uniform(7, 1, torch.empty(1, 33, 17, device=device))
        arrays = [t.to(device, copy=True) for t in (theta / 8, theta / 16)]
        with hf.use_backend(device):
            errors = contrastive_update(
                v.to(device), noise, *arrays, visible=visible, hidden=hidden,
                learning_rate=0.1, momentum=0.9, weight_cost=0.01,
            )  # fmt: skip
        moved.append([noise.cpu(), *(t.cpu() for t in arrays), errors.cpu()])
    assert torch.equal(moved[0][0], moved[1][0])
    for got, want in zip(*moved, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("precision", "eps"), [("tf32x3", 4e-7), ("tf32", 2.0**-10)])
def test_dense_on_tensor_cores(precision: Any, eps: float) -> None:
    with hf.set_matmul_precision(precision):
        check_layer(layers.Case((300, 130, 70), torch.float32, "logistic"), eps)


def test_dense_is_repeatable_stops_and_allocates_nothing() -> None:
    case = layer_on_gpu(layers.Case((600, 65, 33), torch.float32, "tanh"))
    scratch = dense.Scratch()
    out = torch.empty_like(case.W), torch.empty_like(case.b)

    def run(stop: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return dense.dense_gradient(case.delta, case.a, out=out, scratch=scratch, stop=stop)

    want = [t.clone() for t in run()]
    before = allocations()
    again = run()
    assert allocations() == before
    assert all(torch.equal(a, b) for a, b in zip(again, want, strict=True))
    for t in out:
        t.fill_(math.pi)
    run(torch.ones(1, dtype=torch.int32, device="cuda"))
    assert all(bool((t == math.pi).all()) for t in out)
    run(torch.zeros(1, dtype=torch.int32, device="cuda"))
    assert all(torch.equal(a, b) for a, b in zip(out, want, strict=True))


def sparse_on_gpu(case: Any) -> Any:
    """The case's arrays on the GPU, and its pattern."""
    for name in ("x", "g", "u", "d", "a", "value"):
        if hasattr(case, name):
            setattr(case, name, moved(getattr(case, name)))
    case.pattern, case.device = case.pattern.to(case.value.device), case.value.device
    return case


def sparse_results(case: Any) -> dict[str, Tensor]:
    with hf.use_backend("cuda"):
        found: dict[str, Tensor] = sparse.all_results(sparse_on_gpu(case))
    for name in ("x", "g", "value"):
        setattr(case, name, getattr(case, name).cpu())
    case.pattern = case.pattern.to(torch.device("cpu"))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [*sparse.SHAPES, (256, 3000, 2000, 15)], ids=str)
def test_sparse(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    sparse.check_all(sparse.Case(shape, dtype, short=True), sparse_results)


@pytest.mark.parametrize("group", sparse.GROUPS)
def test_sparse_group(group: str) -> None:
    sparse.check_all(sparse.Case((33, 64, 65, 15), torch.float32, group, True), sparse_results)
    case = sparse_on_gpu(sparse.TimeCase(4, 70, 33, 15, torch.float32, group))
    with hf.use_backend("cuda"):
        case.check()
        first, second = case.results(), case.results()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("k", [1, 3, 100, 3000])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", loss.KINDS)
def test_loss(kind: str, masked: bool, k: int) -> None:
    draw = torch.Generator().manual_seed(0)
    T, B = 5, 33
    s = 3 * torch.randn(2, T, B, k, generator=draw)
    y = torch.rand(2, T, B, k, generator=draw)
    if kind == "softmax":
        y = torch.randint(k, (2, T, B), generator=draw)
    mask = torch.rand(1, T, B, generator=draw) < 0.7 if masked else None
    c = loss.loss_curvature(kind, s, y, mask)
    soft = kind == "softmax"

    def run(move: Callable[[Tensor], Tensor]) -> list[Tensor]:
        m = None if mask is None else mask.to(move(s).device)
        Y = move(y) if y.is_floating_point() else y.to(move(s).device)
        return [
            loss.loss_value(kind, move(s), Y, m, scale=0.3),
            loss.loss_gradient(kind, move(s), Y, m, scale=0.3),
            loss.loss_curvature(kind, move(s), Y, m),
            loss.loss_hessian_product(move(c), move(s), rank_one=soft, scale=0.3),
        ]

    with hf.use_backend("reference"):
        want = run(lambda t: t.double())
    with hf.use_backend("cuda"):
        got = run(lambda t: t.cuda())
    for a, b in zip(got, want, strict=True):
        bound = 1e-5 * max(float(b.abs().max()), 1e-30)
        assert float((a.cpu().double() - b).abs().max()) <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("N", [1, 1023, 10_501, 3_000_000])
def test_conjugate_gradient_updates(N: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    vectors = [torch.rand(N, generator=draw, dtype=dtype) + 0.1 for _ in range(6)]
    ends = []
    for device in ("cpu", "cuda"):
        x, r, p, Ap, b, M = (v.to(device, copy=True) for v in vectors)
        z = torch.empty_like(r)
        rz = conjugate_gradient.dot(r, r)
        scalars = conjugate_gradient.cg_update(x, r, z, p, Ap, b, rz, M)
        conjugate_gradient.cg_direction(p, z, 0.5)
        ends.append((torch.tensor([rz, *scalars], dtype=torch.float64), x, r, z, p))
    for want, got in zip(*ends, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=2e-5, atol=1e-5)


def updated_on_gpu(case: Any) -> Any:
    """The case after its update on the GPU, back on the CPU; coefficients stay on the CPU."""
    arrays = [t.cuda() for t in case[:3]]
    ahead = None if case.ahead is None else case.ahead.cuda()
    with hf.use_backend("cuda"):
        momentum_update(*arrays, **case.rates, ahead=ahead, active=case.active)
    back = None if ahead is None else ahead.cpu()
    return case._replace(theta=arrays[0].cpu(), velocity=arrays[1].cpu(), ahead=back)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("N", [*updates.SIZES, 3_000_000])
@pytest.mark.parametrize("form", updates.FORMS)
def test_momentum_update(form: str, N: int, dtype: torch.dtype) -> None:
    for G, shared in ((1, False), (3, True)):
        case = updates.make(G, N, dtype, form, shared=shared)
        updates.check(case, updated_on_gpu(case))


def test_momentum_update_of_a_group_has_the_bits_of_each_net_alone() -> None:
    case = updates.make(5, 10_501, torch.float32, "l2 ahead active")
    together = updated_on_gpu(case).outputs()
    for g in range(5):
        alone = updated_on_gpu(case.net(g)).outputs()
        assert all(torch.equal(a[g : g + 1], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("N", [1, 1023, 10_501, 3_000_000])
def test_lookahead_point_is_what_the_update_leaves(N: int) -> None:
    case = updated_on_gpu(updates.make(3, N, torch.float32, "ahead"))
    with hf.use_backend("cuda"):
        out = lookahead_point(case.theta.cuda(), case.velocity.cuda(), case.rates["lookahead"])
    assert torch.equal(out.cpu(), case.ahead)


def test_momentum_update_waits_for_nobody() -> None:
    arrays = [torch.rand(3, 10_501, device="cuda") for _ in range(4)]
    rates = [torch.rand(3, device="cuda", dtype=torch.float64) for _ in range(3)]
    active = torch.tensor([True, False, True], device="cuda")
    names = ("learning_rate", "momentum", "lookahead")
    given = dict(zip(names, rates, strict=True)) | {"ahead": arrays[3], "active": active}
    momentum_update(*arrays[:3], **given)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        momentum_update(*arrays[:3], **given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bitwise_repeatable() -> None:
    case = on_gpu(of.Case(of.Size(20, 1000, 2, 100, 1), torch.float32, steps="last"))
    first, second = results(case), results(case)
    assert all(torch.equal(first[name], second[name]) for name in first)
    a, b = torch.randn(3_000_000, device="cuda"), torch.randn(3_000_000, device="cuda")
    assert len({conjugate_gradient.dot(a, b) for _ in range(5)}) == 1


@pytest.mark.parametrize("size", LARGE[:3], ids=str)
def test_a_net_of_a_group_has_the_bits_that_it_has_alone(size: Any) -> None:
    """Wherever W_hh fits on chip, the gradient products included."""
    case = on_gpu(of.Case(size, torch.float32, "tanh", "distinct", "all"))
    G = max(p.shape[0] for p in case.w)
    together = case.product(rank_one=True, structural=0.3)
    for g in range(G):
        part = [t[g : g + 1] if t.shape[0] == G else t for t in (case.x, case.h, case.v, case.c)]
        x, h, v, c = part
        w = RnnWeights(*(p[g : g + 1] if p.shape[0] == G else p for p in case.w))
        alone = recurrence.rnn_gauss_newton(x, h, w, v, c, rank_one=True, structural=0.3)
        assert torch.equal(alone[0], together[g])


def test_a_raised_stop_flag_leaves_the_result_alone() -> None:
    case = on_gpu(of.Case(of.Size(5, 33, 2, 40, 1), torch.float32))
    out = torch.full_like(case.v, math.pi)
    stop = torch.ones(1, dtype=torch.int32, device="cuda")
    case.product(out=out, stop=stop)
    assert bool((out == math.pi).all())
    stop.zero_()
    case.product(out=out, stop=stop)
    assert torch.equal(out, case.product())


def allocations() -> int:
    count: int = torch.cuda.memory_stats()["allocation.all.allocated"]
    return count


def test_a_product_is_captured_in_a_graph_and_waits_for_nobody() -> None:
    case = on_gpu(of.Case(of.Size(9, 100, 2, 64, 1), torch.float32, steps="last"))
    out, scratch = torch.empty_like(case.v), recurrence.Scratch()
    case.product(out=out, scratch=scratch)  # loads, compiles, and looks at `steps` once
    before = allocations()
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.product(out=out, scratch=scratch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert allocations() == before
    want = out.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.product(out=out, scratch=scratch)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, want)


def test_refusals() -> None:
    case = on_gpu(of.Case(of.Size(4, 5, 2, 6, 1), torch.float32))
    with pytest.raises(ValueError, match="W: is on cpu, need cuda:0 like the other arguments"):
        recurrence.linear_scan(case.u, case.d, case.W.cpu())
    with pytest.raises(TypeError, match=r"d: got torch.float64, need torch\.float32"):
        recurrence.linear_scan(case.u, case.d.double(), case.W)
    with (
        hf.use_backend("cuda"),
        pytest.raises(hf.BackendUnavailable, match=r"computes in float32, not torch\.float64"),
    ):
        recurrence.linear_scan(case.u.double(), case.d.double(), case.W.double())
    with hf.use_backend("cpu"), pytest.raises(hf.BackendUnavailable, match="the data is on cuda"):
        recurrence.linear_scan(case.u, case.d, case.W)


def test_out_of_memory_names_op_asked_and_free() -> None:
    u = torch.zeros(1, 1, 1, 64, device="cuda").expand(1, 200_000, 20_000, 64)  # a terabyte
    W = torch.eye(64, device="cuda").unsqueeze(0)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        recurrence.linear_scan(u, u, W)
    for text in ("recurrence.linear_scan: out of memory on cuda:0", "MiB are free", "allocate"):
        assert text in str(raised.value)
