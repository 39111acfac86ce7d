"""What cuts a batch into cases needs cases: outputs and losses of their own, along one axis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.autograd.objective import ModuleObjective


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


X, Y = normal(8, 3), normal(8, 2, seed=2)


def summed(s: Tensor, y: Tensor) -> Tensor:
    return (s - y).square().sum()


def root(s: Tensor, y: Tensor) -> Tensor:
    return (s - y).square().mean().sqrt()


def ranking(s: Tensor, y: Tensor) -> Tensor:
    """Pairs of cases in the wrong order cost."""
    a, b = s[:, 0], y[:, 0]
    wanted = torch.sign(b[:, None] - b[None, :])
    return nn.functional.softplus(-wanted * (a[:, None] - a[None, :])).mean()


def contrastive(s: Tensor, y: Tensor) -> Tensor:
    """Each case against all others."""
    logits = s @ y.T
    return nn.functional.cross_entropy(logits, torch.arange(len(s)))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": summed,
    "root": root,
    "ranking": ranking,
    "contrastive": contrastive,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_that_is_no_mean_over_cases_is_not_cut(loss) -> None:
    """In one piece it is right; pieces, the Fisher and diagonals are refused with both numbers."""
    model, function = net(), LOSSES[loss]
    whole = hf.GaussNewton(model, function, X, Y)
    assert whole.loss == pytest.approx(float(function(model(X), Y)), rel=1e-12)
    built = ModuleObjective(model, function)
    data, theta = built.prepare((X, Y)), built.parameters.read()
    cut = ModuleObjective(model, function, chunk_size=3)
    for call in (
        lambda: hf.GaussNewton(model, function, X, Y, chunk_size=3),
        lambda: hf.Hessian(model, function, X, Y, chunk_size=1),
        lambda: hf.EmpiricalFisher(model, function, X, Y),
        lambda: built.squared_gradients(data, theta),
        lambda: built.diagonal(data, theta),
        lambda: cut.loss(cut.prepare((X, Y)), theta),
        lambda: cut.gradient(cut.prepare((X, Y)), theta),
        lambda: hf.HessianFree(model, function, chunk_size=3).step((X, Y)),
        lambda: hf.HessianFree(model, function, preconditioner="fisher").step((X, Y)),
    ):
        with pytest.raises(ValueError, match=r"loss: is no mean over cases: .* together, .* needs"):
            call()
    assert hf.HessianFree(model, function).step((X, Y)).accepted
    uncut = hf.GaussNewton(model, function, X, Y, chunk_size=8)  # one piece
    again = hf.GaussNewton(model, function, X, Y)
    torch.testing.assert_close(uncut @ theta, again @ theta, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [nn.MSELoss(), hf.losses.SquaredError(), nn.L1Loss()])
def test_means_over_cases_may_be_cut(loss, dtype) -> None:
    """Also where batches of other sizes are rounded otherwise."""
    model, x, y = net().to(dtype), X.to(dtype), Y.to(dtype)
    whole = hf.GaussNewton(model, loss, x, y)
    parts = hf.GaussNewton(model, loss, x, y, chunk_size=3)
    v = normal(whole.shape[0]).to(dtype)
    torch.testing.assert_close(parts @ v, whole @ v)
    hf.EmpiricalFisher(model, loss, x, y)


class OverTime(nn.Module):
    """Time first, [T,B,n]; each step adds to the ones before."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)).cumsum(0)


class Mixing(nn.Module):
    """Each case sees the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        s = self.linear(x)
        return s - s.mean(0)


def test_cases_on_another_axis_than_was_said_are_refused() -> None:
    """T = B, so that no shape tells; the Fisher would take time steps for cases."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OverTime().double()
    x, y = normal(4, 4, 3), normal(4, 4, 2, seed=2)
    loss = hf.losses.SquaredError()
    with pytest.raises(ValueError, match=r"batch_dim: .* along axis 0, .* the empirical Fisher"):
        hf.EmpiricalFisher(model, loss, x, y)
    with pytest.raises(ValueError, match=r"batch_dim: .* chunk_size needs cases"):
        hf.GaussNewton(model, loss, x, y, chunk_size=2)
    got = hf.EmpiricalFisher(model, loss, x, y, batch_dim=1)
    named = dict(model.named_parameters())
    rows = []
    for b in range(4):
        s = model(x[:, b : b + 1])
        value = 0.5 * (s - y[:, b : b + 1]).square().sum()
        grads = torch.autograd.grad(value, list(named.values()))
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    J = torch.stack(rows)
    want = J.T @ J / 4
    torch.testing.assert_close(got @ torch.eye(8, dtype=torch.float64), want)


def test_a_model_that_mixes_cases_is_not_cut() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixing().double()
    loss = hf.losses.SquaredError()
    hf.GaussNewton(model, loss, X, Y)
    for call in (
        lambda: hf.EmpiricalFisher(model, loss, X, Y),
        lambda: hf.GaussNewton(model, loss, X, Y, chunk_size=4),
        lambda: hf.GaussNewton(model, loss, X, Y).diagonal(),
    ):
        with pytest.raises(ValueError, match="or a model that mixes them"):
            call()
