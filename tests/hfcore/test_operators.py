"""hf.GaussNewton, hf.Hessian and hf.EmpiricalFisher: one interface over every kind of model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

import hfcore as hf
from oracles.losses import per_case, targets
from oracles.modules import dense_matrix, relative_error, task

OPERATORS = {"ggn": hf.GaussNewton, "hessian": hf.Hessian, "fisher": hf.EmpiricalFisher}


def data(shape: tuple[int, ...], loss: hf.losses.Loss, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, targets(loss.kind, shape[:-1], k, generator)


def make(name: str, loss: hf.losses.Loss) -> tuple[nn.Module, Tensor, Tensor, int]:
    """A model with data, and the axis of its cases."""
    generator = torch.Generator().manual_seed(1)
    if name == "rnn":
        model = hf.RNN(2, 4, 3, dtype=torch.float64, generator=generator)
        return model, *data((4, 3, 2), loss, 3), 1
    if name == "mlp":
        sizes, kinds = (4, 5, 3), ("tanh", "linear")
        model = hf.MLP(sizes, kinds, dtype=torch.float64, generator=generator)
        return model, *data((6, 4), loss, 3), 0
    return task("dense", "squared").model, *data((6, 4), loss, 3), 0


def oracle(name: str, loss: hf.losses.Loss, kind: str) -> Tensor:
    model, x, y, dim = make(name, loss)
    named = dict(model.named_parameters())
    theta = torch.cat([p.detach().reshape(-1) for p in named.values()])

    def outputs(p: Tensor) -> Tensor:
        parts = p.split([q.numel() for q in named.values()])
        values = {n: v.view(q.shape) for (n, q), v in zip(named.items(), parts, strict=True)}
        return functional_call(model, values, (x,))

    if kind == "hessian":
        return hessian(lambda p: per_case(loss.kind, outputs(p), y, dim).mean(), theta)
    if kind == "fisher":
        J = jacobian(lambda p: per_case(loss.kind, outputs(p), y, dim), theta)
        return J.T @ J / len(J)
    s = outputs(theta).detach()
    J = jacobian(outputs, theta).reshape(-1, len(theta))
    L = hessian(lambda s: per_case(loss.kind, s, y, dim).mean(), s).reshape(len(J), len(J))
    return J.T @ L @ J


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize(
    "loss",
    [hf.losses.SquaredError(), hf.losses.LogisticCrossEntropy(), hf.losses.SoftmaxCrossEntropy()],
    ids=lambda loss: loss.kind,
)
@pytest.mark.parametrize("name", ["rnn", "mlp", "module"])
def test_every_operator_is_its_dense_matrix(name, loss, kind) -> None:
    """Products, matmat, SciPy, trace, diagonal and eigenvalues, damped and with L2."""
    model, x, y, _ = make(name, loss)
    A = OPERATORS[kind](model, loss, x, y, damping=0.2, l2=0.05)
    want = oracle(name, loss, kind)
    N = len(want)
    want = want + 0.25 * torch.eye(N, dtype=torch.float64)
    assert A.shape == (N, N)
    assert (A.dtype, A.device.type) == (torch.float64, "cpu")
    assert A.strategy == ("fused" if name != "module" else A._curvature.strategy)
    dense = A @ torch.eye(N, dtype=torch.float64)
    assert relative_error(dense, want) <= 1e-11
    v = torch.sin(torch.arange(N, dtype=torch.float64))
    out = torch.full((N,), float("nan"), dtype=torch.float64)
    assert relative_error(A.matvec(v, out=out), want @ v) <= 1e-11
    assert relative_error(out, want @ v) <= 1e-11
    np.testing.assert_allclose(A.to_scipy() @ v.numpy(), (want @ v).numpy(), rtol=1e-9, atol=1e-12)
    assert A.trace() == pytest.approx(float(want.trace()), rel=1e-11)
    assert relative_error(A.diagonal(), want.diagonal()) <= 1e-11
    values = torch.linalg.eigvalsh(want).flip(0)
    torch.testing.assert_close(A.eigenvalues(3), values[:3], rtol=1e-8, atol=1e-10)
    if kind == "hessian":  # the others' smallest are many times the same
        smallest = A.eigenvalues(2, which="SA")
        torch.testing.assert_close(smallest, values.flip(0)[:2], rtol=1e-6, atol=1e-8)
    by_size = values[values.abs().argsort(descending=True)]
    torch.testing.assert_close(A.eigenvalues(1, which="LM"), by_size[:1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["rnn", "mlp", "module"])
def test_finite_differences_agree_with_the_r_operator(name) -> None:
    loss = hf.losses.SoftmaxCrossEntropy()
    model, x, y, _ = make(name, loss)
    exact = hf.Hessian(model, loss, x, y, damping=0.1, l2=0.3)
    differences = hf.Hessian(model, loss, x, y, damping=0.1, l2=0.3, method="finite_difference")
    assert differences.loss == pytest.approx(exact.loss, rel=1e-13)
    V = torch.randn(exact.shape[0], 3, generator=torch.Generator().manual_seed(2)).double()
    assert relative_error(differences @ V, exact @ V) <= 1e-8
    for scale in (1e-6, 1e6):
        v = scale * V[:, 0]
        assert relative_error(differences @ v, exact @ v) <= 1e-8
    assert torch.equal(differences @ torch.zeros_like(v), torch.zeros_like(v))
    diagonal = differences._curvature.diagonal()
    want = hf.GaussNewton(model, loss, x, y).diagonal()
    assert relative_error(diagonal, want) <= 1e-11
    with pytest.raises(ValueError, match="structural: finite differences"):
        differences._curvature.product(v, structural=0.1)


def test_estimates_are_unbiased_and_repeatable() -> None:
    loss = hf.losses.LogisticCrossEntropy()
    model, x, y, _ = make("mlp", loss)
    for operator in OPERATORS.values():
        A = operator(model, loss, x, y, damping=0.1)
        exact = A.diagonal()
        traces, diagonals = [], []
        for seed in range(60):
            generator = torch.Generator().manual_seed(seed)
            traces.append(A.trace(2, generator))
            diagonals.append(A.diagonal(2, generator))
        error = np.std(traces) / 60**0.5
        assert abs(np.mean(traces) - float(exact.sum())) <= 4.5 * error + 1e-12
        stacked = torch.stack(diagonals)
        error = stacked.std(0) / 60**0.5
        assert bool(((stacked.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all())
        again = A.trace(2, torch.Generator().manual_seed(0))
        assert again == traces[0]
        assert A.trace(40, torch.Generator().manual_seed(0)) == pytest.approx(
            A.trace(40, torch.Generator().manual_seed(0)), rel=0
        )


def test_structural_diagonal_comes_from_products() -> None:
    loss = hf.losses.SquaredError()
    for name, structural in (("rnn", 0.4), ("mlp", 0.4), ("module", {"0": ("tanh", 0.4)})):
        model, x, y, _ = make(name, loss)
        A = hf.GaussNewton(model, loss, x, y, damping=0.5, structural=structural)
        dense = A @ torch.eye(A.shape[0], dtype=torch.float64)
        assert relative_error(A.diagonal(), dense.diagonal()) <= 1e-12
        plain = hf.GaussNewton(model, loss, x, y, damping=0.5)
        assert float((dense - plain @ torch.eye(A.shape[0], dtype=torch.float64)).norm()) > 1e-3


def test_fused_mlp_and_its_layers_as_a_module_agree() -> None:
    """hf.MLP's own products against the generic ones, structural damping of a layer included."""
    loss = hf.losses.LogisticCrossEntropy()
    model, x, y, _ = make("mlp", loss)
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), model.state_dict().values(), strict=True)))
    v = torch.sin(torch.arange(43, dtype=torch.float64))
    for kind, operator in OPERATORS.items():
        for ours, theirs in ((0.0, 0.0), ({"layers.0": ("tanh", 0.3)}, {"0": ("tanh", 0.3)})):
            fused = operator(model, loss, x, y, damping=0.7, structural=ours)
            generic = operator(plain, loss, x, y, damping=0.7, structural=theirs)
            assert relative_error(fused @ v, generic @ v) <= 1e-12, kind
            assert fused.loss == pytest.approx(generic.loss, rel=1e-13)


