"""A net of a user's own, on torch's ops alone: what a file outside of the package has to bring.

y = x + V tanh(W x + b), the residual of an autoencoder.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.nets import Data, Into, Pass, Tangent, check_cases


class Residual(nn.Module):
    """Parameters ``W [m,n]``, ``b [m]``, ``V [n,m]``; inputs and outputs ``[B,n]``."""

    def __init__(self, n: int, m: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.W = nn.Parameter(0.3 * torch.randn(m, n, generator=generator))
        self.b = nn.Parameter(torch.zeros(m))
        self.V = nn.Parameter(0.3 * torch.randn(n, m, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(x @ self.W.mT + self.b) @ self.V.mT


class Weights(NamedTuple):
    W: Tensor
    b: Tensor
    V: Tensor


class ResidualNet(hf.nets.FusedNet):
    """Nets shaped like one :class:`Residual`; states are (weights, h), tangents of them Rh."""

    def __init__(self, model: Residual, loss: hf.losses.Loss) -> None:
        self.m, self.n = model.W.shape
        super().__init__(model, loss, numel=self.m * (2 * self.n + 1), output_size=self.n)

    def split(self, theta: Tensor) -> Weights:
        W, b, V = theta.split([self.m * self.n, self.m, self.n * self.m], dim=1)
        return Weights(
            W.unflatten(1, (self.m, self.n)), b.unsqueeze(1), V.unflatten(1, (self.n, -1))
        )

    def check(self, batch: hf.Batch, dtype: torch.dtype | None = None) -> Data:
        like = next(self.model.parameters()) if dtype is None else None
        return check_cases(batch, self.loss, (self.n, self.n), like=like, dtype=dtype)

    def bytes_per_case(self, part: Data) -> int:
        return (self.m + self.n) * part.x.element_size()

    def outputs(self, theta: Tensor, part: Data) -> Tensor:
        return self.forward(theta, part, fresh=True).s

    def forward(self, theta: Tensor, part: Data, *, fresh: bool) -> Pass:
        w = self.split(theta)
        h = torch.tanh(part.x @ w.W.mT + w.b)
        return Pass(part, (part.x + h @ w.V.mT).unsqueeze(1), (w, h))

    def tangent(self, at: Pass, v: Tensor, *, keep: bool, stop: Tensor | None = None) -> Tangent:
        (w, h), R = at.states, self.split(v)
        Rh = (1 - h * h) * (at.part.x @ R.W.mT + R.b)
        return Tangent((Rh @ w.V.mT + h @ R.V.mT).unsqueeze(1), Rh)

    def backward(self, at: Pass, gs: Tensor, into: Into) -> Tensor:
        (w, h), gs = at.states, gs[:, 0]
        delta = (gs @ w.V) * (1 - h * h)
        parts = delta.mT @ at.part.x, delta.sum(1), gs.mT @ h
        return torch.cat([p.flatten(1) for p in parts], 1, out=into.out).mul_(into.scale)


hf.nets.register(Residual, ResidualNet)
