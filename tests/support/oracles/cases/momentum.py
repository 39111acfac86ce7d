"""Random nets with velocities and rates, and the momentum update as float64 algebra."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hfcore.bindings.momentum import momentum_update

# Ones, vector widths ± 1, primes, a block ± 1, several blocks.
SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 1009, 8191, 8192, 8193, 40_009)


# Which of the optional arguments are there.
FORMS = ("plain", "l2", "ahead", "l2 ahead", "active", "l2 ahead active")


class Case(NamedTuple):
    theta: Tensor
    velocity: Tensor
    gradient: Tensor
    rates: dict[str, Tensor]
    ahead: Tensor | None
    active: Tensor | None

    def copy(self) -> Case:
        ahead = None if self.ahead is None else self.ahead.clone()
        return self._replace(theta=self.theta.clone(), velocity=self.velocity.clone(), ahead=ahead)

    def net(self, g: int) -> Case:
        """A copy of one net."""

        def one(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[g : g + 1].clone()

        gradient = self.gradient[g : g + 1] if self.gradient.shape[0] > 1 else self.gradient
        rates = {name: value[g : g + 1] for name, value in self.rates.items()}
        return Case(*map(one, self[:2]), gradient, rates, one(self.ahead), one(self.active))

    def run(self) -> Case:
        momentum_update(*self[:3], **self.rates, ahead=self.ahead, active=self.active)
        return self

    def outputs(self) -> list[Tensor]:
        return [t for t in (self.theta, self.velocity, self.ahead) if t is not None]


def make(G: int, N: int, dtype: torch.dtype, form: str = "plain", *, shared: bool = False) -> Case:
    """Random nets, coefficients not representable in float32; ``ahead`` is unlike θ + μv."""
    draw = torch.Generator().manual_seed(G * N)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    names = ("learning_rate", "momentum", "lookahead", "l2")
    rates = {n: torch.rand(G, generator=draw, dtype=torch.float64) for n in names}
    if "l2" not in form:
        del rates["l2"]
    theta, velocity = normal(G, N).to(dtype), normal(G, N).to(dtype)
    gradient = normal(1 if shared else G, N).to(dtype)
    ahead = normal(G, N).to(dtype) if "ahead" in form else None
    active = torch.arange(G) % 2 == 0 if "active" in form else None
    return Case(theta, velocity, gradient, rates, ahead, active)


def assert_within(got: Tensor, want: Tensor, bound: Tensor) -> None:
    excess = (got.double() - want).abs() - bound
    assert not bool((excess > 0).any() | excess.isnan().any()), f"worst by {excess.max()}"


def check(old: Case, new: Case) -> None:
    """Every product, sum and coefficient rounds once, by half an eps; a fused one less often.

    In float64 the oracle rounds as often, so there a rounding counts twice.
    """
    dtype = old.theta.dtype
    u = torch.finfo(dtype).eps / (1 if dtype == torch.float64 else 2) * 1.0001
    learning_rate, momentum, lookahead = (
        old.rates[n].unsqueeze(1) for n in ("learning_rate", "momentum", "lookahead")
    )
    inertia = momentum * old.velocity.double()
    force = learning_rate * old.gradient.double()
    a = old.theta if old.ahead is None else old.ahead
    l2 = old.rates.get("l2", torch.zeros(1, dtype=torch.float64)).unsqueeze(1)
    decay = learning_rate * (l2 * a.double())
    v = inertia - force - decay
    v_bound = u * (3 * inertia.abs() + 4 * force.abs() + 6 * decay.abs())
    theta = old.theta.double() + v
    theta_bound = v_bound + u * (theta.abs() + v_bound)
    step = lookahead * v
    ahead = theta + step
    ahead_bound = theta_bound + lookahead * v_bound + u * (3 * step.abs() + ahead.abs())
    wanted = [(theta, theta_bound), (v, v_bound), (ahead, 1.0001 * ahead_bound)]
    for got, before, (want, bound) in zip(new.outputs(), old.outputs(), wanted, strict=False):
        for g in range(got.shape[0]):
            if old.active is None or bool(old.active[g]):
                assert_within(got[g], want[g], bound[g])
            else:
                assert torch.equal(got[g], before[g])