def test_data_may_be_batches_or_a_closure() -> None:
    problem = task("dense", "softmax")
    model, loss, x, y = problem.model, problem.loss, problem.x, problem.y
    want = dense_matrix("dense", "softmax", "ggn")
    identity = torch.eye(len(want), dtype=torch.float64)

    def closure() -> tuple[Tensor, Tensor]:
        s = model(x)
        return nn.functional.cross_entropy(s, y), s

    for A in (
        hf.GaussNewton(model, loss, [(x[:2], y[:2]), hf.Batch(x[2:], y[2:])]),
        hf.GaussNewton(model, nn.CrossEntropyLoss(), x, y),
        hf.GaussNewton(model, None, closure),
        hf.GaussNewton(model.parameters(), None, closure),
    ):
        assert relative_error(A @ identity, want) <= 1e-12
        assert relative_error(A.diagonal(), want.diagonal()) <= 1e-12
    with pytest.raises(ValueError, match="mask: belongs to inputs and targets"):
        hf.GaussNewton(model, None, closure, mask=torch.ones(5).bool())


def test_bad_arguments_are_named() -> None:
    loss = hf.losses.SquaredError()
    model, x, y, _ = make("rnn", loss)
    plain, px, py, _ = make("module", loss)
    for call, message in (
        (lambda: hf.GaussNewton(plain, loss, px, py, structural=0.1), "a module needs a mapping"),
        (lambda: hf.GaussNewton(model, loss, x, y, structural={"a": "tanh"}), "got a mapping"),
        (lambda: hf.Hessian(model, loss, x, y, method="forward"), "method: got 'forward'"),
        (lambda: hf.Hessian(model, loss, x, y, damping=-1.0), "damping: got -1.0"),
        (lambda: hf.GaussNewton(model, loss, x, y).eigenvalues(0), "k: got 0, need at least 1"),
        (lambda: hf.GaussNewton(model, loss, x, y).eigenvalues(1, which="XX"), "which: got 'XX'"),
        (lambda: hf.GaussNewton(model, loss, x, y).trace(0), "probes: got 0"),
        (lambda: hf.GaussNewton(model, loss, x, y).diagonal(0), "probes: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with torch.no_grad():
        plain = nn.Linear(2, 2)
        plain.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="parameter weight holds NaN or Inf"):
        hf.GaussNewton(plain, loss, torch.ones(1, 2), torch.ones(1, 2))
    assert "damping=0.1" in repr(hf.Hessian(model, loss, x, y, damping=0.1))


def test_an_indefinite_hessian_is_left_indefinite() -> None:
    """Where the Gauss-Newton matrix of the same loss is not."""
    loss = hf.losses.SquaredError()
    model, x, y, _ = make("module", loss)
    H = hf.Hessian(model, loss, x, 5 * y)
    assert float(H.eigenvalues(1, which="SA")[0]) < -1e-3
    assert float(hf.GaussNewton(model, loss, x, 5 * y).eigenvalues(1, which="SA")[0]) >= -1e-12


@pytest.mark.parametrize("name", ["rnn", "mlp"])
def test_inputs_that_require_grad_leave_no_graph(name) -> None:
    loss = hf.losses.SquaredError()
    model, x, y, _ = make(name, loss)
    for operator in OPERATORS.values():
        want = operator(model, loss, x, y)
        A = operator(model, loss, x.clone().requires_grad_(), y.clone().requires_grad_())
        V = torch.sin(torch.arange(2.0 * A.shape[0], dtype=torch.float64)).view(-1, 2)
        for got, right in ((A @ V, want @ V), (A.diagonal(), want.diagonal())):
            assert not got.requires_grad
            assert torch.equal(got, right)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_what_holds_graphs_is_not_copied_and_says_so(copied: Callable[[object], object]) -> None:
    """A shallow copy shares them, and multiplies as the operator does."""
    model, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    loss, y = torch.nn.MSELoss(), torch.randn(4, 2)
    for operator in (
        hf.GaussNewton(model, loss, x, y),
        hf.Hessian(model, loss, x, y, method="finite_difference"),
        hf.GaussNewton(hf.MLP([3, 2], ["linear"]), hf.losses.SquaredError(), x, y),
        hf.Jacobian(model, x),
    ):
        v = torch.randn(operator.shape[1])
        assert torch.equal(copy.copy(operator) @ v, operator @ v)
        with pytest.raises(TypeError, match=r"holds graphs and locks, which cannot be copied"):
            copied(operator)
