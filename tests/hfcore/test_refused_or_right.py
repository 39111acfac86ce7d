"""Cases that were silently wrong once and belong to no other file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

import hfcore as hf
from hfcore.objective_factory import objective_for

SQUARED = hf.losses.SquaredError()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def divergence(s: Tensor, y: Tensor) -> Tensor:
    return kl_div(log_softmax(s, -1), y, reduction="batchmean")


@pytest.mark.parametrize(
    ("last", "loss"),
    [([nn.LogSoftmax(-1)], nn.KLDivLoss(reduction="batchmean")), ([], divergence)],
    ids=["nn.KLDivLoss", "from logits"],
)
def test_a_batchmean_is_a_mean_over_cases_and_may_be_cut(
    last: list[nn.Module], loss: Callable[..., Tensor]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), *last).double()
    x = torch.randn(7, 3, generator=generator(1)).double()
    y = torch.rand(7, 4, generator=generator(2)).double().softmax(-1)
    value = loss(model(x), y)
    want = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, [*model.parameters()])])
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    for size in (None, 3):
        objective = objective_for(model, loss, chunk_size=size)
        got, gradient = objective.gradient(objective.prepare(hf.Batch(x, y)), theta)
        assert got == pytest.approx(float(value.detach()), rel=1e-13)
        torch.testing.assert_close(gradient, want, rtol=1e-12, atol=1e-14)
    if last:
        return
    # L'' of a case is diag(p) − ppᵀ where the targets sum to 1.
    p = model(x).detach().softmax(-1)
    J = hf.Jacobian(model, x) @ torch.eye(len(theta)).double()
    J = J.view(7, 4, -1)
    G = torch.einsum("bin,bij,bjm->nm", J, torch.diag_embed(p) - p[:, :, None] * p[:, None], J) / 7
    A = hf.GaussNewton(model, loss, x, y, chunk_size=3)
    torch.testing.assert_close(A @ torch.eye(len(theta)).double(), G, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", [hf.GaussNewton, hf.Hessian, hf.EmpiricalFisher])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"l2": -1.0}, ValueError, "l2: got -1.0, need a finite number that is not negative"),
        ({"l2": math.nan}, ValueError, "l2: got nan, need a finite number"),
        ({"l2": "0.1"}, TypeError, "l2: got '0.1', need a number"),
        ({"damping": True}, TypeError, "damping: got True, need a number"),
        ({"damping": math.inf}, ValueError, "damping: got inf, need a finite number"),
    ],
)
def test_terms_of_operators_are_checked(
    kind: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    x, y = torch.zeros(4, 3), torch.zeros(4, 2)
    for model in (nn.Linear(3, 2), hf.MLP([3, 2], ["linear"])):
        with pytest.raises(error, match=f"^{message}"):
            kind(model, SQUARED, x, y, **options)


def test_gradients_that_explode_through_time_are_refused_and_nothing_moves() -> None:
    """W_hh × 3 over 2000 steps: the loss is finite, its gradient is not."""
    net = hf.RNN(2, 20, 1, generator=generator())
    with torch.no_grad():
        net.W_hh.mul_(3.0)
    before = [p.detach().clone() for p in net.parameters()]
    x, y = torch.randn(2000, 2, 2, generator=generator(1)), torch.zeros(2000, 2, 1)
    assert math.isfinite(SQUARED.value(net(x).detach(), y))
    opt = hf.HessianFree(net, SQUARED, damping=1.0)
    with pytest.raises(ValueError, match=r"objective\.gradient: gave loss .*, gradient norm"):
        opt.step((x, y))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert opt.steps == 0


@pytest.mark.parametrize("make", [lambda: hf.RNN(3, 4, 2), lambda: hf.StackedRNN(3, [4, 3], 2)])
def test_a_net_of_ours_may_be_told_where_it_has_its_cases(make: Callable[[], nn.Module]) -> None:
    """As programs do that are written for any module."""
    net, x, y = make(), torch.randn(4, 5, 3, generator=generator()), torch.zeros(4, 5, 2)
    G, v = hf.GaussNewton(net, SQUARED, x, y), torch.ones(sum(p.numel() for p in net.parameters()))
    assert torch.equal(hf.GaussNewton(net, SQUARED, x, y, batch_dim=1) @ v, G @ v)
    for axis in (0, (1, 0), "1"):
        with pytest.raises(ValueError, match=r"^batch_dim: got .*, need 1, where .*RNN has its"):
            hf.GaussNewton(net, SQUARED, x, y, batch_dim=axis)


def test_outputs_of_no_number_are_named() -> None:
    """No time step: torch's reshape would say that something is ambiguous."""
    net = nn.Linear(3, 2)
    x, y = torch.zeros(0, 5, 3), torch.zeros(0, 5, 2)
    opt = hf.HessianFree(net, SQUARED, batch_dim=1)
    with pytest.raises(ValueError, match=r"^outputs: got shape \[0, 5, 2\] for inputs \[0, 5, 3\]"):
        opt.step((x, y))
    with pytest.raises(ValueError, match=r"^outputs: got shape \[0, 5, 2\]"):
        hf.EmpiricalFisher(net, SQUARED, x, y, batch_dim=1)
