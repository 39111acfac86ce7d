"""A physics-informed net by Hessian-free optimisation: Poisson's equation on the unit square.

−Δu = 2π² sin(πx) sin(πy), u = 0 on the boundary. The loss takes derivatives of the net by its
inputs. The residuals are the outputs of the closure: their squares give the Gauss-Newton matrix.

    python -m hfcore.examples.poisson
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import hfcore as hf


def solution(x: Tensor) -> Tensor:
    """u ``[B,1]`` at the points ``x [B,2]``."""
    return torch.sin(math.pi * x).prod(1, keepdim=True)


def points(inside: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random points ``[inside,2]`` and ``[4·side,2]``, those on the four sides."""
    within = torch.rand(inside, 2, generator=generator, dtype=torch.float64)
    along = torch.rand(4, side, generator=generator, dtype=torch.float64)
    zero, one = torch.zeros(side, dtype=torch.float64), torch.ones(side, dtype=torch.float64)
    sides = [(along[0], zero), (along[1], one), (zero, along[2]), (one, along[3])]
    return within, torch.cat([torch.stack(pair, 1) for pair in sides])


def residuals(model: nn.Module, within: Tensor, boundary: Tensor) -> Tensor:
    """−Δu − f at ``within [m,2]`` and 10·u at ``boundary [n,2]``, ``[m+n,1]``."""
    x = within.requires_grad_()
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    second = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0] for i in range(2)]
    laplacian = second[0][:, :1] + second[1][:, 1:]
    equation = -laplacian - 2 * math.pi**2 * solution(x.detach())
    return torch.cat([equation, 10 * model(boundary)])


def main(steps: int = 5) -> list[float]:
    """Train; returns the loss at the start of every step."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    within, boundary = points(60, 8, generator)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    opt = hf.HessianFree(model, damping=0.1, cg_max_iter=30)

    def closure() -> tuple[Tensor, Tensor]:
        r = residuals(model, within, boundary)
        return r.square().mean(), r

    losses: list[float] = []
    for step in range(steps):
        stats = opt.step(closure)
        losses.append(stats.loss)
        if step % 2 == 0:
            print(f"step {step}: loss {stats.loss:.4f}, λ {stats.damping:.3g}")
    test, _ = points(200, 1, generator)
    with torch.no_grad():
        error = (model(test) - solution(test)).abs().max().item()
    print(f"largest error of u: {error:.2e}")
    return losses


if __name__ == "__main__":
    main()
