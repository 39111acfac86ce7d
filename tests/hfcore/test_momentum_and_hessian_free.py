"""Section 5 of Sutskever et al. (2013): HF with one CG step an update is NAG.

An HF step minimises q(p) = ½pᵀBp + ∇f(θ)ᵀp by CG from p_0 = μ v, v the last CG iterate. Its first
direction is the residual r = −∇f(θ) − μ B v, its step α = rᵀr / rᵀBr, so one CG step gives

    v' = μ v + α r = μ v − α (∇f(θ) + μ B v),   θ' = θ + v'   (no line search, step size 1).

On a quadratic with B its Hessian ∇f(θ) + μBv = ∇f(θ + μv): this is NAG (eqs. 3-4) with momentum μ
and ε_t = α_t. The substitution is thus ε_t = rᵀr / rᵀHr at r = −∇f(θ_t + μv_t); where all
curvatures are one λ, α_t = 1/λ is a constant, and so is ε. Elsewhere the two differ by what the
quadratic model of the gradient leaves out, O(μ²‖v‖²) with the exact Hessian.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf

F64 = torch.float64

# One CG step from μ times the last, λ = 0, the whole step taken as it is.
ONE_STEP = {
    "cg_max_iter": 1,
    "damping": 0.0,
    "damping_up": 1.0,  # λ stays 0, also where the momentum overshoots and f rises
    "damping_down": 1.0,
    "step_size": 1.0,
    "cg_backtracking": "last",
    "preconditioner": None,
}


class Linear(nn.Module):
    """Outputs Aθ: with squared error a quadratic of Hessian AᵀA."""

    def __init__(self, A: Tensor, theta: Tensor) -> None:
        super().__init__()
        self.A, self.theta = A, nn.Parameter(theta.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.theta.unsqueeze(1)


def linear_problem(spread: float, N: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """(A, y, θ_0) whose H = AᵀA/cases has eigenvalues from 1 to ``spread``."""
    draw = torch.Generator().manual_seed(4)
    Q, _ = torch.linalg.qr(torch.randn(N, N, generator=draw, dtype=F64))
    U, _ = torch.linalg.qr(torch.randn(30, N, generator=draw, dtype=F64))
    A = 30**0.5 * U @ torch.diag(torch.linspace(1, spread, N, dtype=F64).sqrt()) @ Q.T
    return (
        A,
        torch.randn(30, 1, generator=draw, dtype=F64),
        torch.randn(N, generator=draw, dtype=F64),
    )


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("spread", [1.0, 40.0])
@pytest.mark.parametrize("mu", [0.5, 0.95])
def test_on_a_quadratic(mu: float, spread: float, curvature: Any) -> None:
    """Iterate by iterate: ε_t = α_t in general, ε = 1/λ where all curvatures are λ = 1."""
    A, y, start = linear_problem(spread)
    H = A.T @ A / 30
    by_cg, by_nag = Linear(A, start), Linear(A, start)
    cg = hf.HessianFree(
        by_cg, hf.losses.SquaredError(), cg_decay=mu, curvature=curvature, **ONE_STEP
    )
    nag = hf.NAG(by_nag.parameters(), 1.0, mu)

    def closure() -> Tensor:
        at = by_nag.theta.detach()
        r = A.T @ (y[:, 0] - A @ at) / 30
        by_nag.theta.grad = -r
        if spread > 1:
            nag.param_groups[0]["lr"] = float(r @ r / (r @ H @ r))
        return torch.zeros(())

    for t in range(40):
        stats = cg.step((A, y))
        nag.step(closure)
        assert (stats.cg_iterations, stats.alpha, stats.damping_next) == (1, 1.0, 0.0)
        torch.testing.assert_close(
            by_cg.theta.detach(), by_nag.theta.detach(), rtol=1e-10, atol=1e-12
        )
        velocity = nag.state[by_nag.theta]["velocity"]
        kept = cg.state[by_cg.theta]["cg_last"]
        torch.testing.assert_close(kept, velocity, rtol=1e-10, atol=1e-11)
        if spread == 1 and t > 30:
            break


def models() -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """(model, inputs, targets) so near their fit that the Hessian curves upwards along r."""
    draw = torch.Generator().manual_seed(6)
    mlp = hf.MLP([4, 6, 3], ["tanh", "linear"], dtype=F64, generator=draw)
    rnn = hf.RNN(2, 5, 3, dtype=F64, generator=draw)
    found = {}
    for name, model, shape in (("mlp", mlp, (7, 4)), ("rnn", rnn, (6, 7, 2))):
        x = torch.randn(*shape, generator=draw, dtype=F64)
        s = model(x).detach()
        found[name] = model, x, s + 0.3 * torch.randn(s.shape, generator=draw, dtype=F64)
    return found


def difference(name: str, scale: float, mu: float) -> tuple[float, float]:
    """(‖θ_HF − θ_NAG‖, ‖θ_NAG − θ_0‖) after one update from a velocity of length ``scale``."""
    model, x, y = models()[name]
    loss = hf.losses.SquaredError()
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    v = torch.randn(flat.numel(), generator=torch.Generator().manual_seed(8), dtype=F64)
    v *= scale / v.norm()
    hessian = hf.Hessian(model, loss, x, y)
    cg = hf.HessianFree(model, loss, cg_decay=mu, curvature="hessian", cg_residual=0.0, **ONE_STEP)
    cg.state[next(model.parameters())]["cg_last"] = v
    assert cg.step((x, y)).cg_iterations == 1
    by_cg = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    twin, *_ = models()[name]
    nag = hf.NAG(twin.parameters(), 1.0, mu)
    cases = x.shape[-2]

    def closure() -> Tensor:
        nag.zero_grad()
        s = twin(x)
        s.backward(gradient=loss.gradient(s.detach(), y, scale=1.0 / cases))
        return torch.zeros(())

    # ε = α of HF's own quadratic.
    closure()
    r = -torch.cat([p.grad.reshape(-1) for p in twin.parameters()]) - mu * (hessian @ v)
    nag.param_groups[0]["lr"] = float(r @ r / (r @ (hessian @ r)))
    parts = v.split([p.numel() for p in twin.parameters()])
    for p, part in zip(twin.parameters(), parts, strict=True):
        nag.state[p]["velocity"] = part.view(p.shape).clone()
    nag.step(closure)
    by_nag = torch.cat([p.detach().reshape(-1) for p in twin.parameters()])
    return float((by_cg - by_nag).norm()), float((by_nag - flat).norm())


@pytest.mark.parametrize("name", ["mlp", "rnn"])
def test_approaches_nag_as_the_velocity_vanishes(name: str) -> None:
    """The difference falls with ‖v‖², beside an update whose length stays."""
    scales = [2.0**-i for i in range(2, 9)]
    gaps, lengths = zip(*(difference(name, scale, 0.9) for scale in scales), strict=True)
    orders = [float(torch.tensor(a / b).log2()) for a, b in pairwise(gaps[3:])]
    assert all(1.9 < order < 2.1 for order in orders), orders
    assert gaps[0] > 1e-4 * lengths[0]  # here they do differ
    assert gaps[-1] < 1e-3 * gaps[0]
    exact, length = difference(name, 1e-9, 0.9)
    assert exact < 1e-12 * max(length, 1.0)
