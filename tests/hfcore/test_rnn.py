"""hf.RNN against a plain loop: values, every kind of derivative, transforms, bad input."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)
from torch.fx.experimental.proxy_tensor import make_fx

import hfcore as hf
from hfcore.bindings import dispatch
from hfcore.models.recurrence_autograd import linear_scan
from oracles import rnn

Params = dict[str, Tensor]
NONLINEARITIES = tuple(rnn.ACTIVATIONS)
SHAPES = [  # T, B, n, H, k
    (1, 1, 1, 1, 1),
    (1, 3, 2, 5, 1),
    (2, 1, 1, 7, 3),
    (5, 7, 3, 1, 2),
    (7, 5, 2, 13, 3),
    (11, 17, 5, 19, 1),
]

pytestmark = [
    # torch.func.linearize of any function says this on torch 2.13.
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
]


@pytest.fixture(params=["reference", "fallback", "auto"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``fallback`` is the automatic choice where no compiled module exists."""
    if request.param == "fallback":
        monkeypatch.setattr(dispatch, "_native", None)
        monkeypatch.setattr(dispatch, "_native_error", "it is hidden by this test")
    with hf.use_backend("reference" if request.param == "reference" else None):
        yield request.param


def rnn_outputs(p: Params, x: Tensor, nonlinearity: str = "tanh") -> Tensor:
    return rnn.rnn(p, x, nonlinearity)[1]


def make(
    T: int = 4,
    B: int = 3,
    n: int = 2,
    H: int = 5,
    k: int = 2,
    nonlinearity: str = "tanh",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[hf.RNN, Params, Tensor]:
    """A net with no zero parameter, its parameters detached, and inputs."""
    g = torch.Generator().manual_seed(seed)
    model = hf.RNN(n, H, k, nonlinearity=nonlinearity, dtype=dtype, generator=g)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.8, generator=g)
    x = torch.randn(T, B, n, dtype=dtype, generator=g)
    return model, {name: p.detach() for name, p in model.named_parameters()}, x


def like(p: Params, seed: int = 1, *lead: int) -> Params:
    g = torch.Generator().manual_seed(seed)
    return {i: torch.randn(*lead, *v.shape, dtype=v.dtype, generator=g) for i, v in p.items()}


def assert_close(got: Any, want: Any, tolerance: float = 1e-11) -> None:
    """Same structure, and equal to ``tolerance`` relative to the largest entry."""
    got, want = (torch.utils._pytree.tree_flatten(a) for a in (got, want))
    assert got[1] == want[1]
    scale = max([1.0, *(b.detach().abs().max().item() for b in want[0])])
    for a, b in zip(got[0], want[0], strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=tolerance * scale)


def pair(model: hf.RNN, x: Tensor) -> tuple[Callable[[Params], Tensor], Callable[[Params], Tensor]]:
    """The net and the plain loop as functions of the parameters."""
    return (
        lambda p: functional_call(model, p, (x,)),
        lambda p: rnn_outputs(p, x, model.nonlinearity),
    )


# Forward


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "T{}-B{}-n{}-H{}-k{}".format(*s))
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_forward_is_the_definition(backend: str, nonlinearity: str, shape: tuple[int, ...]) -> None:
    model, p, x = make(*shape, nonlinearity=nonlinearity)
    want = rnn_outputs(p, x, nonlinearity)
    assert_close(model(x), want, 1e-13)
    with torch.no_grad():
        assert_close(model(x), want, 1e-13)
    with torch.inference_mode():
        assert_close(model(x), want, 1e-13)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_forward_and_gradient_in_float32(backend: str, nonlinearity: str) -> None:
    model, p, x = make(9, 5, 3, 17, 2, nonlinearity, torch.float32)
    s = model(x)
    assert s.dtype == torch.float32
    s.square().sum().backward()
    double = {name: v.double().requires_grad_() for name, v in p.items()}
    want = rnn_outputs(double, x.double(), nonlinearity)
    want.square().sum().backward()
    assert_close(s.double(), want, 1e-5)
    for name, q in model.named_parameters():
        assert_close(q.grad.double(), double[name].grad, 1e-5)


