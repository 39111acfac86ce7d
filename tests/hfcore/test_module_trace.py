"""Recorded products: the same numbers as autograd's, in fewer and larger ops."""

from __future__ import annotations

import weakref
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from hfcore.autograd.double_vjp import DoubleVjp, Strategy
from hfcore.autograd.evaluation import flatten, placed
from hfcore.autograd.graph import Graph, Split
from hfcore.autograd.objective import ModuleObjective
from hfcore.autograd.trace import Node, NotTraceable, aten, trace
from hfcore.autograd.trace_compile import compile_program
from hfcore.autograd.trace_convolutions import by_patches
from hfcore.autograd.trace_copies import smaller_copies
from hfcore.autograd.trace_fusion import sum_below_views
from hfcore.autograd.trace_norms import norms_by_backward
from hfcore.autograd.trace_passes import optimise
from hfcore.autograd.trace_pooling import pool_first
from hfcore.autograd.trace_rewriter import Rewriter
from hfcore.autograd.traced import Traced
from oracles.modules import LOSSES, Loop, dense_matrix, relative_error, task


def graph_of(outputs: Tensor, parameters: list[Tensor]) -> Graph:
    """JᵀJ at outputs of a graph that was made by hand."""
    split = Split(outputs, lambda R: 1.0 * R)
    return Graph(parameters, outputs.sum(), [split], [], False, None, None)


