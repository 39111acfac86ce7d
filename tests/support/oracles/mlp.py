"""hf.MLP written out layer by layer, and its derivatives by torch.func, all in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, vmap

import hfcore as hf
from hfcore.losses import Loss
from oracles import losses

ACTIVATIONS = {"linear": lambda z: z, "logistic": torch.sigmoid, "tanh": torch.tanh,
               "relu": torch.relu}  # fmt: skip


def mlp(
    theta: Tensor, sizes: Sequence[int], activations: Sequence[str], x: Tensor
) -> tuple[list[Tensor], Tensor]:
    """(pre-activations z ``[B,m]`` of every layer, outputs) of θ ``[N]`` and ``x [B,n]``."""
    zs, at = [], 0
    for (n, m), name in zip(pairwise(sizes), activations, strict=True):
        W, b = theta[at : at + m * n].view(m, n), theta[at + m * n : at + m * (n + 1)]
        at += m * (n + 1)
        zs.append(x @ W.T + b)
        x = ACTIVATIONS[name](zs[-1])
    return zs, x


@dataclass
class Problem:
    """A net, its parameters as one vector, a batch, and everything about them by brute force."""

    model: hf.MLP
    loss: Loss
    theta: Tensor
    x: Tensor
    y: Tensor

    def states(self, theta: Tensor, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """(pre-nonlinearities z of every layer, outputs)."""
        return mlp(theta, self.model.sizes, self.model.activations, x)

    def outputs(self, theta: Tensor) -> Tensor:
        return self.states(theta, self.x)[1]

    def case_loss(self, s: Tensor, y: Tensor) -> Tensor:
        return losses.per_output(self.loss.kind, s, y).sum()

    def mean_loss(self, theta: Tensor) -> Tensor:
        return self.case_loss(self.outputs(theta), self.y) / len(self.x)

    def case_gradients(self) -> Tensor:
        """``[B,N]``."""
        one = grad(lambda theta, x, y: self.case_loss(self.states(theta, x)[1], y))
        return torch.stack([one(self.theta, x, y) for x, y in zip(self.x, self.y, strict=True)])

    def gauss_newton(self) -> Tensor:
        J = jacrev(self.outputs)(self.theta)
        s = self.outputs(self.theta)
        L = vmap(hessian(self.case_loss))(s, self.y)
        return torch.einsum("bin,bij,bjm->nm", J, L, J) / len(self.x)

    def dense(self, kind: str) -> Tensor:
        """The curvature matrix ``[N,N]``."""
        if kind == "ggn":
            return self.gauss_newton()
        if kind == "hessian":
            return hessian(self.mean_loss)(self.theta)
        g = self.case_gradients()
        return g.T @ g / len(self.x)

    def structural(self, layer: int, distance: str) -> Tensor:
        """mean J_zᵀ D'' J_z of one layer."""

        def z_of(theta: Tensor) -> Tensor:
            return self.states(theta, self.x)[0][layer]

        J, z = jacrev(z_of)(self.theta), z_of(self.theta)
        if distance == "softmax":
            p = torch.softmax(z, -1)
            D = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        else:
            slope = ACTIVATIONS["linear" if distance == "identity" else distance]
            D = torch.diag_embed(vmap(grad(slope))(z.reshape(-1)).view_as(z))
        return torch.einsum("bin,bij,bjm->nm", J, D, J) / len(self.x)


def problem(
    loss: Loss, sizes: Sequence[int], activations: Sequence[str], *, cases: int, seed: int = 0
) -> Problem:
    """A random net in float64 with biases that are not zero, and a random batch."""
    g = torch.Generator().manual_seed(seed)
    model = hf.MLP(sizes, activations, dtype=torch.float64, generator=g)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    x = torch.randn(cases, sizes[0], generator=g, dtype=torch.float64)
    y = losses.targets(loss.kind, (cases,), sizes[-1], g)
    return Problem(model, loss, theta, x, y)
