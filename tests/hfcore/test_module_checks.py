"""What autograd gets wrong without a word is told, refused or computed another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import hfcore as hf
from hfcore.autograd.objective import ModuleObjective
from oracles.custom_tanh import OnceOnly, SavesInput, SavesOutput


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class ThroughNumpy(SavesOutput):
    """A backward pass that leaves torch: its derivative is taken to be zero."""

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.from_numpy(g.detach().numpy() * (1 - y * y).detach().numpy())


class DetachedGradient(SavesOutput):
    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return g.detach() * (1 - y * y)


class DetachedState(torch.autograd.Function):
    """Linear in the gradient, but its dependence on the inputs is cut: symmetric and wrong."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.state = y.detach()
        return y

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g * (1 - ctx.state * ctx.state)


class Plain(nn.Module):
    """x + f(x), so that not everything goes through f."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return x + self.function(x)


def net(function: Callable[[Tensor], Tensor]) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(3, 5), nn.Tanh(), Plain(function), nn.Linear(5, 2)]
    return nn.Sequential(*layers).double()


X, Y = normal(7, 3), normal(7, 2, seed=2)


def dense(model: nn.Module, kind: str) -> Tensor:
    """JᵀL''J of the mean squared error by differences of the outputs, or ∇² by differences."""
    built = ModuleObjective(model, nn.MSELoss())
    theta, data = built.parameters.read(), built.prepare((X, Y))
    step = 1e-5
    unit = torch.eye(len(theta), dtype=torch.float64)
    if kind == "hessian":
        rows = [
            built.gradient(data, theta + step * e)[1] - built.gradient(data, theta - step * e)[1]
            for e in unit
        ]
        return torch.stack(rows) / (2 * step)

    def outputs(at: Tensor) -> Tensor:
        with built.parameters.holding(at):
            return model(X).detach().reshape(-1)

    J = torch.stack([outputs(theta + step * e) - outputs(theta - step * e) for e in unit], 1)
    J /= 2 * step
    return 2 * J.T @ J / Y.numel()


def products(operator: hf.GaussNewton | hf.Hessian) -> Tensor:
    return operator @ torch.eye(operator.shape[0], dtype=torch.float64)


# --------------------------------------------------------------------- not differentiable twice


@pytest.mark.parametrize("strategy", ["auto", "measure", "double_vjp", "trace"])
@pytest.mark.parametrize("function", [OnceOnly, ThroughNumpy, DetachedGradient])
@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_a_backward_without_derivative_is_refused_by_name(function, kind, strategy) -> None:
    model = net(function.apply)
    if function is ThroughNumpy and strategy == "trace":
        message = "the replayed product"  # which leaves torch, too
    else:
        message = r"not symmetric.* from module '2' \(Plain\) on.* take curvature='hessian_fd'"
    operator = hf.GaussNewton if kind == "ggn" else hf.Hessian
    with pytest.raises((ValueError, RuntimeError), match=message):
        operator(model, nn.MSELoss(), X, Y, strategy=strategy)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises((ValueError, RuntimeError), match=message):
        hf.HessianFree(model, nn.MSELoss(), curvature=kind, strategy=strategy).step((X, Y))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_what_is_refused_is_wrong_and_differences_are_right() -> None:
    model = net(OnceOnly.apply)
    want = dense(net(torch.tanh), "hessian")
    near = products(hf.Hessian(model, nn.MSELoss(), X, Y, method="finite_difference"))
    torch.testing.assert_close(near, want, rtol=1e-5, atol=1e-7)
    optimiser = hf.HessianFree(model, nn.MSELoss(), curvature="hessian_fd")
    assert optimiser.step((X, Y)).accepted


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_a_small_part_that_is_wrong_is_seen_among_large_ones(scale) -> None:
    """Its rows of G are a 10⁻⁸ of the largest, where uᵀGv − vᵀGu of plain u and v shows nothing."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = nn.Linear(3, 2), nn.Linear(3, 4)
            self.read = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.large(x) + scale * self.read(OnceOnly.apply(self.small(x)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net().double()
    with pytest.raises(ValueError, match="not symmetric"):
        hf.GaussNewton(model, nn.MSELoss(), X, Y)


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_exact_zeros_and_rounding_are_no_asymmetry(kind) -> None:
    """Directions in which nothing changes (a bias before a softmax) hold rounding alone."""
    for dtype in (torch.float64, torch.float32):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 40), nn.LayerNorm(40), nn.Linear(40, 5)).to(dtype)
        x, y = normal(9, 3).to(dtype), torch.arange(9) % 5

        def loss(s: Tensor, t: Tensor) -> Tensor:
            return nn.functional.cross_entropy(s * 50, t)

        operator = hf.GaussNewton if kind == "ggn" else hf.Hessian
        assert operator(model, loss, x, y).strategy == "trace"


