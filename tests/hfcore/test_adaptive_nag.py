"""hf.AdaptiveNAG against appendix A.1 written down a second time, and against its bound."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.schedules import NesterovSequence

F64 = torch.float64


class Quadratic(nn.Module):
    """½θᵀHθ − bᵀθ with eigenvalues between L/condition and L."""

    def __init__(self, L: float = 7.0, condition: float = 1e3, N: int = 20) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        Q, _ = torch.linalg.qr(torch.randn(N, N, generator=draw, dtype=F64))
        self.L = L
        self.H = (
            Q
            @ torch.diag(L * torch.logspace(0, -torch.tensor(condition).log10(), N, dtype=F64))
            @ Q.T
        )
        self.b = self.H @ torch.randn(N, generator=draw, dtype=F64)
        self.theta = nn.Parameter(torch.randn(N, generator=draw, dtype=F64))
        self.minimum = torch.linalg.solve(self.H, self.b)

    def forward(self) -> Tensor:
        return 0.5 * self.theta @ self.H @ self.theta - self.b @ self.theta

    def excess(self) -> float:
        """f(θ) − f(θ*), without cancellation."""
        d = self.theta.detach() - self.minimum
        return float(0.5 * d @ self.H @ d)


def closure_of(model: nn.Module, opt: torch.optim.Optimizer) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        opt.zero_grad()
        loss: Tensor = model()
        loss.backward()
        return loss.detach()

    return closure


def plain(f: Callable[[Tensor], Tensor], y: Tensor, lr: float, steps: int) -> list[Tensor]:
    """Appendix A.1 from ε_{−1} = lr."""

    def gradient(at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        return torch.autograd.grad(f(at), at)[0]

    a, before, found = 1.0, y, []
    for _ in range(steps):
        g = gradient(y)
        i = 0
        while f(y) - f(y - 2.0**-i * lr * g) < 2.0**-i * lr * g @ g / 2:
            i += 1
        lr = 2.0**-i * lr
        theta = y - lr * g
        after = (1 + (4 * a * a + 1) ** 0.5) / 2
        y = theta + (a - 1) * (theta - before) / after
        a, before = after, theta
        found.append(theta)
    return found


@pytest.mark.parametrize("lr", [1e-3, 0.1, 50.0])
def test_against_the_appendix(lr: float) -> None:
    """With an ε that stays and one that must be halved, on a function that is no quadratic."""
    model = Quadratic()

    def f(at: Tensor) -> Tensor:
        return at @ model.H @ at / 2 - model.b @ at + at.pow(4).sum() / 10

    want = plain(f, model.theta.detach().clone(), lr, 25)
    opt = hf.AdaptiveNAG(model, lr)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = f(model.theta)
        loss.backward()
        return loss

    for theta in want:
        opt.step(closure)
        torch.testing.assert_close(model.theta.detach(), theta, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("lr", [None, 1 / 7.0, 1e3])
def test_bound(lr: float | None) -> None:
    """f(θ_t) − f(θ*) ≤ 4L‖θ_{−1} − θ*‖²/(t + 2)² at every step."""
    model = Quadratic()
    opt = hf.AdaptiveNAG(model, lr)
    distance = float((model.theta.detach() - model.minimum).square().sum())
    closure = closure_of(model, opt)
    for t in range(150):
        opt.step(closure, loss=lambda: model().detach())
        assert model.excess() <= 4 * model.L * distance / (t + 2) ** 2
    # And the bound says something: plain descent with the best constant step breaks it by then.
    assert model.excess() < 1e-4 * 4 * model.L * distance


def test_constant_step_is_nag_with_its_sequence() -> None:
    """ε = 1/L is never halved; A.1's first step, without momentum, is one of its own."""
    adaptive, constant = Quadratic(), Quadratic()
    a = hf.AdaptiveNAG(adaptive, 1 / adaptive.L)
    b = hf.NAG(constant, 1 / constant.L, 0.0)
    schedule = NesterovSequence()
    for t in range(60):
        b.param_groups[0]["momentum"] = schedule(t - 1) if t > 0 else 0.0
        a.step(closure_of(adaptive, a))
        b.step(closure_of(constant, b))
    assert a.state[adaptive.theta]["lr"] == 1 / adaptive.L
    torch.testing.assert_close(
        adaptive.theta.detach(), constant.theta.detach(), rtol=1e-11, atol=1e-12
    )


