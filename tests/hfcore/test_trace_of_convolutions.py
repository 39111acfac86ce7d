"""Recorded products of convolutional nets, memory that is written over, what is held at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

import hfcore as hf
from hfcore.autograd import large_outputs, trace_convolutions
from hfcore.autograd.double_vjp import DoubleVjp
from hfcore.autograd.graph import Graph, Split, sample
from hfcore.autograd.trace import Program, aten, trace
from hfcore.autograd.trace_compile import compile_program
from hfcore.autograd.trace_passes import optimise
from hfcore.autograd.trace_reuse import Reuse
from oracles.modules import relative_error

NETS: dict[str, Callable[[], nn.Module]] = {
    "pooled": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2),
    ),
    "overlapping": lambda: nn.Sequential(
        nn.Conv2d(2, 3, (2, 3), stride=(2, 1)), nn.Tanh(), nn.MaxPool2d(3, 1, padding=1),
        nn.Conv2d(3, 2, 2, dilation=2, bias=False), nn.Sigmoid(), nn.MaxPool2d((2, 1)),
        nn.Flatten(),
    ),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.Flatten(),
    ),
    "shared": lambda: Twice(),
}  # fmt: skip


class Twice(nn.Module):
    """One convolution twice, its first result read again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.layer(x))
        second = nn.functional.max_pool2d(first, 2)
        return (self.layer(first) + first).flatten(1)[:, :8] + self.layer(second).flatten(1)[:, :8]


def graph(name: str) -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = NETS[name]().double()
        x = torch.randn(3, 2, 9, 8, dtype=torch.float64)
        parameters = list(model.parameters())
        s = model(x)
        split = Split(s, lambda R: R.mul_(0.5))
        return Graph(parameters, s.sum(), [split], [], False, None, None)


def recorded(graph: Graph) -> Program:
    plain = DoubleVjp(graph)
    return trace(lambda v: plain.apply(v, 0.0), sample(graph.parameters, False, 1))


def flat(parts: Any) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


@pytest.mark.parametrize("name", NETS)
def test_products_are_those_of_autograd(name: str) -> None:
    g = graph(name)
    program = optimise(recorded(g))
    want = flat(DoubleVjp(g).apply(sample(g.parameters, False, 3), 0.0))
    for reuse in (True, False):
        product = compile_program(program, reuse=reuse)
        for _ in range(2):  # what it wrote over is its own
            with torch.no_grad():
                got = flat(product(*sample(g.parameters, False, 3)))
            assert relative_error(got, want) <= 1e-13


def test_convolutions_of_constants_are_products_and_pools_come_first() -> None:
    """Of the first layer nothing is left to the library, of the second what meets tangents."""
    order = optimise(recorded(graph("pooled"))).order()
    convolutions = [node for node in order if node.op is aten.convolution.default]
    assert [isinstance(node.args[0], Tensor) for node in convolutions] == [False]
    backward = [node for node in order if node.op is aten.convolution_backward.default]
    assert [node.args[-1] for node in backward] == [[True, False, False]]
    pooled = {torch.Size((3, 3, 36)), torch.Size((3, 3, 4, 4))}
    thresholds = [node.shape for node in order if node.op is aten.threshold_backward.default]
    assert torch.Size((3, 3, 9, 8)) not in thresholds
    assert len(thresholds) == 4
    assert pooled & set(thresholds)


@pytest.mark.parametrize("most", [0, 100])
def test_patches_where_pooling_takes_them(most: int, monkeypatch: Any) -> None:
    """In the first layer, whose input is constant, nothing is pooled then."""
    monkeypatch.setattr(trace_convolutions, "POOLED", most)
    for name in ("pooled", "overlapping"):
        g = graph(name)
        program = optimise(recorded(g))
        ops = Counter(node.op for node in program.order())
        pools = 1 if most else 2
        assert ops[aten.gather.default] == pools
        assert ops[aten.max_pool2d_with_indices_backward.default] == pools
        v = sample(g.parameters, False, 3)
        want = flat(DoubleVjp(g).apply(v, 0.0))
        with torch.no_grad():
            assert relative_error(flat(compile_program(program)(*v)), want) <= 1e-13


