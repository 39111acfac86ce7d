"""Hessian-free optimisation of a DeepXDE model: −u'' = π² sin(πx), u(±1) = 0.

DeepXDE's closure calls ``backward()`` and returns the loss alone: ``curvature="hessian_fd"`` needs
nothing else. DeepXDE takes its backend from the environment: ``DDE_BACKEND=pytorch``.

    DDE_BACKEND=pytorch python -m hfcore.examples.with_deepxde
"""

from __future__ import annotations

import math

import deepxde as dde
import torch
from torch import Tensor

import hfcore as hf


def equation(x: Tensor, u: Tensor) -> Tensor:
    """−u'' − π² sin(πx) at the points ``x [B,1]``, ``[B,1]``."""
    second: Tensor = dde.grad.hessian(u, x)
    return -second - math.pi**2 * torch.sin(math.pi * x)


def main(steps: int = 15) -> list[float]:
    """Train; returns the loss before the first step and after the last."""
    dde.config.set_random_seed(0)
    interval = dde.geometry.Interval(-1, 1)
    edges = dde.icbc.DirichletBC(interval, lambda x: 0, lambda x, on_boundary: on_boundary)
    data = dde.data.PDE(interval, equation, edges, num_domain=20, num_boundary=2)
    model = dde.Model(data, dde.nn.FNN([1, 12, 12, 1], "tanh", "Glorot uniform"))
    # λ begins above the Hessian's most negative eigenvalue.
    opt = hf.HessianFree(model.net, curvature="hessian_fd", damping=300.0, cg_max_iter=20)
    model.compile(opt)
    history, _ = model.train(iterations=steps, display_every=steps, verbose=0)
    losses = [float(sum(losses)) for losses in history.loss_train]
    print(f"loss {losses[0]:.4f}, at the last step {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