def test_first_step_size_is_an_inverse_curvature() -> None:
    """Between 1/L and the inverse of the smallest eigenvalue, then halved at most to 1/2L."""
    model = Quadratic(condition=50)
    opt = hf.AdaptiveNAG(model)
    y, closure = model.theta.detach().clone(), closure_of(model, opt)
    g = model.H @ y - model.b
    want = float(g.norm() / (model.H @ g).norm())
    sizes = []
    for _ in range(30):
        opt.step(closure)
        sizes.append(opt.state[model.theta]["lr"])
    ratio = torch.tensor(want / sizes[0]).log2()
    assert float((ratio - ratio.round()).abs()) < 1e-5  # whole halvings
    assert ratio > -1e-5
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= 0.5 / model.L


def test_loss_alone_saves_gradients_and_changes_nothing() -> None:
    first, second = Quadratic(), Quadratic()
    a, b = hf.AdaptiveNAG(first), hf.AdaptiveNAG(second)
    calls = 0

    def loss() -> float:
        nonlocal calls
        calls += 1
        return float(second().detach())

    for _ in range(10):
        assert a.step(closure_of(first, a)) == b.step(closure_of(second, b), loss)
    assert torch.equal(first.theta, second.theta)
    assert calls >= 10


def test_resumes_to_the_bit() -> None:
    model = Quadratic()
    opt = hf.AdaptiveNAG(model)
    for _ in range(5):
        opt.step(closure_of(model, opt))
    other = Quadratic()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    again = hf.AdaptiveNAG(other)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    twin, twin_opt = copy.deepcopy((model, opt))
    for m, o in ((model, opt), (other, again), (twin, twin_opt)):
        for _ in range(5):
            o.step(closure_of(m, o))
    assert torch.equal(model.theta, other.theta)
    assert torch.equal(model.theta, twin.theta)


def test_at_the_minimum_it_stays() -> None:
    model = Quadratic()
    model.H, model.b = torch.eye(20, dtype=F64), torch.zeros(20, dtype=F64)
    opt = hf.AdaptiveNAG(model, 0.5)
    for _ in range(2000):  # down to where f has no digits left, and on
        opt.step(closure_of(model, opt))
    assert float(model.theta.detach().abs().max()) < 1e-7
    with torch.no_grad():
        model.theta.zero_()
    opt = hf.AdaptiveNAG(model)
    opt.step(closure_of(model, opt))
    assert torch.equal(model.theta, torch.zeros(20, dtype=F64))


def test_refusals() -> None:
    model = Quadratic()
    for lr in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"lr: got {lr}, need a positive finite number"):
            hf.AdaptiveNAG(model, lr)
    opt = hf.AdaptiveNAG(model.parameters(), 0.1)
    with pytest.raises(TypeError, match="add_param_group: got a second group"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    theta = model.theta.detach().clone()
    with pytest.raises(ValueError, match=r"closure: left none as gradient of params\[0\]"):
        opt.step(lambda: torch.zeros(()))

    def infinite() -> Tensor:
        closure_of(model, opt)()
        return torch.tensor(float("inf"))

    with pytest.raises(ValueError, match="closure: loss inf"):
        opt.step(infinite)

    def broken() -> Any:
        raise KeyError("closure")

    with pytest.raises(KeyError):
        opt.step(broken)
    assert torch.equal(model.theta, theta)
    assert not opt.state[model.theta]
