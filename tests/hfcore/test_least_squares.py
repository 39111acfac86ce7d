"""hf.LeastSquares against scipy.optimize.least_squares and dense solves in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import hfcore as hf
from hfcore.optimisers.damping import Nielsen

F64 = torch.float64
X = torch.linspace(0, 3, 17, dtype=F64)


class Vector(nn.Module):
    """r of one vector θ ``[N]``."""

    def __init__(self, r: Callable[[Tensor], Tensor], start: list[float]) -> None:
        super().__init__()
        self.r, self.theta = r, nn.Parameter(torch.tensor(start, dtype=F64))

    def forward(self) -> Tensor:
        return self.r(self.theta)


def rosenbrock(t: Tensor) -> Tensor:
    return torch.cat([10 * (t[1:] - t[:-1] ** 2), 1 - t[:-1]])


def exponentials(t: Tensor) -> Tensor:
    """Two decays fitted to data that none fits: residuals stay at the minimum."""
    data = torch.exp(-0.5 * X) + 0.3 * torch.cos(2 * X)
    return t[0] * torch.exp(-t[1] * X) + t[2] * torch.exp(-t[3] * X) - data


def powell(t: Tensor) -> Tensor:
    """Powell's singular function: J has no full rank at the minimum."""
    a, b = t[0] + 10 * t[1], math.sqrt(5) * (t[2] - t[3])
    return torch.stack([a, b, (t[1] - 2 * t[2]) ** 2, math.sqrt(10) * (t[0] - t[3]) ** 2])


