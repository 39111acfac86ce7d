"""The same Gauss-Newton product by everyone: G v = (1/B) Σ_sequences Jᵀ J v, squared error.

Each ``make_*`` does the one-off work (forward pass, tracing), and returns a :class:`Peer` whose
``product()`` is one product with the case's tangent and ``flat(result)`` puts it in the order of
``model.parameters()``. Peers that are not installed raise ImportError and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import hfcore as hf
from bench import jax_products
from bench.cases import Case, Workload
from bench.interleave import Contestant

# float32 sums over 1e5 terms in other orders; a different quantity would be off by far more.
AGREEMENT = 1e-3


@dataclass(frozen=True)
class Peer:
    """One product, and how its result reads as a flat vector."""

    product: Callable[[], Any]
    flat: Callable[[Any], Tensor]


def make_hfcore(load: Workload) -> Peer:
    """The product under test, into a buffer of its own."""
    op = hf.GaussNewton(load.model, hf.losses.SquaredError(), load.x, load.y, mask=load.mask)
    return Peer(lambda: op @ load.v, lambda result: result)


def make_reference(load: Workload) -> Peer:
    """The same operator on the plain torch forms of its ops."""
    with hf.use_backend("reference"):
        op = hf.GaussNewton(load.model, hf.losses.SquaredError(), load.x, load.y, mask=load.mask)

    def product() -> Tensor:
        with hf.use_backend("reference"):
            return op @ load.v

    return Peer(product, lambda result: result)


def torch_outputs(parameters: tuple[Tensor, ...], x: Tensor, last: bool) -> Tensor:
    """The net as a torch user writes it well: input products outside the loop, one addmm a step.

    ``s [B,k]`` of the last step, or ``s [T,B,k]``.
    """
    W_hx, W_hh, W_yh, b_h, b_init, b_y = parameters
    u = nn.functional.linear(x, W_hx, b_h)
    states = [torch.tanh(u[0] + b_init)]
    for t in range(1, len(x)):
        states.append(torch.tanh(torch.addmm(u[t], states[-1], W_hh.T)))
    return nn.functional.linear(states[-1] if last else torch.stack(states), W_yh, b_y)


class TorchRNN(nn.Module):
    """The same net as a module without hfcore, for peers that want one."""

    def __init__(self, load: Workload) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(p.clone()) for p in load.parameters)
        self.last = load.case.last

    def forward(self, x: Tensor) -> Tensor:
        return torch_outputs(tuple(self.weights), x, self.last)


def make_torch_func_cached(load: Workload) -> Peer:
    """``torch.func.linearize`` and ``vjp`` once, then only the two linear maps."""
    f, B = _functional(load), load.case.B
    jvp = torch.func.linearize(f, load.parameters)[1]
    vjp = torch.func.vjp(f, load.parameters)[1]
    return Peer(lambda: vjp(jvp(load.tangents) / B)[0], flat_torch)


def make_torch_func(load: Workload) -> Peer:
    """``torch.func.jvp`` then ``vjp``, nothing kept between products."""
    f, B = _functional(load), load.case.B

    def product() -> tuple[Tensor, ...]:
        tangent = torch.func.jvp(f, (load.parameters,), (load.tangents,))[1]
        vjp = torch.func.vjp(f, load.parameters)[1]
        result: tuple[Tensor, ...] = vjp(tangent / B)[0]
        return result

    return Peer(product, flat_torch)


def make_torch_by_hand(load: Workload) -> Peer:
    """Cached activations, one addmm and one multiplication a step, large GEMMs for the rest.

    Weights against [x, h₋₁, 1] are concatenated into one product over all steps; no allocation
    inside the loops.
    """
    case = load.case
    T, B, H, n = case.T, case.B, case.H, case.n
    W_hx, W_hh, W_yh, b_h, b_init, _ = load.parameters
    h = torch.empty(T, B, H)
    u = nn.functional.linear(load.x, W_hx, b_h)
    u[0] += b_init
    torch.tanh(u[0], out=h[0])
    for t in range(1, T):
        torch.tanh(torch.addmm(u[t], h[t - 1], W_hh.T), out=h[t])
    d = (1 - h * h).unbind(0)
    before = torch.cat([torch.zeros(1, B, H), h[:-1]])
    activations = torch.cat([load.x, before, torch.ones(T, B, 1)], dim=2).view(T * B, n + H + 1)
    at_outputs = torch.cat([h, torch.ones(T, B, 1)], dim=2)
    at_outputs = (at_outputs[-1:] if case.last else at_outputs).reshape(-1, H + 1)
    scan, carry = torch.empty(T, B, H), torch.empty(B, H)
    step, rows = scan.unbind(0), scan.view(T * B, H)
    V_hx, V_hh, V_yh, v_h, v_init, v_y = load.tangents

    def product() -> tuple[Tensor, ...]:
        u = activations @ torch.cat([V_hx, V_hh, v_h[:, None]], dim=1).T
        source = u.view(T, B, H).unbind(0)
        source[0].add_(v_init)
        torch.mul(source[0], d[0], out=step[0])
        for t in range(1, T):
            torch.addmm(source[t], step[t - 1], W_hh.T, out=carry)
            torch.mul(carry, d[t], out=step[t])
        gs = at_outputs @ torch.cat([V_yh, v_y[:, None]], dim=1).T
        gs.addmm_(step[-1] if case.last else rows, W_yh.T).div_(B)
        g_output = gs.T @ at_outputs
        source = (gs @ W_yh).view(-1, B, H).unbind(0)
        torch.mul(source[-1], d[-1], out=step[-1])
        for t in reversed(range(T - 1)):
            if case.last:
                torch.mm(step[t + 1], W_hh, out=carry)
            else:
                torch.addmm(source[t], step[t + 1], W_hh, out=carry)
            torch.mul(carry, d[t], out=step[t])
        g = rows.T @ activations
        return (
            g[:, :n],
            g[:, n : n + H],
            g_output[:, :H],
            g[:, -1],
            step[0].sum(0),
            g_output[:, -1],
        )

    return Peer(product, flat_torch)


def make_curvlinops(load: Workload) -> Peer:
    """``curvlinops.GGNLinearOperator``; its MSELoss has no ½, hence the 2."""
    from curvlinops import GGNLinearOperator

    module, case = TorchRNN(load), load.case
    op = GGNLinearOperator(
        module,
        nn.MSELoss(reduction="sum"),
        list(module.parameters()),
        [(load.x, load.y[-1] if case.last else load.y)],
        check_deterministic=False,
        num_data=case.B,
        batch_size_fn=lambda x: x.shape[1],
    )
    return Peer(lambda: op @ load.v, lambda result: result / (2 * case.B))


def make_backpack(load: Workload) -> Peer:
    """BackPACK's R-op by double backward on one retained graph, as PyTorchHessianFree calls it."""
    from backpack.hessianfree.ggnvp import ggn_vector_product_from_plist

    module, case = TorchRNN(load), load.case
    parameters = list(module.parameters())
    outputs = module(load.x)
    loss = 0.5 / case.B * (outputs - (load.y[-1] if case.last else load.y)).square().sum()
    return Peer(
        lambda: ggn_vector_product_from_plist(loss, outputs, parameters, list(load.tangents)),
        flat_torch,
    )