def both(outputs: Tensor, parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A traced product and the double vjp's, for a tangent that neither was recorded at."""
    graph = graph_of(outputs, parameters)
    generator = torch.Generator().manual_seed(9)
    v = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    traced, plain = Traced(graph), DoubleVjp(graph)
    fresh, given = flatten(traced.apply(v, 0.0), v), given_memory(traced, v)[0]
    assert torch.equal(fresh, given)
    return fresh, flatten(plain.apply(v, 0.0), v)


def given_memory(strategy: Strategy, v: list[Tensor]) -> tuple[Tensor, list[bool]]:
    """A product in memory that held NaN, and which gradients were written there at once."""
    flat = torch.full((sum(p.numel() for p in v),), torch.nan, dtype=v[0].dtype)
    parts = flat.split([p.numel() for p in v])
    into = [part.view(p.shape) for part, p in zip(parts, v, strict=True)]
    grads = strategy.apply(v, 0.0, into)
    there = [
        g is not None and g.data_ptr() == p.data_ptr() for g, p in zip(grads, into, strict=True)
    ]
    return placed(grads, into, flat), there


def leaf(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_gradients_of_linear_layers_are_written_where_they_are_asked_for() -> None:
    """Weights, biases and scales of columns. What no product and no sum gives is copied, and what
    takes no part is zero."""
    W, b, c, d, unused = leaf(4, 3), leaf(4), leaf(4), leaf(2, 4), leaf(2)
    each = leaf(5, 4)
    x = leaf(5, 3, seed=1).detach()
    h = torch.tanh(torch.nn.functional.linear(x, W, b))
    graph = graph_of((h * each * c) @ d.t(), [W, b, c, d, each, unused])
    v = [leaf(*p.shape, seed=2).detach() for p in graph.parameters]
    got, there = given_memory(Traced(graph), v)
    assert there == [True, True, True, True, False, False]
    want = flatten(DoubleVjp(graph).apply(v, 0.0), v)
    assert relative_error(got, want) <= 1e-14
    assert torch.equal(got[-2:], torch.zeros(2, dtype=got.dtype))


@pytest.mark.parametrize("T", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("B", [1, 3])
def test_loops_of_any_length(T, B) -> None:
    model = Loop().double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(T, B, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(T, B, 3, generator=generator, dtype=torch.float64)
    products = []
    for strategy in ("trace", "double_vjp"):
        built = ModuleObjective(model, LOSSES["squared"], batch_dim=1, strategy=strategy)
        theta = built.parameters.read()
        data = built.prepare((x, y))
        v = torch.sin(torch.arange(len(theta), dtype=torch.float64))
        products.append(built.curvature(data, theta).product(v))
    assert relative_error(*products) <= 1e-13


def counted(T: int) -> Counter:
    """Ops of a loop's traced product by name."""
    model = Loop().double()
    x, y = torch.randn(T, 3, 2).double(), torch.randn(T, 3, 3).double()
    built = ModuleObjective(model, LOSSES["squared"], batch_dim=1, strategy="double_vjp")
    theta = built.parameters.read()
    (strategy, _), *_ = built.curvature(built.prepare((x, y)), theta)._strategies
    program = trace(lambda v: strategy.apply(v, 0.0), built.parameters.split(theta.clone()))
    return Counter(node.op for node in optimise(program).order())


def test_a_loop_costs_two_matrix_products_a_step() -> None:
    """W_hh forward and its transpose backward; all the rest is one product for all steps."""
    short, long = counted(8), counted(16)
    products = [aten.mm.default, aten.addmm.default]
    per_step = (sum(long[op] for op in products) - sum(short[op] for op in products)) / 8
    assert per_step == 2
    assert long[aten.tanh_backward.default] - short[aten.tanh_backward.default] == 16
    for op in (aten.select_backward.default, aten.sum.dim_IntList, aten.cat.default):
        assert long[op] == short[op]
    assert long[aten.select_backward.default] == 0
    assert (long.total() - short.total()) / 8 <= 9


def test_a_loop_that_skips_and_repeats_steps() -> None:
    """Slices scattered twice to one step, and steps that nothing was scattered to."""
    u, W = leaf(6, 2, 3), leaf(3, 3)
    for steps in ([0, 2, 2, 5], [1, 1, 1, 1], [5, 3, 1]):
        h = torch.tanh(u[steps[0]])
        for t in steps[1:]:
            h = torch.tanh(u[t] + h @ W.T)
        got, want = both(h, [u, W])
        assert relative_error(got, want) <= 1e-13


def test_sums_of_equal_products_and_shared_terms() -> None:
    """W used five times in places of two shapes; one product read by two sums."""
    W, b = leaf(4, 4), leaf(4)
    x = torch.randn(3, 4, dtype=torch.float64)
    shared = torch.tanh(x @ W)
    out = torch.cat([shared @ W + x @ W, x @ W @ W + shared + b, torch.tanh(x[:1] @ W.T)])
    got, want = both(out, [W, b])
    assert relative_error(got, want) <= 1e-13


def test_batched_products_convolutions_and_norms() -> None:
    w, k, n = leaf(2, 3, 3), leaf(2, 1, 3), leaf(3)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    a = torch.nn.functional.layer_norm(torch.bmm(x, w), (3,), n)
    out = torch.nn.functional.conv1d(a.reshape(10, 1, 3), k, padding=1).softmax(-1)
    got, want = both(out, [w, k, n])
    assert relative_error(got, want) <= 1e-13


def test_float32_product_is_within_rounding() -> None:
    problem = task("loop", "softmax")
    model = Loop()
    model.load_state_dict({n: p.float() for n, p in problem.model.state_dict().items()})
    built = ModuleObjective(model, problem.loss, batch_dim=1, strategy="trace")
    data = built.prepare((problem.x.float(), problem.y))
    v = torch.randn(len(problem.theta), generator=torch.Generator().manual_seed(2))
    got = built.curvature(data, built.parameters.read()).product(v)
    want = dense_matrix("loop", "softmax", "ggn") @ v.double()
    assert relative_error(got.double(), want) <= 2e-6


def test_in_place_ops_of_autograd_are_recorded_out_of_place() -> None:
    x = torch.rand(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def function(values: list[Tensor]) -> list[Tensor]:
        y = values[0] * 2
        y.add_(1.5 * values[0])
        return [y.mul_(x) + values[0]]

    program = trace(function, [torch.ones(3, dtype=torch.float64)])
    (got,) = compile_program(optimise(program))(x)
    # Positive terms: nothing cancels, and five roundings stay below ten units of the last place.
    torch.testing.assert_close(got, 3.5 * x * x + x, rtol=2e-15, atol=0)


def test_a_pass_that_finds_nothing_gives_the_program_itself() -> None:
    W, V = leaf(4, 3), leaf(2, 4)
    outputs = torch.tanh(leaf(5, 3, seed=1).detach() @ W.t()) @ V.t()
    product = DoubleVjp(graph_of(outputs, [W, V]))
    v = [leaf(*p.shape, seed=2).detach() for p in (W, V)]
    program = optimise(trace(lambda values: product.apply(values, 0.0), v))
    for rewrite in (pool_first, by_patches, sum_below_views, norms_by_backward, smaller_copies):
        assert rewrite(program) is program
    assert Rewriter(program).run(lambda node: None) is program
    # One that changes, and all that reads it.
    (first, *_) = program.order()
    changed = Rewriter(program).run(
        lambda node: Node(aten.neg.default, (v[0],)) if node is first else None
    )
    assert changed is not program
    assert first not in changed.order()


def test_what_a_list_of_ops_cannot_repeat_is_refused() -> None:
    buffer = torch.zeros(3)

    def reads_values(values: list[Tensor]) -> list[Tensor]:
        return [values[0] * float(values[0].sum())]

    def writes_a_constant_that_is_read(values: list[Tensor]) -> list[Tensor]:
        first = values[0] * buffer
        buffer.add_(values[0])
        return [first + buffer]

    def reads_a_view_that_was_overwritten(values: list[Tensor]) -> list[Tensor]:
        y = values[0] * 2
        view = y[:2]
        y.mul_(3)
        return [view * 1]

    for function, message in (
        (reads_values, "reads the values of a tangent"),
        (writes_a_constant_that_is_read, "writes into its arguments"),
        (reads_a_view_that_was_overwritten, "memory that is read again"),
    ):
        with pytest.raises(NotTraceable, match=message):
            trace(function, [torch.ones(3)])


def test_recording_holds_no_more_than_the_product() -> None:
    """Values die while they are recorded, as they do in the product itself."""
    most = [0]

    def function(values: list[Tensor]) -> list[Tensor]:
        y, made = values[0], []
        for _ in range(6):
            y = y * 2.0
            made.append(weakref.ref(y))
            most[0] = max(most[0], sum(ref() is not None for ref in made))
        return [y]

    trace(function, [torch.ones(1000)])
    assert most[0] <= 2


def test_trace_frees_the_graph_unless_structural_damping_needs_it() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    data = (torch.randn(4, 2).double(), torch.randn(4, 2).double())
    for structural, kept in ((None, False), ({"0": "tanh"}, True)):
        built = ModuleObjective(model, LOSSES["squared"], strategy="trace", structural=structural)
        curvature = built.curvature(built.prepare(data), built.parameters.read())
        assert (curvature._strategies[0][0]._graph is not None) == kept
