"""hf.NaturalGradient against dense Fisher matrices in float64, and its radius."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Gamma, Normal, kl_divergence
from torch.func import functional_call, jacrev

import hfcore as hf

F64 = torch.float64
OUTPUTS = {"categorical": 3, "bernoulli": 2, "normal": 4, "function": 2}


def softplus_gamma(outputs: Tensor) -> Gamma:
    a, b = nn.functional.softplus(outputs).unbind(-1)
    return Gamma(a + 0.5, b + 0.5)


def fisher_of_outputs(kind: str, s: Tensor) -> Tensor:
    """The Fisher matrix ``[k,k]`` of one case's outputs ``s [k]``, from its formula."""
    if kind == "categorical":
        p = s.softmax(0)
        return torch.diag(p) - torch.outer(p, p)
    if kind == "bernoulli":
        p = s.sigmoid()
        return torch.diag(p * (1 - p)) / 2  # two variables a case, over which it is a mean
    if kind == "normal":  # of the mean 1/σ², of ln σ 2
        return torch.diag(torch.cat([torch.exp(-2 * s[2:]), torch.full((2,), 2.0, dtype=F64)]))
    a, b = (nn.functional.softplus(s) + 0.5).unbind()
    slope = torch.diag(s.sigmoid())
    own = torch.stack(
        [torch.stack([torch.polygamma(1, a), -1 / b]), torch.stack([-1 / b, a / b**2])]
    )
    return slope @ own @ slope