def make_jax_cached(load: Workload) -> Peer:
    return Peer(jax_products.cached(*_jax_functional(load), load.case.B), _flat_jax)


def make_jax(load: Workload) -> Peer:
    return Peer(jax_products.uncached(*_jax_functional(load), load.case.B), _flat_jax)


HFCORE = "hfcore"
PEERS: dict[str, Callable[[Workload], Peer]] = {
    "reference backend": make_reference,
    "torch.func cached linearize + vjp": make_torch_func_cached,
    "torch.func jvp + vjp": make_torch_func,
    "torch by hand": make_torch_by_hand,
    "curvlinops": make_curvlinops,
    "BackPACK": make_backpack,
    "JAX cached linearize": make_jax_cached,
    "JAX jvp + vjp": make_jax,
}
# Seconds a product: nine rounds of it would double the run for a number that is 40 times ours.
SLOW_ROUNDS = {"BackPACK": 3}


def contestants(case: Case, names: list[str]) -> tuple[Contestant, list[Contestant], list[str]]:
    """(hfcore, the named peers, those not installed), each checked against hfcore first.

    Raises AssertionError if a peer's product differs from ours by more than ``AGREEMENT``.
    """
    load = case.make()
    makers = {name: partial(PEERS[name], load) for name in names}
    return agreeing(partial(make_hfcore, load), makers, case.name, SLOW_ROUNDS)


def agreeing(
    ours: Callable[[], Peer],
    makers: Mapping[str, Callable[[], Peer]],
    case: str,
    rounds: Mapping[str, int] | None = None,
) -> tuple[Contestant, list[Contestant], list[str]]:
    """:func:`contestants` of peers that are still to be made; ``rounds`` caps those it names.

    Making a peer and its first call are its one-off cost.
    """

    def contestant(name: str, make: Callable[[], Peer]) -> tuple[Contestant, Tensor]:
        start = perf_counter()
        peer = make()
        result = peer.product()
        took = perf_counter() - start
        made = Contestant(name, peer.product, took, (rounds or {}).get(name))
        return made, peer.flat(result).clone()

    hfcore, product = contestant(HFCORE, ours)
    peers: list[Contestant] = []
    absent: list[str] = []
    for name, make in makers.items():
        try:
            peer, other = contestant(name, make)
        except ImportError:
            absent.append(name)
            continue
        error = float((other - product).norm() / product.norm())
        assert error <= AGREEMENT, f"{name} differs from hfcore by {error:.1e} on {case}"
        peer.extra["difference"] = error
        peers.append(peer)
    return hfcore, peers, absent


def _functional(load: Workload) -> Callable[[tuple[Tensor, ...]], Tensor]:
    return lambda parameters: torch_outputs(parameters, load.x, load.case.last)


def flat_torch(result: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in result])


def _jax_functional(load: Workload) -> tuple[Callable[[Any], Any], Any, Any]:
    """(outputs as a function of the parameters, parameters, tangents), as JAX arrays."""
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(load.x.numpy())

    def outputs(parameters: Any) -> Any:
        W_hx, W_hh, W_yh, b_h, b_init, b_y = parameters
        u = x @ W_hx.T + b_h
        first = jnp.tanh(u[0] + b_init)

        def step(h: Any, u_t: Any) -> tuple[Any, Any]:
            h = jnp.tanh(u_t + h @ W_hh.T)
            return h, None if load.case.last else h

        h, states = jax.lax.scan(step, first, u[1:])
        if not load.case.last:
            h = jnp.concatenate([first[None], states])
        return h @ W_yh.T + b_y

    def arrays(tensors: tuple[Tensor, ...]) -> Any:
        return tuple(jnp.asarray(t.numpy()) for t in tensors)

    return outputs, arrays(load.parameters), arrays(load.tangents)


def _flat_jax(result: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.concatenate([np.asarray(part).reshape(-1) for part in result]))