@pytest.mark.parametrize("function", [DetachedState])
def test_a_backward_that_reads_detached_values_is_told(function, caplog) -> None:
    """G is right; ∇² lacks a term and is symmetric, which differences of the gradient show."""
    model = net(function.apply)
    got = products(hf.GaussNewton(model, nn.MSELoss(), X, Y))
    torch.testing.assert_close(got, dense(model, "ggn"), rtol=1e-6, atol=1e-8)
    assert "differences" not in caplog.text
    optimiser = hf.HessianFree(model, nn.MSELoss(), curvature="hessian")
    first = optimiser.step((X, Y)).messages
    assert any("the backward of DetachedState may read detached values" in m for m in first)
    assert not any("detached" in m for m in optimiser.step((X, Y)).messages)
    near = hf.HessianFree(net(function.apply), nn.MSELoss(), curvature="hessian_fd")
    assert not any("detached" in m for m in near.step((X, Y)).messages)


def test_a_custom_function_that_is_right_is_not_doubted() -> None:
    model = net(SavesInput.apply)
    stats = hf.HessianFree(model, nn.MSELoss(), curvature="hessian").step((X, Y))
    assert not any("differ" in m for m in stats.messages)
    # A detach that is meant leaves nothing to compare with.
    stopped = net(lambda x: SavesInput.apply(x) * x.detach())
    stats = hf.HessianFree(stopped, nn.MSELoss(), curvature="hessian").step((X, Y))
    assert not any("differ" in m for m in stats.messages)


@pytest.mark.parametrize("strategy", ["auto", "measure"])
def test_products_that_are_not_finite_are_computed_another_way(strategy) -> None:
    """torch.logcumsumexp: NaN by the double vjp, right by the jvp."""
    model = net(lambda x: torch.logcumsumexp(x, 1))
    operator = hf.GaussNewton(model, nn.MSELoss(), X, Y, strategy=strategy)
    assert operator.strategy == "jvp"
    torch.testing.assert_close(products(operator), dense(model, "ggn"), rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="are not finite"):
        hf.GaussNewton(model, nn.MSELoss(), X, Y, strategy="double_vjp")


def half_without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.tanh(x)
    return y * 2


def test_parts_under_no_grad() -> None:
    """Forward mode differentiates through no_grad; J of the graph is the one whose transpose is."""
    model = net(half_without_gradients)
    operator = hf.GaussNewton(model, nn.MSELoss(), X, Y)
    stopped = net(lambda x: 2 * torch.tanh(x).detach())
    want = products(hf.GaussNewton(stopped, nn.MSELoss(), X, Y, strategy="double_vjp"))
    torch.testing.assert_close(products(operator), want, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"not symmetric.*does not see torch.no_grad"):
        hf.GaussNewton(model, nn.MSELoss(), X, Y, strategy="jvp")
    chunked = hf.GaussNewton(model, nn.MSELoss(), X, Y, chunk_size=3)
    assert chunked.strategy == "double_vjp"
    torch.testing.assert_close(products(chunked), want, rtol=1e-10, atol=1e-12)