class Setting:
    """A net of few parameters, a linear loss of its outputs, and both as dense matrices."""

    def __init__(self, kind: str, B: int, dtype: torch.dtype) -> None:
        draw = torch.Generator().manual_seed(B)
        k = OUTPUTS[kind]
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, k)).to(dtype)
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(0.5 * torch.randn(p.shape, generator=draw, dtype=F64))
        self.x = torch.randn(B, 2, generator=draw, dtype=F64).to(dtype)
        self.weight = torch.randn(B, k, generator=draw, dtype=F64).to(dtype)
        self.kind = kind

    @property
    def distribution(self) -> Any:
        return softplus_gamma if self.kind == "function" else self.kind

    def closure(self) -> tuple[Tensor, Tensor]:
        outputs = self.net(self.x)
        return (self.weight * torch.sin(outputs)).mean(), outputs

    def theta(self) -> Tensor:
        return torch.cat([p.detach().double().reshape(-1) for p in self.net.parameters()])

    def dense(self) -> tuple[Tensor, Tensor]:
        """g ``[N]`` and F ``[N,N]``."""
        net = copy.deepcopy(self.net).double()
        named = {name: p.detach() for name, p in net.named_parameters()}

        def outputs(at: dict[str, Tensor]) -> Tensor:
            return functional_call(net, at, (self.x.double(),))

        def flat(j: dict[str, Tensor], n: int) -> Tensor:
            return torch.cat([part.reshape(n, -1) for part in j.values()], 1)

        s = outputs(named)
        J = flat(jacrev(outputs)(named), s.numel()).view(*s.shape, -1)
        each = [J[i].mT @ fisher_of_outputs(self.kind, s[i]) @ J[i] for i in range(len(s))]
        loss = jacrev(lambda at: (self.weight.double() * torch.sin(outputs(at))).mean())
        return flat(loss(named), 1)[0], torch.stack(each).mean(0)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("B", [1, 7])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_step_is_the_dense_one(kind: str, B: int, dtype: torch.dtype) -> None:
    setting, damping = Setting(kind, B, dtype), 0.05
    max_kl = 1e-6 if dtype == F64 else 1e-4
    g, F = setting.dense()
    before = setting.theta()
    A = F + damping * torch.eye(len(g), dtype=F64)
    s = torch.linalg.solve(A, g)
    p = -s * math.sqrt(2 * max_kl / float(s @ A @ s))
    opt = hf.NaturalGradient(
        setting.net, setting.distribution, max_kl=max_kl, damping=damping, cg_max_iter=100,
        cg_tolerance=1e-5 if dtype == torch.float32 else 1e-10,
    )  # fmt: skip
    loss = opt.step(setting.closure)
    stats = opt.last_stats
    assert stats is not None
    assert stats.accepted
    condition = float(torch.linalg.cond(A))
    rtol = condition * (4e-5 if dtype == torch.float32 else 1e-9)
    moved = setting.theta() - before
    error = float((moved - stats.alpha * p).norm())
    # θ + p is rounded at θ's size.
    assert error <= rtol * float(p.norm()) + torch.finfo(dtype).eps * float(before.norm())
    assert stats.gradient_norm == pytest.approx(float(g.norm()), rel=1e-4)
    assert stats.predicted_change == pytest.approx(float(g @ p), rel=rtol)
    assert loss == stats.loss
    # At a radius this small the divergence is its quadratic model.
    quadratic = 0.5 * stats.alpha**2 * float(p @ F @ p)
    rel, slack = (0.05, 0.0) if dtype == F64 else (0.3, 1e-6)
    assert stats.divergence == pytest.approx(quadratic, rel=rel, abs=slack)
    assert stats.divergence <= max_kl


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_radius_holds_and_the_loss_falls(kind: str) -> None:
    setting = Setting(kind, 20, F64)
    opt = hf.NaturalGradient(setting.net, setting.distribution, max_kl=0.02, damping=1e-3)
    losses = []
    for _ in range(5):
        before = setting.net(setting.x).detach()
        losses.append(opt.step(setting.closure))
        stats = opt.last_stats
        assert stats is not None
        assert stats.accepted
        make = {
            "categorical": lambda s: Categorical(logits=s),
            "bernoulli": lambda s: torch.distributions.Bernoulli(logits=s),
            "normal": lambda s: Normal(s[..., :2], s[..., 2:].exp()),
            "function": softplus_gamma,
        }[kind]
        kl = kl_divergence(make(before), make(setting.net(setting.x).detach()))
        if kind == "normal":
            kl = kl.sum(-1)
        assert stats.divergence == pytest.approx(float(kl.mean()), rel=1e-9)
        assert stats.divergence <= 0.02
        assert stats.loss_after == pytest.approx(float(setting.closure()[0].detach()), rel=1e-12)
        assert stats.loss_after <= stats.loss + 0.1 * stats.alpha * stats.predicted_change
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_it_does_not_depend_on_how_the_outputs_are_scaled() -> None:
    """Amari (1998): another parametrisation of the same family, the same step."""
    a, b = (Setting("categorical", 9, F64) for _ in range(2))
    with torch.no_grad():
        for p in b.net[2].parameters():
            p.div_(10.0)
    setting = dict(max_kl=1e-3, damping=0.0, cg_max_iter=200, cg_tolerance=1e-9)
    one = hf.NaturalGradient(a.net, "categorical", **setting)
    other = hf.NaturalGradient(b.net, lambda s: Categorical(logits=10 * s), **setting)

    def closure() -> tuple[Tensor, Tensor]:
        outputs = b.net(b.x)
        return (b.weight * torch.sin(10 * outputs)).mean(), outputs

    one.step(a.closure)
    other.step(closure)
    assert one.last_stats.alpha == other.last_stats.alpha
    torch.testing.assert_close(a.net(a.x), 10 * b.net(b.x), rtol=1e-4, atol=1e-5)


def test_where_nothing_is_accepted_the_parameters_stay() -> None:
    setting = Setting("categorical", 5, F64)
    before = setting.theta()
    opt = hf.NaturalGradient(setting.net, "categorical", max_kl=1.0, line_search_max=1)

    def wavy() -> tuple[Tensor, Tensor]:
        """Its slope holds for a millionth of the step."""
        outputs = setting.net(setting.x)
        return 1e-6 * torch.sin(1e6 * outputs.square().sum()), outputs

    def flat() -> tuple[Tensor, Tensor]:
        outputs = setting.net(setting.x)
        return 0.0 * outputs.sum(), outputs

    for closure, message in ((wavy, "no step within"), (flat, "the gradient is zero")):
        loss = opt.step(closure)
        stats = opt.last_stats
        assert stats is not None
        assert not stats.accepted
        assert message in stats.messages[0]
        assert (stats.loss_after, stats.divergence, stats.step_norm) == (loss, 0.0, 0.0)
        assert torch.equal(setting.theta(), before)