@pytest.mark.parametrize("rule", ["nielsen", "martens2010"])
@pytest.mark.parametrize(
    ("r", "start"),
    [
        (rosenbrock, [-1.2, 1.0, 0.5]),
        (exponentials, [1.0, 0.4, 0.2, 2.0]),
        (powell, [3.0, -1.0, 0.0, 1.0]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_against_scipy(r: Callable[[Tensor], Tensor], start: list[float], rule: Any) -> None:
    def residuals(t: np.ndarray) -> np.ndarray:
        return r(torch.from_numpy(t)).numpy()

    def jacobian(t: np.ndarray) -> np.ndarray:
        return jacrev(r)(torch.from_numpy(t)).numpy()

    theirs = scipy.optimize.least_squares(
        residuals, start, jacobian, method="lm", xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    model = Vector(r, start)
    opt = hf.LeastSquares(model, damping_rule=rule)
    for _ in range(200):
        opt.step(model)
        assert opt.last_stats is not None
        if opt.last_stats.converged:
            break
    assert opt.last_stats.loss_after == pytest.approx(theirs.cost, rel=1e-9, abs=1e-14)
    if r is not powell:  # flat around its minimum
        ours, other = model.theta.detach(), torch.from_numpy(theirs.x)
        if r is exponentials and (ours[1] < ours[3]) != (other[1] < other[3]):
            ours = ours[[2, 3, 0, 1]]
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-7)


# ---- one step against dense algebra


def net_and_data(M: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    """A net of 17 parameters, and cases."""
    draw = torch.Generator().manual_seed(M)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=F64))
    x = torch.randn(M, 2, generator=draw, dtype=F64).to(dtype)
    return net, x, torch.randn(M, 1, generator=draw, dtype=F64).to(dtype)


def dense(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """θ, r and J in float64."""
    double = copy.deepcopy(net).double()
    named = dict(double.named_parameters())
    theta = torch.cat([p.detach().reshape(-1) for p in named.values()])

    def residuals(at: Tensor) -> Tensor:
        parts = at.split([p.numel() for p in named.values()])
        shaped = {n: q.view(p.shape) for (n, p), q in zip(named.items(), parts, strict=True)}
        return (functional_call(double, shaped, (x.double(),)) - y.double()).reshape(-1)

    return theta, residuals(theta), jacrev(residuals)(theta)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("M", [1, 5, 17, 40])
@pytest.mark.parametrize(
    ("space", "solver", "preconditioner"),
    [
        ("auto", "auto", None),
        ("parameters", "dense", None),
        ("samples", "dense", None),
        ("parameters", "cg", None),
        ("samples", "cg", None),
        ("parameters", "cg", "nystrom"),
    ],
)
def test_a_step_is_the_damped_solve(
    space: Any, solver: Any, preconditioner: Any, M: int, dtype: torch.dtype
) -> None:
    net, x, y = net_and_data(M, dtype)
    theta, r, J = dense(net, x, y)
    damping = 30.0  # at which the first try is accepted
    g = J.mT @ r
    p = -torch.linalg.solve(J.mT @ J + damping * torch.eye(len(theta), dtype=F64), g)
    opt = hf.LeastSquares(
        net,
        space=space,
        solver=solver,
        damping=damping,
        preconditioner=preconditioner,
        cg_tolerance=1e-5 if dtype == torch.float32 else 1e-10,
    )
    loss = opt.step(lambda: net(x) - y)
    stats = opt.last_stats
    assert stats is not None
    assert stats.accepted
    assert stats.tries == 1
    # ‖r‖ in float32 has √M eps, its solve the condition (‖J‖² + λ)/λ of it.
    condition = float(torch.linalg.matrix_norm(J, 2) ** 2 + damping) / damping
    rtol = (200 if dtype == F64 else 20) * condition * torch.finfo(dtype).eps
    rtol = max(
        rtol, 0 if solver == "dense" else 1.1 * condition * (1e-10 if dtype == F64 else 1e-5)
    )
    moved = torch.cat([q.detach().double().reshape(-1) for q in net.parameters()]) - theta
    # θ + p is rounded at θ's size.
    error = (moved - p).norm()
    assert error <= rtol * p.norm() + torch.finfo(dtype).eps * theta.norm()
    assert loss == pytest.approx(float(0.5 * r @ r), rel=20 * torch.finfo(dtype).eps)
    assert stats.gradient_norm == pytest.approx(float(g.norm()), rel=1e-4)
    change = float(0.5 * (dense(net, x, y)[1].square().sum() - r @ r))
    model = float(g @ p + 0.5 * (J @ p).square().sum())
    assert stats.rho == pytest.approx(change / model, rel=max(1e-6, 100 * rtol))
    assert stats.space == ("samples" if M < 17 else "parameters") or space != "auto"


def test_residuals_that_hold_derivatives_by_inputs() -> None:
    """The Jacobian of u'' by the parameters, as physics-informed nets need it."""
    net, x, _ = net_and_data(9, F64)

    def residuals() -> Tensor:
        at = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(at).sum(), at, create_graph=True)
        (second,) = torch.autograd.grad(slope[:, 0].sum(), at, create_graph=True)
        return second[:, 0] + net(x)[:, 0] - 1

    def functional(named: dict[str, Tensor]) -> Tensor:
        def u(at: Tensor) -> Tensor:
            return functional_call(net, named, (at.unsqueeze(0),))[0, 0]

        hessians = torch.func.vmap(torch.func.hessian(u))(x)
        return hessians[:, 0, 0] + torch.func.vmap(u)(x) - 1

    named = {name: p.detach() for name, p in net.named_parameters()}
    J = torch.cat([j.reshape(9, -1) for j in jacrev(functional)(named).values()], 1)
    r = functional(named)
    p = -torch.linalg.solve(J.mT @ J + 50 * torch.eye(17, dtype=F64), J.mT @ r)
    theta = torch.cat([q.detach().reshape(-1).clone() for q in net.parameters()])
    opt = hf.LeastSquares(net, damping=50.0)
    opt.step(residuals)
    moved = torch.cat([q.detach().reshape(-1) for q in net.parameters()]) - theta
    torch.testing.assert_close(moved, p, rtol=1e-9, atol=1e-12)


class _Unbatched(torch.autograd.Function):
    """The identity, of which no backward pass can be batched."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return v.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        assert float(g.sum()) is not None  # no value under vmap
        return g.clone()


def test_rows_one_by_one_where_torch_cannot_batch_them() -> None:
    a, x, y = net_and_data(8, F64)
    b = copy.deepcopy(a)
    one, other = hf.LeastSquares(a, damping=1.0), hf.LeastSquares(b, damping=1.0)
    one.step(lambda: a(x) - y)
    other.step(lambda: _Unbatched.apply(b(x)) - y)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


# ---- damping


def test_nielsens_rule() -> None:
    rule = Nielsen()
    assert rule.next(9.0, 1.0, accepted=True) == (3.0, Nielsen(2.0))  # 1 − 1, not below ⅓
    assert rule.next(8.0, 0.5, accepted=True) == (8.0, Nielsen(2.0))
    assert rule.next(8.0, 0.0, accepted=True) == (16.0, Nielsen(2.0))
    damping, rule = rule.next(1.0, -math.inf, accepted=False)
    damping, rule = rule.next(damping, math.nan, accepted=False)
    assert (damping, rule) == (8.0, Nielsen(8.0))
    assert rule.next(damping, 0.5, accepted=True) == (8.0, Nielsen(2.0))


def test_failures_raise_damping_within_a_step() -> None:
    """From far away the undamped step of an arctangent overshoots."""
    model = Vector(torch.atan, [3.0])
    opt = hf.LeastSquares(model, damping=1e-6)
    opt.step(model)
    stats = opt.last_stats
    assert stats is not None
    assert stats.accepted
    assert stats.tries > 3
    assert stats.loss_after < stats.loss
    assert stats.evaluations == stats.tries + 1
    assert stats.damping == pytest.approx(1e-6 * 2 ** ((stats.tries - 1) * stats.tries / 2))


@pytest.mark.parametrize("start", [0.0, 1e-3])
def test_where_nothing_falls_the_parameters_stay(start: float) -> None:
    """At a stationary point, and where the residuals' graph has the wrong sign."""
    model = Vector(lambda t: t - 2 * t.detach() + 1, [start])  # its value does not follow its slope
    if start == 0.0:
        model = Vector(lambda t: torch.cat([t * t, torch.ones(1, dtype=F64)]), [0.0])
    opt = hf.LeastSquares(model, max_tries=3)
    before = opt.step(model)
    stats = opt.last_stats
    assert stats is not None
    assert (stats.accepted, stats.converged) == (False, True)
    assert stats.loss_after == before
    assert "the step is zero" in stats.messages[0]
    assert float(model.theta) == start


# ---- names, state


def test_losses_by_name() -> None:
    net, x, y = net_and_data(12, F64)
    opt = hf.LeastSquares(net)
    opt.step(lambda: {"fit": net(x) - y, "size": 0.1 * net[0].weight})
    assert opt.last_stats is not None
    losses = opt.last_stats.losses
    assert losses["fit"] == pytest.approx(float(0.5 * (net(x) - y).square().sum()), rel=1e-12)
    assert losses["size"] == pytest.approx(0.005 * float(net[0].weight.square().sum()), rel=1e-12)
    assert sum(losses.values()) == pytest.approx(opt.last_stats.loss_after, rel=1e-12)
    assert opt.last_stats.residuals == 12 + 8


@pytest.mark.parametrize("given", ["module", "parameters"])
def test_a_run_goes_on_bit_by_bit(given: str) -> None:
    def start() -> tuple[nn.Module, hf.LeastSquares, Callable[[], Tensor]]:
        net, x, y = net_and_data(12, F64)
        opt = hf.LeastSquares(net if given == "module" else net.parameters())
        return net, opt, lambda: net(x) - y

    net, opt, closure = start()
    for _ in range(6):
        opt.step(closure)
    first, saved, closure = start()
    for _ in range(3):
        saved.step(closure)
    again, resumed, closure = start()
    again.load_state_dict(first.state_dict())
    resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
    for _ in range(3):
        resumed.step(closure)
    assert all(map(torch.equal, net.parameters(), again.parameters()))
    assert opt.last_stats.damping_next == resumed.last_stats.damping_next


# ---- bad input


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(2, dtype=F64))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"space": "data"}, ValueError, "space: got 'data', need one of"),
        ({"solver": "qr"}, ValueError, "solver: got 'qr'"),
        ({"damping": -1.0}, ValueError, "damping: got -1.0, need a finite number that is not"),
        ({"damping": "big"}, TypeError, "damping: got 'big', need a number"),
        ({"damping_rule": "lm"}, ValueError, "damping_rule: got 'lm'"),
        ({"cg_tolerance": 2.0}, ValueError, "cg_tolerance: got 2.0, need a number between 0 and 1"),
        ({"cg_max_iter": 0}, ValueError, "cg_max_iter: got 0, need at least 1"),
        ({"max_tries": 0}, ValueError, "max_tries: got 0, need at least 1"),
        ({"preconditioner": "jacobi"}, ValueError, "preconditioner: got 'jacobi'"),
        ({"preconditioner": "nystrom", "solver": "dense"}, ValueError, "preconditioner: belongs"),
    ],
)
def test_options_that_are_refused(options: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        hf.LeastSquares([parameter()], **options)


@pytest.mark.parametrize(
    ("closure", "error", "message"),
    [
        (lambda p: 3, TypeError, "closure: got int, need a function"),
        (lambda p: lambda: 3.0, TypeError, "closure: returned float, need a tensor of residuals"),
        (lambda p: lambda: {}, ValueError, "closure: returned no residuals"),
        (lambda p: lambda: {"a": p, "b": None}, TypeError, "closure: 'b': returned NoneType"),
        (lambda p: lambda: p.float(), TypeError, "returned torch.float32, need torch.float64"),
        (lambda p: lambda: p / 0, ValueError, "closure: returned residuals with NaN or Inf"),
        (lambda p: lambda: p[:0], ValueError, "outputs: got shape"),
        (lambda p: lambda: p.detach(), ValueError, "closure: the outputs do not depend on its"),
        (lambda p: lambda: (p - 1).sqrt(), ValueError, "the derivatives of its residuals are not"),
        (lambda p: lambda n: p, TypeError, "closure: takes other arguments"),
    ],
)
def test_closures_that_are_refused(closure: Any, error: type, message: str) -> None:
    p = parameter()
    opt = hf.LeastSquares([p])
    with pytest.raises(error, match=message):
        opt.step(closure(p))
    assert torch.equal(p.detach(), torch.ones(2, dtype=F64))
    assert not opt.state.get(p)


def test_residuals_that_come_and_go_are_refused() -> None:
    p, sizes = parameter(), iter([2, 1])
    opt = hf.LeastSquares([p])
    with pytest.raises(ValueError, match=r"returned 1 residuals, need 2 residuals"):
        opt.step(lambda: p[: next(sizes)])


def test_parameters_and_states_that_are_refused() -> None:
    with pytest.raises(TypeError, match="params: got int"):
        hf.LeastSquares(3)
    opt = hf.LeastSquares([parameter()])
    with pytest.raises(ValueError, match="params: got a second group"):
        opt.add_param_group({"params": [parameter()]})
    with pytest.raises(ValueError, match="state_dict: has no max_tries"):
        opt.load_state_dict(torch.optim.SGD([parameter()], lr=0.1).state_dict())
