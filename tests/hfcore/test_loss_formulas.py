"""Formulas of one's own losses: of any form, and what a formula may not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf

Formula = Callable[[Tensor, Tensor], Any]
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(7, 4, generator=GENERATOR).double()
Y = torch.randn(7, 3, generator=GENERATOR).double()


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def mlp() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    return hf.MLP([4, 5, 3], ["tanh", "linear"], generator=generator).double()


def loss_of(formula: Formula) -> hf.losses.Loss:
    def per_output(self: Any, s: Tensor, targets: Tensor) -> Any:
        return formula(s, targets)

    kind: Any = type("Own", (hf.losses.Loss,), {"per_output": per_output, "convex": True})
    made: hf.losses.Loss = kind()
    return made


@pytest.mark.parametrize("make", [net, mlp])
@pytest.mark.parametrize(
    "formula",
    [
        lambda s, y: (s.sum(-1) - y.sum(-1)).square(),
        lambda s, y: (s.sum(-1) - y.sum(-1)).exp(),
        lambda s, y: s.sum(-1),
    ],
    ids=["square", "exp", "linear"],
)
def test_formulas_of_a_sum_of_outputs(make: Callable[[], nn.Module], formula: Formula) -> None:
    """Their gradient is one number in k places of one memory."""
    model, loss = make(), loss_of(formula)
    value = formula(model(X), Y).mean()
    parameters = [*model.parameters()]
    want = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)])
    objective = hf.objective_for(model, loss)
    theta = nn.utils.parameters_to_vector(parameters).detach()
    got, gradient = objective.gradient(objective.prepare(hf.Batch(X, Y)), theta)
    assert float(got) == pytest.approx(float(value.detach()), rel=1e-12)
    torch.testing.assert_close(gradient, want, rtol=1e-12, atol=1e-14)
    s = model(X).detach().requires_grad_()
    L = torch.autograd.functional.hessian(lambda s: formula(s.view(7, 3), Y).mean(), s.flatten())
    J = hf.Jacobian(model, X) @ torch.eye(len(theta)).double()
    G = hf.GaussNewton(model, loss, X, Y) @ torch.eye(len(theta)).double()
    torch.testing.assert_close(G, J.mT @ L @ J, rtol=1e-10, atol=1e-13)
    stats = hf.HessianFree(model, loss, damping=1.0).step((X, Y))
    assert stats.loss_after <= stats.loss


@pytest.mark.parametrize("make", [net, mlp])
@pytest.mark.parametrize(
    ("formula", "error", "said"),
    [
        (lambda s, y: (s - y).square(), ValueError, r"gave shape \[.*7, 3\] for outputs \["),
        (lambda s, y: (s - y).square().sum(), ValueError, r"gave shape \[\] for outputs"),
        (lambda s, y: 0.0, TypeError, "gave float, need a tensor"),
        (lambda s, y: (s - y).detach().sum(-1), ValueError, "gave values that cannot be differ"),
    ],
    ids=["not summed", "summed over cases", "a number", "detached"],
)
def test_what_a_formula_may_not_give(
    make: Callable[[], nn.Module], formula: Formula, error: type[Exception], said: str
) -> None:
    """A sum over all of them would be another loss, without a word."""
    with pytest.raises(error, match=rf"^Own\.per_output: {said}"):
        hf.HessianFree(make(), loss_of(formula)).step((X, Y))