def test_inputs_need_not_be_contiguous(backend: str) -> None:
    model, p, x = make(6, 4, 4, 5, 2)
    for strided in (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        torch.cat([x, x], -1)[..., ::2].contiguous()[..., :4].flip(0),
        x[:, :1].expand(6, 4, 4),
    ):
        assert_close(model(strided), rnn_outputs(p, strided))
        with torch.no_grad():
            assert_close(model(strided), rnn_outputs(p, strided))


@pytest.mark.skipif(dispatch._native is None, reason="no compiled module")
def test_forced_cpu_is_the_automatic_choice_on_the_cpu() -> None:
    model, _, x = make(9, 5, 3, 17, 2)
    results = []
    for name in ("cpu", None):
        with hf.use_backend(name):
            s = model(x)
            with torch.no_grad():
                fused = model(x)
            gradient = torch.autograd.grad(s.square().sum(), list(model.parameters()))
        results.append(torch.cat([t.detach().flatten() for t in (s, fused, *gradient)]))
    assert torch.equal(*results)


def test_reference_is_plain_torch_and_the_rest_is_two_nodes() -> None:
    model, _, x = make()

    def nodes(s: Tensor) -> set[str]:
        seen, todo = set(), [s.grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo += [parent for parent, _ in node.next_functions]
        return {type(node).__name__ for node in seen}

    with hf.use_backend("reference"):
        plain = nodes(model(x))
    fused = nodes(model(x))
    assert "TanhBackward0" in plain
    assert "RnnHiddenBackward" not in plain
    assert "RnnHiddenBackward" in fused
    assert "TanhBackward0" not in fused


# Autograd


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_gradcheck_to_second_order(backend: str, nonlinearity: str) -> None:
    model, p, x = make(3, 2, 2, 3, 2, nonlinearity)
    inputs = [v.clone().requires_grad_() for v in (x, *p.values())]

    def f(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(model, dict(zip(rnn.NAMES, values, strict=True)), (x,))

    # The reference is plain torch: its legacy batched forward mode is torch's own business.
    fused = backend != "reference"
    assert torch.autograd.gradcheck(
        f, inputs, check_forward_ad=True, check_batched_grad=fused, check_batched_forward_grad=fused
    )
    assert torch.autograd.gradgradcheck(f, inputs, check_fwd_over_rev=True)


SCAN_GROUPS = [(1, 1, 1), (2, 2, 1), (1, 2, 1), (2, 1, 2), (1, 1, 2)]  # of u, d and W


@pytest.mark.parametrize(
    ("backend", "reverse", "groups"),
    # Both directions of the kernels; the reference in turn, as it is plain torch.
    [("auto", r, g) for r in (False, True) for g in SCAN_GROUPS]
    + [(b, i % 2 == 1, g) for b in ("reference", "fallback") for i, g in enumerate(SCAN_GROUPS)],
    indirect=["backend"],
)
def test_linear_scan_gradcheck(backend: str, reverse: bool, groups: tuple[int, int, int]) -> None:
    g = torch.Generator().manual_seed(3)
    T, B, H = 3, 2, 2
    shapes = [(groups[0], T, B, H), (groups[1], T, B, H), (groups[2], H, H)]
    u, d, W = (torch.randn(s, dtype=torch.float64, generator=g) for s in shapes)
    d[:, 1, 0] = 0.0  # a saturated unit: its d is 0, the gradient with respect to d is not
    inputs = [a.requires_grad_() for a in (u, d, W)]

    def f(u: Tensor, d: Tensor, W: Tensor) -> Tensor:
        return linear_scan(u, d, W, reverse)

    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, inputs, check_fwd_over_rev=True)


def test_frozen_parameters_get_no_gradient(backend: str) -> None:
    model, p, x = make()
    for name in ("W_hh", "b_init", "b_y"):
        getattr(model, name).requires_grad_(False)
    model(x).sum().backward()
    free = {name: v.clone().requires_grad_() for name, v in p.items()}
    rnn_outputs(free, x).sum().backward()
    for name, q in model.named_parameters():
        if q.requires_grad:
            assert_close(q.grad, free[name].grad)
        else:
            assert q.grad is None


def test_forward_mode_outside_of_torch_func(backend: str) -> None:
    model, p, x = make()
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    want = jvp(lambda x: rnn_outputs(p, x), (x,), (v,))[1]
    for recording in (True, False):
        with torch.set_grad_enabled(recording), forward_ad.dual_level():
            s = model(forward_ad.make_dual(x, v))
            assert_close(forward_ad.unpack_dual(s).tangent, want)


# torch.func


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_jvp_vjp_linearize(backend: str, nonlinearity: str) -> None:
    model, p, x = make(6, 5, 3, 7, 2, nonlinearity)
    f, plain = pair(model, x)
    v = like(p)
    want = jvp(plain, (p,), (v,))
    assert_close(jvp(f, (p,), (v,)), want)
    s, f_jvp = linearize(f, p)
    assert_close((s, f_jvp(v)), want)
    gs = torch.randn(want[0].shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    assert_close(vjp(f, p)[1](gs), vjp(plain, p)[1](gs))
    step = 1e-6
    up, down = (f({i: p[i] + sign * step * v[i] for i in p}) for sign in (1, -1))
    assert_close((up - down) / (2 * step), want[1], 1e-8)


@pytest.mark.parametrize("name", rnn.NAMES)
def test_each_parameter_alone(backend: str, name: str) -> None:
    model, p, x = make()
    f, plain = pair(model, x)

    def only(f: Callable[[Params], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda value: f({**p, name: value})

    v = like(p)[name]
    assert_close(jvp(only(f), (p[name],), (v,)), jvp(only(plain), (p[name],), (v,)))
    assert_close(jacrev(only(f))(p[name]), jacrev(only(plain))(p[name]))
    several = like(p, 4, 3)[name]
    assert_close(vmap(only(f))(several), vmap(only(plain))(several))
    assert_close(vmap(jacfwd(only(f)))(several), vmap(jacfwd(only(plain)))(several))


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_dense_jacobians_and_hessian(backend: str, nonlinearity: str) -> None:
    model, p, x = make(3, 2, 2, 3, 2, nonlinearity)
    f, plain = pair(model, x)
    J = jacfwd(plain)(p)
    assert_close(jacfwd(f)(p), J)
    assert_close(jacrev(f)(p), J)

    def loss(f: Callable[[Params], Tensor]) -> Callable[[Params], Tensor]:
        return lambda p: f(p).square().sum()

    want = hessian(loss(plain))(p)
    assert_close(hessian(loss(f))(p), want)
    assert_close(jacrev(jacrev(loss(f)))(p), want)
    assert_close(jacfwd(jacfwd(loss(f)))(p), want)


def test_hessian_in_the_inputs(backend: str) -> None:
    model, p, x = make(3, 2, 2, 3, 2)
    want = hessian(lambda x: rnn_outputs(p, x).square().sum())(x)
    assert_close(hessian(lambda x: model(x).square().sum())(x), want)


def test_gauss_newton_product_is_dense_JtJ(backend: str) -> None:
    model, p, x = make(4, 3, 2, 3, 2)
    f, plain = pair(model, x)
    J = torch.cat([j.flatten(3).flatten(0, 2) for j in jacfwd(plain)(p).values()], dim=1)
    V = like(p, 7, 5)

    def product(v: Params) -> Params:
        return vjp(f, p)[1](jvp(f, (p,), (v,))[1])[0]

    def flat(v: Params) -> Tensor:
        return torch.cat([v[name].flatten(1) for name in rnn.NAMES], dim=1)

    assert_close(flat(vmap(product)(V)), flat(V) @ J.mT @ J)
    one = {name: v[0] for name, v in V.items()}
    assert_close(product(one), {name: v[0] for name, v in vmap(product)(V).items()})


def test_ensemble_by_vmap(backend: str) -> None:
    models = [make(seed=seed)[0] for seed in range(3)]
    x = make()[2]
    p, buffers = stack_module_state(models)

    def f(p: Params, x: Tensor) -> Tensor:
        return functional_call(models[0], (p, buffers), (x,))

    want = torch.stack([m(x) for m in models])
    assert_close(vmap(f, (0, None))(p, x), want)
    own = torch.stack([x, 2 * x, x - 1])
    assert_close(vmap(f)(p, own), torch.stack([m(i) for m, i in zip(models, own, strict=True)]))
    nested = vmap(lambda x: vmap(f, (0, None))(p, x))(own)
    assert_close(nested, torch.stack([torch.stack([m(i) for m in models]) for i in own]))


def test_gradients_per_sequence_by_vmap(backend: str) -> None:
    model, p, x = make(4, 5, 2, 3, 2)

    def loss(p: Params, x: Tensor) -> Tensor:
        return functional_call(model, p, (x.unsqueeze(1),)).square().sum()

    got = vmap(grad(loss), (None, 1))(p, x)
    want = [
        grad(lambda p, b=b: rnn_outputs(p, x[:, b : b + 1]).square().sum())(p) for b in range(5)
    ]
    assert_close(got, {name: torch.stack([w[name] for w in want]) for name in p})


@pytest.mark.parametrize("axes", list(itertools.product([None, 0, 1], repeat=3))[1:], ids=str)
def test_linear_scan_vmap_over_any_arguments(backend: str, axes: tuple[int | None, ...]) -> None:
    g = torch.Generator().manual_seed(11)
    shapes = [(1, 3, 2, 4), (1, 3, 2, 4), (1, 4, 4)]
    args = []
    for shape, axis in zip(shapes, axes, strict=True):
        shape = list(shape)
        if axis is not None:
            shape.insert(axis, 3)
        args.append(torch.randn(shape, dtype=torch.float64, generator=g))
    got = vmap(lambda u, d, W: linear_scan(u, d, W, True), axes)(*args)
    each = [
        [a if axis is None else a.select(axis, i) for a, axis in zip(args, axes, strict=True)]
        for i in range(3)
    ]
    assert_close(got, torch.stack([linear_scan(*a, True) for a in each]))
    # A second level that maps only W meets a group that is already there.
    Ws = torch.stack([args[2], -args[2]])
    inner = vmap(lambda u, d, W: linear_scan(u, d, W, False), axes)
    got = vmap(lambda W: inner(args[0], args[1], W))(Ws)
    assert_close(got, torch.stack([inner(args[0], args[1], W) for W in Ws]))


TRANSFORMS: dict[str, Callable[[Callable[..., Any], Params], Callable[..., Any]]] = {
    "jvp": lambda f, v: lambda p: jvp(f, (p,), (v,))[1],
    "grad": lambda f, v: grad(
        lambda p: sum((a * a + 0.3 * a).sum() for a in torch.utils._pytree.tree_leaves(f(p)))
    ),
    "vmap": lambda f, v: (
        lambda p: vmap(lambda c: f({i: c * a for i, a in p.items()}))(
            torch.tensor([1.0, -0.5], dtype=torch.float64)
        )
    ),
}


@pytest.mark.parametrize(
    "stack", [s for r in (2, 3) for s in itertools.product(TRANSFORMS, repeat=r)], ids="-".join
)
def test_nested_transforms(backend: str, stack: tuple[str, ...]) -> None:
    model, p, x = make(3, 2, 2, 3, 2)
    f: Callable[..., Any]
    plain: Callable[..., Any]
    f, plain = pair(model, x)
    for name in stack:
        f, plain = (TRANSFORMS[name](g, like(p)) for g in (f, plain))
    assert_close(f(p), plain(p))


# Graphs


def test_what_linearize_captures(backend: str) -> None:
    """Its graph maps and backpropagates; torch.func cannot differentiate it, and says so."""
    if backend == "reference":
        pytest.skip("plain torch ops are captured one by one")
    model, p, x = make()
    f, plain = pair(model, x)
    _, f_jvp = linearize(f, p)
    V = like(p, 8, 3)
    torch._C._functorch._set_vmap_fallback_enabled(False)  # no loop over the mapped dimension
    try:
        mapped = vmap(f_jvp)(V)
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)
    assert_close(mapped, vmap(lambda v: jvp(plain, (p,), (v,))[1])(V))
    v = {name: a.requires_grad_() for name, a in like(p).items()}
    gs = torch.randn(4, 3, 2, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    back = torch.autograd.grad(f_jvp(v), list(v.values()), gs)
    assert_close(dict(zip(v, back, strict=True)), vjp(plain, p)[1](gs)[0])
    v = {name: a.detach() for name, a in v.items()}
    with pytest.raises(RuntimeError, match=r"torch\.func cannot differentiate .*linear_scan"):
        vjp(f_jvp, v)
    with pytest.raises(RuntimeError, match=r"torch\.func cannot differentiate .*linear_scan"):
        jvp(f_jvp, (v,), (v,))


def test_ops_never_drop_a_derivative(backend: str) -> None:
    """Called directly, an op either differentiates or raises."""
    g = torch.Generator().manual_seed(0)
    u, d, v = (torch.randn(1, 3, 2, 4, dtype=torch.float64, generator=g) for _ in range(3))
    W = torch.randn(1, 4, 4, dtype=torch.float64, generator=g)
    op = torch.ops.hfcore.linear_scan
    with pytest.raises(RuntimeError, match="cannot differentiate"):
        jvp(lambda u: op(u, d, W, False), (u,), (v,))
    with pytest.raises(RuntimeError, match="cannot differentiate"):
        grad(lambda u: op(u, d, W, False).sum())(u)
    with forward_ad.dual_level():
        y = op(forward_ad.make_dual(u, v), d, W, False)
        assert_close(forward_ad.unpack_dual(y).tangent, op(v, d, W, False))
    leaf = u.clone().requires_grad_()
    (gu,) = torch.autograd.grad(op(leaf, d, W, False), leaf, v)
    assert_close(gu, op(v, d, W.mT, True))


def test_each_op_is_one_node(backend: str) -> None:
    if backend == "reference":
        pytest.skip("plain torch ops are captured one by one")
    model, p, x = make(T=7)

    def captured(f: Callable[..., Any]) -> list[str]:
        graph = make_fx(f, tracing_mode="fake")(p, x).graph
        return [str(n.target) for n in graph.nodes if "hfcore" in str(n.target)]

    def s(p: Params, x: Tensor) -> Tensor:
        return functional_call(model, p, (x,))

    assert captured(s) == ["hfcore.rnn_outputs.default"]
    assert captured(lambda p, x: grad(lambda p: s(p, x).sum())(p)) == [
        "hfcore.rnn_hidden.default",
        "hfcore.linear_scan.default",
    ]


def test_a_captured_forward_pass_is_differentiable(backend: str) -> None:
    model, p, x = make()
    graph = make_fx(lambda p, x: functional_call(model, p, (x,)))(p, x)
    leaves = {name: v.clone().requires_grad_() for name, v in p.items()}
    graph(leaves, x).square().sum().backward()
    want = grad(lambda p: rnn_outputs(p, x).square().sum())(p)
    assert_close({name: v.grad for name, v in leaves.items()}, want)


@pytest.mark.parametrize("op", ["rnn_outputs", "rnn_hidden", "linear_scan"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(backend: str, op: str, requires_grad: bool) -> None:
    """torch's own check of schema, shapes and registration, eager and traced."""
    model, _, x = make()
    w = [a.detach().clone().requires_grad_(requires_grad) for a in model.weights()]
    u, d = (torch.rand(2, 4, 3, 5, dtype=x.dtype).requires_grad_(requires_grad) for _ in range(2))
    x = x.unsqueeze(0)
    arguments: dict[str, tuple[Any, ...]] = {
        "rnn_outputs": (x, *w, "tanh"),
        "rnn_hidden": (x, w[0], w[1], w[3], w[4], "logistic"),
        "linear_scan": (u, d, w[1], True),
    }
    torch.library.opcheck(getattr(torch.ops.hfcore, op), arguments[op])


def test_torch_compile(backend: str) -> None:
    """No graph break, and the backend is still chosen when the graph runs."""
    model, p, x = make()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    s = compiled(x)
    assert_close(s, rnn_outputs(p, x))
    s.square().sum().backward()
    want = grad(lambda p: rnn_outputs(p, x).square().sum())(p)
    assert_close({name: q.grad for name, q in model.named_parameters()}, want)
    with torch.no_grad():
        assert_close(compiled(x), rnn_outputs(p, x))


@pytest.mark.parametrize("name", ["jvp", "grad", "vmap"])
def test_compiled_transforms(backend: str, name: str) -> None:
    model, p, x = make()
    f, plain = pair(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(TRANSFORMS[name](f, like(p)), backend="aot_eager")
    if name == "jvp":
        with pytest.raises(torch._dynamo.exc.TorchRuntimeError, match="cannot differentiate"):
            compiled(p)
    else:
        assert_close(compiled(p), TRANSFORMS[name](plain, like(p))(p))


# Training


def trajectory(model: hf.RNN, x: Tensor, y: Tensor) -> tuple[list[float], Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()])


def test_adam_lowers_the_loss_as_on_the_reference(backend: str) -> None:
    model, _, x = make(10, 8, 2, 11, 1)
    y = x.cumsum(0).sum(-1, keepdim=True).tanh()
    with hf.use_backend("reference"):
        want = trajectory(copy.deepcopy(model), x, y)
    losses, theta = trajectory(model, x, y)
    assert losses[-1] < 0.5 * losses[0]
    torch.testing.assert_close(losses, want[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(theta, want[1], rtol=0, atol=1e-10)


# Module


def test_parameters_and_their_order() -> None:
    model = hf.RNN(3, 5, 2)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert list(shapes) == [*rnn.NAMES]
    assert tuple(shapes.values()) == model.shape.shapes == (
        (5, 3), (5, 5), (2, 5), (5,), (5,), (2,)
    )  # fmt: skip
    assert model.shape.numel == sum(p.numel() for p in model.parameters())
    assert repr(model) == "RNN(3, 5, 2, nonlinearity='tanh')"
    assert (model.input_size, model.hidden_size, model.output_size) == (3, 5, 2)


def test_weights_are_views_with_a_group_axis() -> None:
    model = hf.RNN(3, 5, 2)
    for detach in (False, True):
        for (name, p), w in zip(
            model.named_parameters(), model.weights(detach=detach), strict=True
        ):
            assert w.shape == (1, *p.shape), name
            assert w.data_ptr() == p.data_ptr()
            assert w.requires_grad is not detach


def test_default_initialisation() -> None:
    def build(seed: int) -> hf.RNN:
        return hf.RNN(64, 300, 200, generator=torch.Generator().manual_seed(seed))

    model = build(0)
    for W, fan_in in ((model.W_hx, 64), (model.W_hh, 300), (model.W_yh, 300)):
        assert W.std().item() * fan_in**0.5 == pytest.approx(1, abs=0.03)
        assert W.mean().item() * fan_in**0.5 == pytest.approx(0, abs=0.03)
    for b in (model.b_h, model.b_init, model.b_y):
        assert not b.any()
    same, other = build(0), build(1)
    assert torch.equal(model.W_hh, same.W_hh)
    assert not torch.equal(model.W_hh, other.W_hh)
    model.reset_parameters(torch.Generator().manual_seed(1))
    assert torch.equal(model.W_yh, other.W_yh)


def test_copies_and_conversions(backend: str) -> None:
    model, p, x = make(dtype=torch.float32, nonlinearity="logistic")
    s = model(x)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), make(seed=9)[0].float()]
    twins[2].nonlinearity = "logistic"
    twins[2].load_state_dict(model.state_dict())
    for twin in twins:
        assert torch.equal(twin(x), s)
        assert all(
            a.data_ptr() != b.data_ptr()
            for a, b in zip(twin.parameters(), model.parameters(), strict=True)
        )
    assert list(model.state_dict()) == [*rnn.NAMES]
    double = model.double()
    assert double(x.double()).dtype == torch.float64
    assert_close(
        double(x.double()),
        rnn_outputs({i: v.double() for i, v in p.items()}, x.double(), "logistic"),
    )
    assert model.to(torch.float32).W_hx.dtype == torch.float32
    assert torch.equal(model(x), s)


def test_half_precision_is_served_by_the_reference() -> None:
    model, p, x = make(dtype=torch.bfloat16)
    want = rnn_outputs({name: v.double() for name, v in p.items()}, x.double())
    s = model(x)
    assert s.dtype == torch.bfloat16
    assert_close(s.double(), want, 0.05)
    s.sum().backward()
    assert model.W_hh.grad.isfinite().all()


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size: got 0, need at least 1"),
        ({"hidden_size": -3}, ValueError, "hidden_size: got -3, need at least 1"),
        ({"output_size": 0}, ValueError, "output_size: got 0, need at least 1"),
        ({"hidden_size": 2.5}, TypeError, "hidden_size: got 2.5, need an int"),
        ({"input_size": True}, TypeError, "input_size: got True, need an int"),
        ({"nonlinearity": "sin"}, ValueError, "nonlinearity: got 'sin', need one of 'tanh'"),
        ({"dtype": torch.int64}, TypeError, "dtype: got torch.int64, need a real floating type"),
        ({"dtype": torch.complex64}, TypeError, "dtype: got torch.complex64, need a real"),
    ],
)
def test_bad_constructor_arguments(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"input_size": 2, "hidden_size": 3, "output_size": 1, **change}
    with pytest.raises(error) as caught:
        hf.RNN(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(4, 2), ValueError, "x: got shape [4, 2], need [T,B,2]"),
        (torch.zeros(1, 4, 3, 2), ValueError, "x: got shape [1, 4, 3, 2], need [T,B,2]"),
        (torch.zeros(4, 3, 5), ValueError, "x: got shape [4, 3, 5], need [T,B,2]"),
        (torch.zeros(0, 3, 2), ValueError, "T: got 0, need at least 1"),
        (torch.zeros(4, 0, 2), ValueError, "B: got 0, need at least 1"),
        (torch.zeros(4, 3, 2).double(), TypeError, "x: got torch.float64, need torch.float32"),
        (torch.zeros(4, 3, 2).long(), TypeError, "x: got torch.int64, need torch.float32"),
        (torch.zeros(4, 3, 2, device="meta"), ValueError, "x: is on meta, need cpu"),
        ([[[0.0, 0.0]]], TypeError, "x: got list, need a torch.Tensor"),
        (None, TypeError, "x: got NoneType, need a torch.Tensor"),
    ],
    ids=["rank2", "rank4", "n", "T0", "B0", "double", "long", "device", "list", "none"],
)
def test_bad_inputs(backend: str, x: Any, error: type[Exception], message: str) -> None:
    model = hf.RNN(2, 3, 1)
    for recording in (True, False):
        with torch.set_grad_enabled(recording), pytest.raises(error) as caught:
            model(x)
        assert message in str(caught.value)
