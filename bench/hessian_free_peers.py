"""Whole Hessian-free iterations of others, on the autoencoder of ``bench/autoencoder.py``.

Two packages call themselves ``hessianfree``, so each is named by a folder in the environment:

    HFCORE_PYTORCHHESSIANFREE   a checkout of github.com/ltatzel/PyTorchHessianFree (needs BackPACK)
    HFCORE_DRASMUSS             drasmuss' hessianfree, unpacked: ``pip install --no-deps --target``

Each maker gives a function that takes one step from the same place at every call and returns how
many curvature products that took; one whose folder is not given raises ImportError.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.autoencoder import Workload, plain_torch


@dataclass(frozen=True)
class Start:
    """Where everyone's iteration begins: net and data, λ, and the last CG iterate ``[N]`` of the
    step before, which every one of them shrinks by 0.95."""

    load: Workload
    damping: float
    cg_last: Tensor


Iteration = Callable[[], int]
Maker = Callable[[Start, int], Iteration]
DECAY = 0.95


def make_pytorch_hessianfree(start: Start, cg_iterations: int) -> Iteration:
    """PyTorchHessianFree: BackPACK's products, cross-entropy."""
    package = _package("HFCORE_PYTORCHHESSIANFREE", "hessianfree.optimizer")
    products = _Counted(package.ggn_vector_product_from_plist)
    package.ggn_vector_product_from_plist = products
    load = start.load
    module = plain_torch(load)
    theta = [p.detach().clone() for p in module.parameters()]

    def forward() -> tuple[Tensor, Tensor]:
        s = module(load.x)
        loss = nn.functional.binary_cross_entropy_with_logits(s, load.x, reduction="sum")
        return loss / len(load.x), s

    def iteration() -> int:
        with torch.no_grad():
            for p, value in zip(module.parameters(), theta, strict=True):
                p.copy_(value)
        optimizer = package.HessianFree(
            module.parameters(), damping=start.damping, cg_max_iter=cg_iterations
        )
        optimizer.state["x0"] = DECAY * start.cg_last
        products.calls = 0
        optimizer.step(forward=forward)
        return products.calls

    return iteration


def make_drasmuss(start: Start, cg_iterations: int) -> Iteration:
    """drasmuss' hessianfree in NumPy: squared error on logistic outputs."""
    package = _package("HFCORE_DRASMUSS", "hessianfree")
    load = start.load
    sizes = load.model.sizes
    units = [{"logistic": "Logistic", "linear": "Linear"}[a] for a in load.model.activations]
    net = package.FFNet(
        list(sizes), layers=["Linear", *units], loss_type=package.loss_funcs.SquaredError()
    )
    theta = _weights_by_input(load.parameters.values(), sizes)
    pieces = start.cg_last.split([p.numel() for p in load.parameters.values()])
    shaped = [v.view_as(p) for v, p in zip(pieces, load.parameters.values(), strict=True)]
    cg_last = _weights_by_input(shaped, sizes)
    x = load.x.numpy()
    net.optimizer = package.opt.HessianFree(CG_iter=cg_iterations, plotting=False)
    net.calc_G = products = _Counted(net.calc_G)

    def iteration() -> int:
        net.W[:] = theta
        net.optimizer.init_delta, net.optimizer.damping = cg_last, start.damping
        products.calls = 0
        net.cache_minibatch(x, x)
        net.W += net.optimizer.compute_update()
        return products.calls

    return iteration


PEERS: dict[str, dict[str, Maker]] = {
    "logistic": {"PyTorchHessianFree": make_pytorch_hessianfree},
    "squared": {"drasmuss/hessianfree": make_drasmuss},
}


class _Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.calls += 1
        return self.function(*arguments, **keywords)


def _weights_by_input(tensors: Iterable[Tensor], sizes: Sequence[int]) -> Any:
    """W [m,n], b [m] of every layer as drasmuss lays them out: Wᵀ, then b, flat float32."""
    flat = iter(tensors)
    layers = [(next(flat), next(flat)) for _ in pairwise(sizes)]
    return np.concatenate([part.numpy().ravel() for W, b in layers for part in (W.T, b)])


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