def test_weight_norm_has_a_gauss_newton_matrix_and_no_hessian_by_autograd() -> None:
    """torch's second derivative of its weight norm is wrong; differences are right."""
    model = net(torch.tanh)
    parametrizations.weight_norm(model[0])
    got = products(hf.GaussNewton(model, nn.MSELoss(), X, Y))
    torch.testing.assert_close(got, dense(model, "ggn"), rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match=r"not symmetric.* from module '0.parametrizations.weight"):
        hf.Hessian(model, nn.MSELoss(), X, Y)
    near = products(hf.Hessian(model, nn.MSELoss(), X, Y, method="finite_difference"))
    torch.testing.assert_close(near, dense(model, "hessian"), rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------ zero curvature


def pinball(s: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(0.9 * (y - s), 0.1 * (s - y)).mean()


def hinge(s: Tensor, y: Tensor) -> Tensor:
    """A triplet loss of scores."""
    return torch.relu(1 + s[:, 0] - s[:, 1]).mean()


@pytest.mark.parametrize("loss", ["nll", nn.L1Loss(), pinball, hinge])
def test_a_loss_without_curvature_is_told_with_the_remedy(loss, caplog) -> None:
    model = net(torch.tanh)
    y: Tensor = Y
    if loss == "nll":
        model.append(nn.LogSoftmax(1))
        loss, y = nn.NLLLoss(), torch.arange(7) % 2
    operator = hf.GaussNewton(model, loss, X, y)
    assert float(products(operator).abs().max()) == 0.0  # or there would be nothing to tell
    assert "L'' is zero at these outputs" in caplog.text
    optimiser = hf.HessianFree(model, loss)
    messages = optimiser.step((X, y)).messages
    assert any("before the log-softmax" in m and "Huber" in m for m in messages)
    assert not any("L'' is zero" in m for m in optimiser.step((X, y)).messages)
    report = hf.check_curvature(model, loss, X, y)
    assert not report.right
    assert [c.name for c in report.checks if not c.right] == ["L'' at the outputs: not zero"]


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.SmoothL1Loss(), nn.CrossEntropyLoss()])
def test_losses_with_curvature_are_not_told_of(loss, caplog) -> None:
    model = net(torch.tanh)
    y = torch.arange(7) % 2 if isinstance(loss, nn.CrossEntropyLoss) else Y
    hf.GaussNewton(model, loss, X, y)
    assert "zero" not in caplog.text
    assert hf.check_curvature(model, loss, X, y).right


# ---------------------------------------------------------------------------- the same choice


def test_auto_goes_by_structure(caplog) -> None:
    """The clock has no say: however long a product seems to take, the choice is the same."""
    for function, want in (
        (torch.tanh, "trace"),
        (lambda x: x.detach().numpy().sum() * 0 + x, "trace"),
    ):
        chosen = {hf.GaussNewton(net(function), nn.MSELoss(), X, Y).strategy for _ in range(3)}
        assert chosen == {want}
    model = net(torch.tanh)
    counted = []
    for _ in range(2):
        built = ModuleObjective(model, nn.MSELoss(), chunk_size=3)
        built.curvature(built.prepare((X, Y)), built.parameters.read())
        (choice,) = built.choices.values()
        assert {*choice.work} == {"double_vjp", "jvp"}
        assert not choice.seconds
        assert choice.work[choice.name] == min(choice.work.values())
        counted.append(choice)
    assert counted[0] == counted[1]


# ------------------------------------------------------------- nonlinearities applied twice


class Reshaped(nn.Module):
    def forward(self, s: Tensor) -> Tensor:
        return torch.sigmoid(s).reshape(-1, 1, 2).squeeze(1)


@pytest.mark.parametrize("loss", [hf.losses.LogisticCrossEntropy(), nn.BCEWithLogitsLoss()])
@pytest.mark.parametrize("last", [nn.Sigmoid(), Reshaped()])
def test_a_sigmoid_before_a_logistic_cross_entropy_is_noticed(last, loss) -> None:
    model, y = net(torch.tanh), torch.rand(7, 2, dtype=torch.float64)
    hf.GaussNewton(model, loss, X, y)
    model.append(last)
    for call in (
        lambda: hf.GaussNewton(model, loss, X, y),
        lambda: hf.HessianFree(model, loss).step((X, y)),
    ):
        with pytest.raises(ValueError, match="outputs: come from a sigmoid, which the logistic"):
            call()
    hf.GaussNewton(model, hf.losses.SquaredError(), X, y)  # there it belongs to the model
    hf.GaussNewton(model.append(nn.Linear(2, 2).double()), loss, X, y)


def test_a_softmax_before_a_softmax_cross_entropy_is_noticed() -> None:
    """By the graph also for a single case, where rows that sum to 1 may be chance."""
    model, y = net(torch.tanh).append(nn.Softmax(1)), torch.arange(7) % 2
    loss = hf.losses.SoftmaxCrossEntropy()
    for cases in (1, 7):
        with pytest.raises(ValueError, match="as if a softmax had been applied"):
            hf.GaussNewton(model, loss, X[:cases], y[:cases])


