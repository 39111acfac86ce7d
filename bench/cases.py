"""The nets and data that are timed, and how many flops a Gauss-Newton product of each takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import hfcore as hf


@dataclass(frozen=True)
class Case:
    """A tanh RNN with linear outputs and squared error, in float32.

    ``last`` counts the output of the last step only. ``recurrence_flops_only`` counts 8 H² B T,
    as the published target lines of the addition net do, and leaves out its small n and k.
    """

    B: int
    T: int
    H: int
    n: int
    k: int
    last: bool
    recurrence_flops_only: bool = False

    @property
    def name(self) -> str:
        outputs = "last" if self.last else "all"
        return f"B{self.B}-T{self.T}-H{self.H}-n{self.n}-k{self.k}-{outputs}"

    @property
    def flops(self) -> float:
        """8H² + 4nH for every step of every sequence, 8kH for every step with an output.

        Six products H² or nH wide of 2 flops a weight make the first (two each for V_hh and
        V_hx against the cached activations and for the gradient; W_hh forward and backward);
        Rh W_yhᵀ, H V_yhᵀ, gs W_yh and gsᵀ H make the second.
        """
        steps = self.B * self.T
        if self.recurrence_flops_only:
            return 8.0 * self.H**2 * steps
        output_steps = self.B if self.last else steps
        return (8.0 * self.H**2 + 4.0 * self.n * self.H) * steps + (
            8.0 * self.k * self.H
        ) * output_steps

    def make(self) -> Workload:
        """Weights, data and a tangent of this case, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        model = hf.RNN(self.n, self.H, self.k, generator=generator)
        x = torch.rand(self.T, self.B, self.n, generator=generator)
        y = torch.rand(self.T, self.B, self.k, generator=generator)
        mask = None
        if self.last:
            mask = torch.zeros(self.T, self.B, dtype=torch.bool)
            mask[-1] = True
        size = sum(p.numel() for p in model.parameters())
        return Workload(self, model, x, y, mask, torch.randn(size, generator=generator))


@dataclass(frozen=True)
class Workload:
    """One case made real: ``x [T,B,n]``, ``y [T,B,k]``, ``mask [T,B]`` or None, ``v [N]``."""

    case: Case
    model: hf.RNN
    x: Tensor
    y: Tensor
    mask: Tensor | None
    v: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """W_hx, W_hh, W_yh, b_h, b_init, b_y, detached."""
        return tuple(p.detach() for p in self.model.parameters())

    @property
    def tangents(self) -> tuple[Tensor, ...]:
        """``v`` cut into the shapes of the parameters."""
        parts = self.v.split([p.numel() for p in self.parameters])
        return tuple(part.view_as(p) for part, p in zip(parts, self.parameters, strict=True))


ADDITION = Case(B=1000, T=100, H=100, n=2, k=1, last=True, recurrence_flops_only=True)
ADDITION_SMALL = Case(B=100, T=80, H=100, n=2, k=1, last=True, recurrence_flops_only=True)
WIDE_ALL = Case(B=100, T=30, H=300, n=225, k=225, last=False)
WIDE_LAST = Case(B=100, T=30, H=300, n=225, k=225, last=True)
LARGE = Case(B=100, T=20, H=1024, n=64, k=64, last=False)
ROLLS = Case(B=200, T=200, H=300, n=88, k=88, last=False)
