"""hf.RNN with sparse hidden-to-hidden weights: the same net as the dense one, on its pattern."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.bindings import sparse as ops
from hfcore.flat import FlatParameters
from hfcore.objective_factory import objective_for

n, H, k, T, B = 3, 23, 2, 5, 7
FORMS = ("entries", "dense")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which form the time loop takes, whatever the rule says."""
    name: str = request.param
    monkeypatch.setattr(ops, "ell_is_faster", lambda *_: name == "entries")
    return name


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sparse_net(e: str = "tanh", short: bool = True, H: int = H) -> hf.RNN:
    """Biases that are not zero; every third row has fewer entries than the others."""
    net = hf.RNN(
        n, H, k, nonlinearity=e, dtype=torch.float64, sparse=True, fan_in=4, generator=generator()
    )
    with torch.no_grad():
        for b in (net.b_h, net.b_init, net.b_y):
            b.normal_(generator=generator(1))
        if short:
            index, value = net.hidden_index.clone(), net.W_hh.clone()
            index[::3, 2:] = index[::3, 1:2]
            value[::3, 2:] = 0
            net.set_recurrence(index, value)
    return net


def dense_twin(net: hf.RNN) -> hf.RNN:
    """The same net with a dense W_hh."""
    twin = hf.RNN(n, net.hidden_size, k, nonlinearity=net.nonlinearity, dtype=torch.float64)
    state = net.state_dict()
    state.pop("hidden_index")
    state["W_hh"] = torch.zeros_like(twin.W_hh)
    for i, row in enumerate(net.hidden_index.tolist()):
        for q, j in enumerate(row):
            if q == 0 or j != row[q - 1]:
                state["W_hh"][i, j] = net.W_hh[i, q].item()
    twin.load_state_dict(state)
    return twin


def selection(net: hf.RNN, twin: hf.RNN) -> Tensor:
    """P ``[N_dense,N]``: where each parameter of the sparse net stands in the dense one's θ."""
    sizes = [p.numel() for p in net.parameters()]
    P = torch.zeros(sum(p.numel() for p in twin.parameters()), sum(sizes), dtype=torch.float64)
    before, wide = sizes[0], sizes[0]
    H, K = net.hidden_index.shape
    P[:before, :before] = torch.eye(before)
    for i, row in enumerate(net.hidden_index.tolist()):
        for q, j in enumerate(row):
            if q == 0 or j != row[q - 1]:
                P[wide + i * H + j, before + i * K + q] = 1
    rest = sum(sizes[2:])
    P[wide + H * H :, before + H * K :] = torch.eye(rest)
    return P


def batch(masked: bool = True, T: int = T) -> hf.Batch:
    draw = generator(2)
    x, y = torch.randn(T, B, n, generator=draw), torch.randn(T, B, k, generator=draw)
    mask = torch.rand(T, B, generator=draw) < 0.7 if masked else None
    if mask is not None:
        mask[0] = False
        mask[-1, 0] = True
    return hf.Batch(x.double(), y.double(), mask)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


# ---------------------------------------------------------------------------- module


@pytest.mark.parametrize("e", ["tanh", "logistic", "relu"])
def test_outputs_and_gradients_are_those_of_the_dense_net(e: str, form: str) -> None:
    net = sparse_net(e)
    twin, x = dense_twin(net), batch().inputs.requires_grad_()
    close(net(x), twin(x))
    P = selection(net, twin)

    def gradients(model: hf.RNN) -> tuple[Tensor, Tensor]:
        gx, *g = torch.autograd.grad(model(x).sin().sum(), [x, *model.parameters()])
        return gx, torch.cat([t.flatten() for t in g])

    (gx, g), (want_gx, want) = gradients(net), gradients(twin)
    close(gx, want_gx)
    close(g, P.mT @ want)


def test_one_step_and_one_case(form: str) -> None:
    net = sparse_net()
    x = torch.randn(1, 1, n, dtype=torch.float64)
    close(net(x), dense_twin(net)(x))
    net(x).sum().backward()
    assert net.W_hh.grad is None or not bool(net.W_hh.grad.any())


def test_second_derivatives_by_double_backward(form: str) -> None:
    net = sparse_net()
    x = batch(T=3).inputs[:, :2]
    parameters = list(net.parameters())

    def loss(*values: Tensor) -> Tensor:
        names = [name for name, _ in net.named_parameters()]
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(net, named, (x,)).sin().sum()

    assert torch.autograd.gradgradcheck(loss, parameters, atol=1e-6, fast_mode=True)


