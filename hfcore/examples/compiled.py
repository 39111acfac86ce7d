"""A training loop under ``torch.compile``: the compiled model is trained as the eager one.

With the loss alone and ``curvature="hessian_fd"`` nothing but ``backward()`` is asked of the model,
so that compiled graphs, which cannot be differentiated twice, run as they are.

    python -m hfcore.examples.compiled [BACKEND]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import hfcore as hf


def spirals(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points ``[B,2]`` of two spirals, and which it is."""
    y = torch.randint(2, (count,), generator=generator)
    t = 0.5 + 2.5 * torch.rand(count, generator=generator)
    angle = 1.5 * t + torch.pi * y
    x = torch.stack([t * angle.cos(), t * angle.sin()], 1)
    return x + 0.05 * torch.randn(count, 2, generator=generator), y


def main(steps: int = 6, backend: str = "aot_eager") -> list[float]:
    """Train; returns the loss at the start of every step."""
    torch.manual_seed(0)
    x, y = spirals(100, torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh())
    compiled: nn.Module = torch.compile(  # type: ignore[assignment]  # of a module it is one
        nn.Sequential(model, nn.Linear(12, 2)), backend=backend
    )
    opt = hf.HessianFree(compiled, curvature="hessian_fd", damping=0.1, l2=1e-4, cg_max_iter=10)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = nn.functional.cross_entropy(compiled(x), y)
        if torch.is_grad_enabled():
            loss.backward()
        return loss

    losses: list[float] = []
    for step in range(steps):
        stats = opt.step(closure)
        losses.append(stats.loss)
        if step % 2 == 0:
            print(f"step {step}: loss {stats.loss:.4f}, λ {stats.damping:.3g}")
    return losses


if __name__ == "__main__":
    main(backend=sys.argv[1] if len(sys.argv) > 1 else "aot_eager")