def mlp(last: str) -> hf.MLP:
    generator = torch.Generator().manual_seed(0)
    return hf.MLP([3, 4, 2], ["tanh", last], dtype=torch.float64, generator=generator)


TWICE: list[tuple[str, Any, str]] = [
    ("logistic", hf.losses.LogisticCrossEntropy(), "a sigmoid, which the logistic cross-entropy"),
    (
        "logistic",
        hf.losses.from_torch(nn.BCEWithLogitsLoss()),
        "a sigmoid, which the logistic cross-entropy",
    ),
    ("logistic", nn.BCEWithLogitsLoss(), "a sigmoid, which the logistic cross-entropy"),
    (
        "logistic",
        hf.losses.LinkedSquaredError("logistic", stand_in="positive"),
        "a sigmoid, which the LinkedSquaredError",
    ),
    (
        "tanh",
        hf.losses.LinkedSquaredError("tanh", stand_in="positive"),
        "a tanh, which the LinkedSquaredError",
    ),
]


@pytest.mark.parametrize(("last", "loss", "message"), TWICE)
def test_a_last_layer_that_the_loss_applies_itself_is_noticed(last, loss, message) -> None:
    """In a fused net, through autograd, and in training by gradients alone."""
    y = torch.rand(7, 2, dtype=torch.float64)
    message = f"outputs: come from {message} applies itself; need the outputs before it"
    fused, derived = mlp(last), type("Derived", (hf.MLP,), {})([3, 4, 2], ["tanh", last])
    options: dict[str, Any] = {"stop": hf.training.Limits(iterations=1), "progress": False}
    for model in (fused, derived.double()):
        for call in (
            lambda m=model: hf.GaussNewton(m, loss, X, y),
            lambda m=model: hf.HessianFree(m, loss).step((X, y)),
            lambda m=model: hf.train(m, (X, y), hf.NAG(m, 0.1), loss=loss, **options),
        ):
            with pytest.raises(ValueError, match=message):
                call()
    hf.GaussNewton(mlp(last), hf.losses.SquaredError(), X, y)  # there it belongs to the model
    hf.GaussNewton(mlp("linear"), loss, X, y)
    linear = mlp("linear")
    hf.train(linear, (X, y), hf.NAG(linear, 0.1), loss=loss, **options)


class Counts(nn.Module):
    def forward(self, s: Tensor) -> Tensor:
        return s.exp()


@pytest.mark.parametrize("loss", [hf.losses.PoissonNLL(), nn.PoissonNLLLoss()])
def test_an_exponential_before_a_loss_of_counts_is_noticed(loss) -> None:
    model, y = net(torch.tanh), torch.arange(14.0, dtype=torch.float64).view(7, 2)
    hf.GaussNewton(model, loss, X, y)
    with pytest.raises(ValueError, match="come from an exponential, which the PoissonNLL applies"):
        hf.GaussNewton(model.append(Counts()), loss, X, y)


class SoftmaxByHand(nn.Module):
    def forward(self, s: Tensor) -> Tensor:
        e = s.exp()
        return e / e.sum(1, keepdim=True)


@pytest.mark.parametrize("loss", [hf.losses.SoftmaxCrossEntropy(), nn.CrossEntropyLoss()])
@pytest.mark.parametrize("last", [SoftmaxByHand(), nn.Softmax(1)])
def test_every_softmax_before_a_softmax_cross_entropy_is_noticed(last, loss) -> None:
    model, y = net(torch.tanh), torch.arange(7) % 2
    hf.GaussNewton(model, loss, X, y)
    with pytest.raises(ValueError, match="as if a softmax had been applied"):
        hf.GaussNewton(model.append(last), loss, X, y)


def test_nor_where_the_mean_is_not_over_cases() -> None:
    model = net(SavesInput.apply)
    for loss in (nn.MSELoss(), hf.losses.SquaredError(mean="elements")):
        stats = hf.HessianFree(model, loss, curvature="hessian").step((X, Y))
        assert not any("differ" in m for m in stats.messages)
