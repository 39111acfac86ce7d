"""torch's recurrent modules with a linear read-out, written out step by step in float64.

Formulas: the documentation of nn.RNN, nn.LSTM and nn.GRU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.losses import Loss
from oracles import losses
from oracles.layers import Layered
from oracles.rnn import ACTIVATIONS, flat, moved, steps_of_loss

MODULES: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Net(nn.Module):
    """A read-out, before or after the recurrent module among the parameters."""

    def __init__(
        self, kind: str, n: int, H: int, k: int, *, out_first: bool = False, out_bias: bool = True,
        last: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if out_first:
            self.out = nn.Linear(H, k, bias=out_bias)
        self.rnn = MODULES[kind](n, H, **options)
        if not out_first:
            self.out = nn.Linear(H, k, bias=out_bias)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.rnn(x)
        if self.last:
            h = h[:, -1] if self.rnn.batch_first else h[-1]
        return self.out(h)


def layer(
    kind: str, p: Mapping[str, Tensor], l: int, x: Tensor, H: int, nonlinearity: str = "tanh"
) -> tuple[Tensor, Tensor]:
    """(pre-activations of an nn.RNN, h) ``[T,B,H]`` of one layer for ``x [T,B,n]``."""
    zero = x.new_zeros(())
    W, U = p[f"rnn.weight_ih_l{l}"], p[f"rnn.weight_hh_l{l}"]
    b, d = p.get(f"rnn.bias_ih_l{l}", zero), p.get(f"rnn.bias_hh_l{l}", zero)
    h = c = x.new_zeros(x.shape[1], H)
    pre, states = [], []
    for x_t in x:
        a, r = x_t @ W.T + b, h @ U.T + d
        if kind == "rnn":
            pre.append(a + r)
            h = ACTIVATIONS[nonlinearity](a + r)
        elif kind == "lstm":
            i, f, g, o = (a + r).split(H, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        else:
            (a_r, a_z, a_n), (r_r, r_z, r_n) = a.split(H, 1), r.split(H, 1)
            z = torch.sigmoid(a_z + r_z)
            h = (1 - z) * torch.tanh(a_n + torch.sigmoid(a_r + r_r) * r_n) + z * h
        states.append(h)
    return torch.stack(pre or states), torch.stack(states)


class Problem(Layered):
    """A small module and its data."""

    def __init__(
        self, kind: str, loss: Loss, *, T: int = 4, B: int = 3, n: int = 2, H: int = 3, k: int = 2,
        mask: str | None = "ragged", **options: Any,
    ) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(T * 100 + B)
        with torch.random.fork_rng([]):
            torch.manual_seed(T)
            self.model = Net(kind, n, H, k, **options).double()
        moved(self.model, g)
        self.kind, self.loss, self.H = kind, loss, H
        self.nonlinearity = getattr(self.model.rnn, "nonlinearity", "tanh")
        self.last, self.batch_first = self.model.last, self.model.rnn.batch_first
        self.theta = flat(self.model)
        x = torch.randn(T, B, n, generator=g, dtype=torch.float64)
        y = losses.targets(loss.kind, (1 if self.last else T, B), k, g)
        steps = steps_of_loss("all" if self.last or mask is None else mask, T, B, g)
        if mask == "ragged" and T > 1 and not self.last:
            steps[0] = False
        steps = steps[-1:] if self.last else steps
        if self.last and mask is not None:
            steps[0, 0] = B == 1
        # Time first; the batch has the module's own axes.
        self.x, self.y, self.mask = x, y, steps
        self.batch = hf.Batch(*map(self.own_axes, (x,)), *map(self.own_targets, (y, steps)))
        if mask is None:
            self.batch = self.batch._replace(mask=None)

    def own_axes(self, t: Tensor) -> Tensor:
        return t.transpose(0, 1).contiguous() if self.batch_first else t

    def own_targets(self, t: Tensor) -> Tensor:
        return t[0] if self.last else self.own_axes(t)

    @property
    def batch_dim(self) -> Any:
        axis = 0 if self.batch_first else 1
        return (axis, 0) if self.last and axis else axis

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        found, at = {}, 0
        for name, p in self.model.named_parameters():
            found[name] = theta[at : at + p.numel()].view(p.shape)
            at += p.numel()
        return found

    def by_hand(self, theta: Tensor) -> tuple[list[Tensor], Tensor]:
        """Pre-activations ``[T,B,H]`` of every layer (nn.RNN), and s ``[T or 1,B,k]``."""
        p, below, ts = self.named(theta), self.x, []
        for l in range(self.model.rnn.num_layers):
            t, below = layer(self.kind, p, l, below, self.H, self.nonlinearity)
            ts.append(t)
        below = below[-1:] if self.last else below
        return ts, below @ p["out.weight"].T + p.get("out.bias", below.new_zeros(()))