def test_what_is_read_later_is_not_written_over() -> None:
    c = torch.arange(1.0, 5.0)

    def function(values: list[Tensor]) -> list[Tensor]:
        (v,) = values
        a = v * c  # writes nowhere: v is the caller's
        b = a * 2  # a is read below
        part = b[:2]
        d = b.neg()  # part, which is returned, shows b
        e = a.expand(2, 4) * c  # numbers that are one in memory
        return [part, d * c, e, v.view(2, 2).t() * 3]

    program = trace(function, [torch.ones(4)])
    order = program.order()
    reuse = Reuse(program, order)
    over = [node.op for node in order if reuse.op(node) is not node.op]
    assert over == [aten.mul.Tensor]  # d alone
    v = torch.tensor([3.0, -1.0, 0.5, 2.0])
    before = v.clone()
    product = compile_program(program)
    for _ in range(2):
        for got, want in zip(product(v), function([v]), strict=True):
            assert got is not None
            assert torch.equal(got, want)
    assert torch.equal(v, before)
    assert torch.equal(c, torch.arange(1.0, 5.0))


def test_parts_of_a_split_are_views_whatever_torch_says_of_them() -> None:
    """unsafe_split gives no alias in its schema."""

    def function(values: list[Tensor]) -> list[Tensor]:
        a = values[0] * 2
        first, second = torch.unsafe_split(a, 2)
        whole = a.neg()  # reads what first shows
        return [first * 3, whole + 1, second.exp()]

    program = trace(function, [torch.ones(4)])
    v = torch.tensor([3.0, -1.0, 0.5, 2.0])
    for got, want in zip(compile_program(program)(v), function([v]), strict=True):
        assert got is not None
        assert torch.equal(got, want)


def peak(call: Callable[[], Any]) -> tuple[Any, int, int]:
    """(result, bytes held at most, bytes held after) of torch's own allocations."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        result = call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return result, most, held


LOSSES = [nn.CrossEntropyLoss(), hf.losses.SoftmaxCrossEntropy(), hf.losses.SquaredError()]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("cut", [False, True])
def test_many_outputs_are_held_twice_in_a_product(loss: Any, cut: bool, monkeypatch: Any) -> None:
    """L'' once and the tangent of the outputs once, in whose place L'' times it stands; where they
    are large the tangent of a piece of the cases alone."""
    B, V = 256, 4000
    logits = 4 * B * V
    monkeypatch.setattr(large_outputs, "LARGE", logits if cut else logits + 4)
    model = nn.Sequential(nn.Linear(3, 1), nn.Tanh(), nn.Linear(1, V))
    x, y = torch.randn(B, 3), torch.randint(V, (B,))
    if isinstance(loss, hf.losses.SquaredError):
        y = torch.randn(B, V)
    G, building, kept = peak(lambda: hf.GaussNewton(model, loss, x, y))
    _, product, _ = peak(lambda: G @ torch.ones(G.shape[0]))
    assert kept <= 1.1 * logits
    assert kept + product <= (1.7 if cut else 2.3) * logits
    assert building <= (2.6 if cut else 4.5) * logits


class Centred(nn.Module):
    """Mixes the cases of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        s: Tensor = self.layer(x)
        return s - s.mean(0)


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_pieces_of_large_outputs_add_up(mixes: bool, weighted: bool, monkeypatch: Any) -> None:
    """In float64 against J of the whole; a model that mixes its cases is not cut."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (Centred() if mixes else nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))).double()
        x, y = torch.randn(7, 2, dtype=torch.float64), torch.randint(4, (7,))
        weight = torch.rand(4, dtype=torch.float64) if weighted else None
    loss = nn.CrossEntropyLoss(weight=weight)
    parameters = dict(model.named_parameters())

    def outputs(theta: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in parameters.values()])
        shaped = (t.view_as(p) for t, p in zip(parts, parameters.values(), strict=True))
        s: Tensor = functional_call(model, dict(zip(parameters, shaped, strict=True)), (x,))
        return s

    theta = flat([p.detach() for p in parameters.values()])
    J = jacobian(outputs, theta).flatten(0, 1)
    H = hessian(lambda s: loss(s, y), outputs(theta)).reshape(len(J), len(J))
    monkeypatch.setattr(large_outputs, "LARGE", 1)
    G = hf.GaussNewton(model, loss, x, y)
    assert len(G._curvature._strategies) == (1 if mixes else 3)
    assert relative_error(G @ torch.eye(len(theta), dtype=torch.float64), J.T @ H @ J) <= 1e-12
    assert G.loss == pytest.approx(float(loss(outputs(theta), y)), rel=1e-12)
    damped = hf.GaussNewton(model, loss, x, y, damping=0.3)
    v, out = theta.cos(), torch.full_like(theta, torch.nan)
    assert damped.matvec(v, out=out) is out
    assert relative_error(out, J.T @ (H @ (J @ v)) + 0.3 * v) <= 1e-12
