"""Random nets with data, and their losses and gradients by autograd in float64."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from hfcore.bindings.net import Net, net_gradient
from oracles import losses
from oracles.mlp import mlp

Shape = tuple[tuple[int, ...], tuple[str, ...]]


# Sizes and activations: one layer, ones, primes, 12 rows and 32 columns of a tile ± 1, deeper than
# a block of 256, an autoencoder.
NETS: dict[str, Shape] = {
    "one layer": ((3, 2), ("linear",)),
    "ones": ((1, 1, 1), ("tanh", "linear")),
    "primes": ((13, 41, 17, 5), ("logistic", "tanh", "relu")),
    "tiles": ((31, 12, 33, 13), ("relu", "logistic", "linear")),
    "deep": ((257, 25, 300), ("tanh", "logistic")),
    "autoencoder": ((20, 64, 3, 64, 20), ("logistic", "linear", "logistic", "linear")),
}


# Ones, a vector ± 1, more than a block of 256.
CASES = (1, 2, 15, 16, 17, 100, 300)


class Case:
    """Random nets, data and a gradient buffer that is NaN."""

    def __init__(
        self,
        net: str,
        B: int,
        kind: str = "logistic",
        dtype: torch.dtype = torch.float32,
        *,
        G: int = 1,
        own_data: bool = False,
    ) -> None:
        self.sizes, self.activations = NETS[net]
        self.kind, self.G = kind, G
        draw = torch.Generator().manual_seed(B)
        fan_in = torch.cat([torch.full((m * (n + 1),), float(n)) for n, m in pairwise(self.sizes)])
        theta = torch.randn(G, len(fan_in), generator=draw) / fan_in.sqrt()
        self.theta = theta.to(dtype)
        data, k = (G if own_data else 1), self.sizes[-1]
        self.x = torch.rand(data, B, self.sizes[0], generator=draw).to(dtype)
        self.targets = (
            torch.randint(k, (data, B), generator=draw)
            if kind == "softmax"
            else torch.rand(data, B, k, generator=draw).to(dtype)
        )
        self.out = torch.full_like(self.theta, torch.nan)

    @property
    def net(self) -> Net:
        return Net(self.kind, self.sizes, self.activations)

    def run(self, scale: float = 0.3) -> tuple[Tensor, Tensor]:
        return net_gradient(self.net, self.x, self.targets, self.theta, scale=scale, out=self.out)

    def one(self, g: int) -> Case:
        """Net g by itself."""
        alone = object.__new__(Case)
        alone.__dict__.update(self.__dict__, G=1)
        alone.theta = self.theta[g : g + 1].clone()
        if len(self.x) > 1:
            alone.x, alone.targets = self.x[g : g + 1], self.targets[g : g + 1]
        alone.out = torch.full_like(alone.theta, torch.nan)
        return alone


def oracle(case: Case, scale: float = 0.3) -> tuple[Tensor, Tensor]:
    """By autograd through torch's own layers and losses, in float64."""
    values, gradients = [], []
    for g in range(case.G):
        theta, x = case.theta[g].double().requires_grad_(), case.x[g % len(case.x)].double()
        y = case.targets[g % len(case.x)]
        y = y.double() if y.is_floating_point() else y
        s = mlp(theta, case.sizes, case.activations, x)[1]
        value = scale * losses.per_output(case.kind, s, y).sum()
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, theta)[0])
    return torch.stack(values), torch.stack(gradients)


def check(case: Case) -> None:
    values, gradient = case.run()
    assert gradient is case.out
    assert values.dtype == torch.float64
    want_values, want = oracle(case)
    eps = torch.finfo(case.theta.dtype).eps
    # Rounding of a layer's sums grows like the root of their length, and adds up over the layers.
    depth = 2 * len(case.activations)
    tolerance = 4 * eps * depth * max(*case.sizes, case.x.shape[1]) ** 0.5
    assert float((gradient.double() - want).norm()) <= tolerance * float(want.norm())
    torch.testing.assert_close(values, want_values, rtol=tolerance, atol=0)