def test_a_copy_takes_the_same_steps() -> None:
    setting = Setting("categorical", 6, F64)
    opt = hf.NaturalGradient(setting.net, "categorical")
    opt.step(setting.closure)
    other = copy.deepcopy(setting)
    again = hf.NaturalGradient(other.net.parameters(), "categorical")
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.step(setting.closure)
    again.step(other.closure)
    assert torch.equal(setting.theta(), other.theta())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"distribution": "poisson"}, ValueError, "distribution: got 'poisson', need one of"),
        ({"distribution": 3}, ValueError, "distribution: got 3, need one of"),
        ({"max_kl": 0.0}, ValueError, "max_kl: got 0.0, need a positive"),
        ({"damping": -1.0}, ValueError, "damping: got -1.0"),
        ({"cg_max_iter": 0}, ValueError, "cg_max_iter: got 0"),
        ({"cg_tolerance": 1.0}, ValueError, "cg_tolerance: got 1.0"),
        ({"line_search_decay": 1.5}, ValueError, "line_search_decay: got 1.5"),
        ({"line_search_armijo": -0.1}, ValueError, "line_search_armijo: got -0.1"),
        ({"line_search_max": 0}, ValueError, "line_search_max: got 0"),
        ({"params": 3}, TypeError, "params: got int"),
    ],
)
def test_options_that_are_refused(options: Any, error: type, message: str) -> None:
    given = {"params": nn.Linear(2, 2), "distribution": "categorical", **options}
    with pytest.raises(error, match=message):
        hf.NaturalGradient(**given)


def with_outputs(make: Callable[[Tensor], Any]) -> Callable[[nn.Module], Callable[[], Any]]:
    return lambda net: lambda: make(net(torch.ones(3, 2)))


@pytest.mark.parametrize(
    ("make", "distribution", "error", "message"),
    [
        (lambda net: 3, "categorical", TypeError, "closure: got int, need a function"),
        (with_outputs(lambda s: s.mean()), "categorical", TypeError, "closure: returned a scalar"),
        (with_outputs(lambda s: (s, s)), "categorical", ValueError, "closure: loss has shape"),
        (with_outputs(lambda s: (s.mean() / 0, s)), "categorical", ValueError, "not finite"),
        (with_outputs(lambda s: (s.mean(), s / 0)), "categorical", ValueError, "outputs with NaN"),
        (
            with_outputs(lambda s: (s.mean().detach(), s)),
            "categorical",
            ValueError,
            "loss: does not",
        ),
        (with_outputs(lambda s: (s.mean(), s)), "normal", ValueError, "outputs: got shape"),
        (with_outputs(lambda s: (s.mean(), s)), lambda s: s, TypeError, "gave Tensor, need a"),
        (
            with_outputs(lambda s: (s.mean(), s)),
            lambda s: torch.distributions.VonMises(s, s.exp()),
            TypeError,
            "torch knows no kl_divergence of VonMises",
        ),
    ],
)
def test_closures_that_are_refused(make: Any, distribution: Any, error: type, message: str) -> None:
    net = nn.Linear(2, 3)
    before = net.weight.detach().clone()
    opt = hf.NaturalGradient(net, distribution)
    with pytest.raises(error, match=message):
        opt.step(make(net))
    assert torch.equal(net.weight, before)


def test_states_that_are_refused() -> None:
    net = nn.Linear(2, 3)
    opt = hf.NaturalGradient(net, "categorical")
    with pytest.raises(ValueError, match="params: got a second group"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ValueError, match="state_dict: has no max_kl"):
        opt.load_state_dict(torch.optim.SGD(net.parameters(), lr=0.1).state_dict())


def test_a_trial_that_stands_for_no_distribution_is_shortened() -> None:
    """A radius that allows deviations of 0 and of infinity: torch would refuse the distribution."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Linear(3, 2).double()
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).double()
    opt = hf.NaturalGradient(net, "normal", max_kl=1e12)

    def closure() -> tuple[Tensor, Tensor]:
        s = net(x)
        return s.square().mean(), s

    losses = [opt.step(closure) for _ in range(5)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] <= losses[0]
    assert opt.last_stats is not None
    assert math.isfinite(opt.last_stats.divergence)