def test_forward_mode_and_vmap_take_the_dense_form(form: str) -> None:
    net = sparse_net()
    twin, x = dense_twin(net), batch().inputs
    named = dict(net.named_parameters())
    tangents = {
        name: torch.randn(p.shape, dtype=p.dtype, generator=generator(3))
        for name, p in named.items()
    }
    P = selection(net, twin)
    wide = P @ torch.cat([t.flatten() for t in tangents.values()])
    sizes = [p.numel() for p in twin.parameters()]
    moved = {
        name: part.view_as(p)
        for (name, p), part in zip(twin.named_parameters(), wide.split(sizes), strict=True)
    }

    def pushed(model: hf.RNN, direction: dict[str, Tensor]) -> Tensor:
        def outputs(values: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(model, values, (x,))

        result: Tensor = torch.func.jvp(outputs, (dict(model.named_parameters()),), (direction,))[1]
        return result

    close(pushed(net, tangents), pushed(twin, moved))
    many = torch.func.vmap(lambda a: net(a))(torch.stack([x, 2 * x]))
    close(many, torch.stack([net(x), net(2 * x)]))


def test_state_is_kept_and_loaded() -> None:
    net = sparse_net()
    other = hf.RNN(n, H, k, dtype=torch.float64, sparse=True, fan_in=4, generator=generator(9))
    x = batch().inputs
    before = other(x)
    held = other.pattern
    index = held.index.clone()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    assert not torch.equal(before, net(x))
    assert torch.equal(held.index, index), "a pattern that others hold changed with the buffer"
    assert set(net.state_dict()) == {*(name for name, _ in net.named_parameters()), "hidden_index"}
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), net(x))
    assert net.float()(x.float()).dtype == torch.float32


def test_the_rule_and_what_it_says_of_a_net() -> None:
    assert not ops.ell_is_faster(100, 15, "cpu")
    assert not ops.ell_is_faster(400, 100, "cpu")
    assert not ops.ell_is_faster(1000, 15, "cuda")
    assert ops.ell_is_faster(2000, 15, "cpu")
    assert hf.RNN(2, 500, 1, sparse=True).runs_sparse
    assert not hf.RNN(2, 30, 1, sparse=True).runs_sparse
    assert not hf.RNN(2, 500, 1).runs_sparse
    assert "sparse=True, fan_in=15" in repr(hf.RNN(2, 30, 1, sparse=True))
    assert hf.RNN(2, 7, 1, sparse=True).W_hh.shape == (7, 7)


# ---------------------------------------------------------------------------- initialisations


@pytest.mark.parametrize(
    "start",
    [
        lambda net, g: hf.init.sparse_(net, g, fan_in=4),
        lambda net, g: hf.init.sparse_(net, g, fan_in=4, replacement=True),
        lambda net, g: hf.init.sparse_(net, g, fan_in=3),
        lambda net, g: hf.init.esn_(net, g, fan_in=4),
        lambda net, g: hf.init.esn_(net, g, fan_in=2),
    ],
)
def test_initialised_as_the_dense_net(start: Callable[[hf.RNN, torch.Generator], None]) -> None:
    net, twin = sparse_net(), dense_twin(sparse_net())
    start(net, generator(4))
    start(twin, generator(4))
    assert torch.equal(net.weights().W_hh[0], twin.W_hh)
    for name in ("W_hx", "W_yh", "b_h", "b_init", "b_y"):
        assert torch.equal(getattr(net, name), getattr(twin, name))


def test_initialisations_that_do_not_fit() -> None:
    net = sparse_net()
    with pytest.raises(ValueError, match="fan_in: got 5, need at most 4, the entries a row of"):
        hf.init.esn_(net, generator(), fan_in=5)
    with pytest.raises(ValueError, match=r"model: the hf\.RNN is sparse, need gaussian_"):
        hf.init.glorot_(net, generator())
    hf.init.gaussian_(net, generator())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, v: (i[:-1], v[:-1]), r"index: got shape \[22, 4\], need \[23,F\]"),
        (lambda i, v: (i.flip(1), v), "index: row 0 is .* need columns that increase"),
        (lambda i, v: (i + H, v), r"index: row 0 has column \d+, need columns in 0\.\.22"),
        (lambda i, v: (i, v[:, :2]), r"value: got shape \[23, 2\], need \[23,4\]"),
        (lambda i, v: (i[:, :1].expand(-1, 4), v + 1), "value: is not 0 where a row repeats"),
    ],
)
def test_bad_recurrences(change: Callable[[Tensor, Tensor], Any], message: str) -> None:
    net = sparse_net(short=False)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=message):
        net.set_recurrence(*change(net.hidden_index.clone(), net.W_hh.detach().clone()))
    assert all(torch.equal(v, before[key]) for key, v in net.state_dict().items())
    with pytest.raises(ValueError, match="model: the RNN is not sparse"):
        dense_twin(net).set_recurrence(net.hidden_index, net.W_hh.detach())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="fan_in: got 0, need at least 1"):
        hf.RNN(2, 5, 1, sparse=True, fan_in=0)
    with pytest.raises(TypeError, match=r"fan_in: got 2\.5, need an int"):
        hf.RNN(2, 5, 1, sparse=True, fan_in=2.5)  # type: ignore[arg-type]
    net = sparse_net()
    net.hidden_index[0, 0] = H
    with pytest.raises(ValueError, match="index: row 0 has column 23"):
        net(batch().inputs)


