"""Whole Hessian-free iterations of others, on the autoencoder of ``bench/autoencoder.py``.

Two packages call themselves ``hessianfree``, so each is named by a folder in the environment:

    HFCORE_PYTORCHHESSIANFREE   a checkout of github.com/ltatzel/PyTorchHessianFree (needs BackPACK)
    HFCORE_DRASMUSS             drasmuss' hessianfree, unpacked: ``pip install --no-deps --target``

Each maker gives a function that takes one step from the same parameters at every call; one whose
folder is not given raises ImportError and is left out.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.autoencoder import Workload, plain_torch

DAMPING = 45.0
Maker = Callable[[Workload, int], Callable[[], object]]


def make_pytorch_hessianfree(load: Workload, cg_iterations: int) -> Callable[[], object]:
    """PyTorchHessianFree: BackPACK's products, cross-entropy.

    Its progress rule has no switch, but asks for less than 5e-4 in ten iterations, which the first
    twenty of this net do not come near.
    """
    package = _package("HFCORE_PYTORCHHESSIANFREE", "hessianfree.optimizer")
    module = plain_torch(load)
    start = [p.detach().clone() for p in module.parameters()]

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        s = module(load.x)
        loss = nn.functional.binary_cross_entropy_with_logits(s, load.x, reduction="sum")
        return loss / len(load.x), s

    def iteration() -> None:
        with torch.no_grad():
            for p, value in zip(module.parameters(), start, strict=True):
                p.copy_(value)
        optimizer = package.HessianFree(
            module.parameters(), damping=DAMPING, cg_max_iter=cg_iterations
        )
        optimizer.step(forward=forward)

    return iteration


def make_drasmuss(load: Workload, cg_iterations: int) -> Callable[[], object]:
    """drasmuss' hessianfree in NumPy: squared error on logistic outputs."""
    package = _package("HFCORE_DRASMUSS", "hessianfree")
    units = [{"logistic": "Logistic", "linear": "Linear"}[a] for a in load.model.activations]
    net = package.FFNet(
        list(load.model.sizes),
        layers=["Linear", *units[:-1], "Logistic"],
        loss_type=package.loss_funcs.SquaredError(),
    )
    named = iter(load.parameters.values())
    start = np.concatenate(
        [
            np.concatenate([next(named).numpy().T, next(named).numpy()[None]]).ravel()
            for _ in pairwise(load.model.sizes)
        ]
    )
    x = load.x.numpy()
    optimizer = package.opt.HessianFree(CG_iter=cg_iterations, init_damping=DAMPING, plotting=False)
    net.optimizer = optimizer

    def iteration() -> None:
        net.W[:] = start
        optimizer.init_delta, optimizer.damping = None, DAMPING
        net.cache_minibatch(x, x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.compute_update()

    return iteration


PEERS: dict[str, dict[str, Maker]] = {
    "logistic": {"PyTorchHessianFree": make_pytorch_hessianfree},
    "squared": {"drasmuss/hessianfree": make_drasmuss},
}


def _package(variable: str, name: str) -> Any:
    """A module of the package in the folder that the environment names, apart from its namesake."""
    folder = os.environ.get(variable)
    if not folder:
        raise ImportError(f"{variable} is not set")

    def forget() -> dict[str, Any]:
        names = [m for m in sys.modules if m.split(".")[0] == "hessianfree"]
        return {m: sys.modules.pop(m) for m in names}

    before = forget()
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)
        forget()
        sys.modules.update(before)
