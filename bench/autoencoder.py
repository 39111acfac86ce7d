"""The CURVES autoencoder of Martens (2010), and everyone's Gauss-Newton product of it.

G v = (1/B) Σ_cases Jᵀ L'' J v with the logistic cross-entropy, whose L'' is diag(ŷ(1 − ŷ)). Each
``make_*`` does the one-off work and gives a :class:`bench.peers.Peer`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

import hfcore as hf
from bench.peers import Peer, flat_torch

SIZES = hf.presets.autoencoders["curves"].encoder_sizes
CASES = 5000


@dataclass(frozen=True)
class Workload:
    """Net, images ``x [B,784]`` in [0,1] and a tangent ``v [N]``, the same at every call."""

    model: hf.MLP
    x: Tensor
    v: Tensor

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters()}

    @property
    def tangents(self) -> dict[str, Tensor]:
        """``v`` cut into the shapes of the parameters."""
        parts = self.v.split([p.numel() for p in self.parameters.values()])
        named = zip(self.parameters.items(), parts, strict=True)
        return {name: part.view_as(p) for (name, p), part in named}

    @property
    def flops(self) -> float:
        """8 flops a weight and case (two products forward, one back, one for the gradient), 4 in
        the first layer, whose inputs have neither tangent nor gradient."""
        return len(self.x) * (8.0 * sum(self._weights) - 4.0 * self._weights[0])

    @property
    def gradient_flops(self) -> float:
        """6 flops a weight and case (one product forward, one back, one for the gradient), 4 in
        the first layer."""
        return len(self.x) * (6.0 * sum(self._weights) - 2.0 * self._weights[0])

    @property
    def _weights(self) -> list[int]:
        return [m * n for n, m in pairwise(self.model.sizes)]


def make(cases: int = CASES) -> Workload:
    generator = torch.Generator().manual_seed(0)
    model = hf.Autoencoder(SIZES, generator=generator)
    hf.init.sparse_(model, generator)
    x = torch.rand(cases, SIZES[0], generator=generator)
    v = torch.randn(sum(p.numel() for p in model.parameters()), generator=generator)
    return Workload(model, x, v)


def make_hfcore(load: Workload) -> Peer:
    op = hf.GaussNewton(load.model, hf.losses.LogisticCrossEntropy(), load.x, load.x)
    out = torch.empty_like(load.v)
    return Peer(lambda: op.matvec(load.v, out=out), lambda result: result)


def make_reference(load: Workload) -> Peer:
    """The same operator on the plain torch forms of its ops."""
    with hf.use_backend("reference"):
        op = hf.GaussNewton(load.model, hf.losses.LogisticCrossEntropy(), load.x, load.x)

    def product() -> Tensor:
        with hf.use_backend("reference"):
            return op @ load.v

    return Peer(product, lambda result: result)


def make_torch_func_cached(load: Workload) -> Peer:
    """``torch.func.linearize`` and ``vjp`` once, then only the two linear maps."""
    f = _functional(load)
    s, jvp = torch.func.linearize(f, load.parameters)
    vjp = torch.func.vjp(f, load.parameters)[1]
    curvature = _curvature(s) / len(load.x)
    return Peer(lambda: vjp(curvature * jvp(load.tangents))[0], _flat)


def make_torch_func(load: Workload) -> Peer:
    """``torch.func.jvp`` then ``vjp``, nothing kept between products."""
    f, B = _functional(load), len(load.x)

    def product() -> dict[str, Tensor]:
        s, tangent = torch.func.jvp(f, (load.parameters,), (load.tangents,))
        vjp = torch.func.vjp(f, load.parameters)[1]
        result: dict[str, Tensor] = vjp(_curvature(s) * tangent / B)[0]
        return result

    return Peer(product, _flat)


def make_curvlinops(load: Workload) -> Peer:
    """``curvlinops.GGNLinearOperator``."""
    from curvlinops import GGNLinearOperator

    module = plain_torch(load)
    op = GGNLinearOperator(
        module,
        nn.BCEWithLogitsLoss(reduction="sum"),
        list(module.parameters()),
        [(load.x, load.x)],
        check_deterministic=False,
        num_data=len(load.x),
    )
    return Peer(lambda: op @ load.v, lambda result: result / len(load.x))


def make_backpack(load: Workload) -> Peer:
    """BackPACK's R-op by double backward on one retained graph, as PyTorchHessianFree calls it."""
    from backpack.hessianfree.ggnvp import ggn_vector_product_from_plist

    module = plain_torch(load)
    parameters = list(module.parameters())
    outputs = module(load.x)
    loss = nn.functional.binary_cross_entropy_with_logits(outputs, load.x, reduction="sum")
    loss = loss / len(load.x)
    tangents = list(load.tangents.values())
    return Peer(
        lambda: ggn_vector_product_from_plist(loss, outputs, parameters, tangents), flat_torch
    )


PEERS: dict[str, Callable[[Workload], Peer]] = {
    "reference backend": make_reference,
    "torch.func cached linearize + vjp": make_torch_func_cached,
    "torch.func jvp + vjp": make_torch_func,
    "curvlinops": make_curvlinops,
    "BackPACK": make_backpack,
}


def plain_torch(load: Workload) -> nn.Sequential:
    """The same net of torch's own modules, for peers that want one."""
    modules: list[nn.Module] = []
    for (n, m), unit in zip(pairwise(load.model.sizes), load.model.activations, strict=True):
        modules.append(nn.Linear(n, m))
        if unit == "logistic":
            modules.append(nn.Sigmoid())
    net = nn.Sequential(*modules)
    with torch.no_grad():
        for own, given in zip(net.parameters(), load.parameters.values(), strict=True):
            own.copy_(given)
    return net


def _functional(load: Workload) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda parameters: torch.func.functional_call(load.model, parameters, (load.x,))


def _curvature(s: Tensor) -> Tensor:
    y = torch.sigmoid(s)
    return y * (1 - y)


def _flat(result: dict[str, Tensor]) -> Tensor:
    return flat_torch(tuple(result.values()))