# ---------------------------------------------------------------------------- curvature

LOSSES = {
    "squared": (hf.losses.SquaredError(), batch),
    "softmax": (
        hf.losses.SoftmaxCrossEntropy(),
        lambda: batch()._replace(targets=torch.randint(k, (T, B), generator=generator(5))),
    ),
}


@pytest.mark.parametrize("memory", ["cached", "recompute"])
@pytest.mark.parametrize("name", LOSSES)
def test_objective_is_that_of_the_dense_net(name: str, memory: str, form: str) -> None:
    loss, data = LOSSES[name]
    net = sparse_net()
    twin = dense_twin(net)
    P = selection(net, twin)
    options: dict[str, Any] = {"l2": 0.03, "memory": memory}
    own, wide = (objective_for(model, loss, **options) for model in (net, twin))
    batches = [data(), data()._replace(mask=None)]
    mine, theirs = own.prepare(batches), wide.prepare(batches)
    theta, theta_wide = FlatParameters(net).read(), FlatParameters(twin).read()
    assert own.loss(mine, theta) == pytest.approx(wide.loss(theirs, theta_wide), rel=1e-12)
    value, g = own.gradient(mine, theta)
    want_value, want = wide.gradient(theirs, theta_wide)
    assert value == pytest.approx(want_value, rel=1e-12)
    close(g, P.mT @ want)
    close(own.squared_gradients(mine, theta), P.mT @ wide.squared_gradients(theirs, theta_wide))
    V = torch.randn(3, len(theta), generator=generator(6), dtype=torch.float64)
    V = V * P.sum(0)  # directions of entries that are not there mean nothing
    for kind in ("ggn", "hessian", "fisher"):
        A, M = own.curvature(mine, theta, kind), wide.curvature(theirs, theta_wide, kind)
        assert A.loss == pytest.approx(M.loss, rel=1e-12)
        products = A.products(V, 0.2, 0.3)
        close(products, M.products(V @ P.mT, 0.2, 0.3) @ P)
        out = torch.full_like(theta, float("nan"))
        assert A.product(V[0], damping=0.2, structural=0.3, out=out) is out
        close(out, products[0])
        raised = torch.ones(1, dtype=torch.int32)
        if kind == "ggn":
            close(A.diagonal(), P.mT @ M.diagonal())
            before = out.clone()
            A.product(V[1], out=out, stop=raised)
            assert torch.equal(out, before)


@pytest.mark.parametrize("length", [1, 4])
def test_gauss_newton_operator(length: int, form: str) -> None:
    net = sparse_net()
    twin, P = dense_twin(net), selection(net, dense_twin(net))
    data = batch(False, length)
    A, M = (
        hf.GaussNewton(m, hf.losses.SquaredError(), *data[:2], damping=0.1) for m in (net, twin)
    )
    eye = torch.eye(A.shape[0], dtype=torch.float64)
    there = P.sum(0)
    close((A @ eye) * there, P.mT @ (M @ P))


# ---------------------------------------------------------------------------- training


def memory_task(T: int = 6, B: int = 64) -> hf.Batch:
    """The input of three steps ago."""
    x = torch.rand(T, B, 1, generator=generator(7), dtype=torch.float64) - 0.5
    y = torch.cat([torch.zeros(3, B, 1, dtype=torch.float64), x[:-3]])
    mask = torch.ones(T, B, dtype=torch.bool)
    mask[:3] = False
    return hf.Batch(x, y, mask)


def learner() -> hf.RNN:
    net = hf.RNN(1, 30, 1, dtype=torch.float64, sparse=True, fan_in=5, generator=generator())
    hf.init.sparse_(net, generator(8), fan_in=5)
    return net


def test_hessian_free_trains_it(form: str) -> None:
    net, data = learner(), memory_task()
    index = net.hidden_index.clone()
    optimiser = hf.HessianFree(net, hf.losses.SquaredError(), damping=0.1, structural=0.01)
    losses = [optimiser.step(hf.Batches(data)).loss for _ in range(8)]
    assert losses[-1] < 0.05 * losses[0]
    assert torch.equal(net.hidden_index, index)


def test_momentum_trains_it(form: str) -> None:
    net, data = learner(), memory_task()
    optimiser = hf.NAG(net, lr=0.05, momentum=0.9)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (0.5 * (net(data.inputs) - data.targets).square())[3:].mean()
        value.backward()
        return value

    losses = [optimiser.step(loss).item() for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
