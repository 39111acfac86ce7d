"""The momentum update by itself, and one whole NAG update of a recurrent net, against peers."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import hfcore as hf
from bench.cases import ADDITION_SMALL, Workload
from bench.interleave import Contestant, Effort, compare
from bench.test_ops import race
from hfcore.bindings import loss, recurrence
from hfcore.bindings.momentum import momentum_update
from hfcore.kernels.recurrence import split_flat

# So small that the weights stay what they are over a run.
LR, MU = 1e-6, 0.9
# Relative difference of the parameters after one update at a rate that moves them.
AGREEMENT, CHECK_LR = 1e-4, 1e-2

Update = Callable[[], object]


def torch_sgd(N: int, **form: bool) -> Update:
    """torch's own update of N parameters in one tensor."""
    p = nn.Parameter(torch.randn(N))
    p.grad = torch.randn(N)
    opt = torch.optim.SGD([p], LR, MU, nesterov=True, **form)
    return opt.step


# The addition net, the CURVES autoencoder, and what no cache holds.
@pytest.mark.parametrize("N", [10_501, 842_340, 10_000_000], ids=lambda N: f"N{N}")
@pytest.mark.parametrize("ahead", [False, True], ids=["classical", "nesterov"])
def test_momentum_update(benchmark: BenchmarkFixture, effort: Effort, N: int, ahead: bool) -> None:
    """Beside torch's one tensor of N, and a copy that moves as many bytes: the memory's floor.

    torch's form keeps two arrays where ours with the lookahead point keeps three, and reads and
    writes 20 bytes an element where ours does 24 (classical: 20).
    """
    draw = torch.Generator().manual_seed(0)
    theta, velocity, gradient, point = torch.randn(4, 1, N, generator=draw)
    arrays = 6 if ahead else 5
    source = torch.randn(arrays * N // 2, generator=draw)
    target = torch.empty_like(source)
    race(
        benchmark,
        effort,
        "momentum_update",
        f"N{N}-{'nesterov' if ahead else 'classical'}",
        lambda: momentum_update(
            theta,
            velocity,
            gradient,
            learning_rate=LR,
            momentum=MU,
            lookahead=MU,
            ahead=point if ahead else None,
        ),
        {
            "torch SGD(nesterov, fused)": torch_sgd(N, fused=True),
            "torch SGD(nesterov, foreach)": torch_sgd(N, foreach=True),
            "copy of as many bytes": lambda: target.copy_(source),
        },
        flops=(6.0 if ahead else 4.0) * N,
        bytes_moved=4.0 * arrays * N,
    )


# ---------------------------------------------------------------------------- a whole update


class Fused:
    """The ops of the fused path on flat ``[1,N]``: forward, loss, backward, update."""

    def __init__(self, load: Workload, lr: float) -> None:
        self.x, self.y = load.x.unsqueeze(0), load.y[-1:].unsqueeze(0)
        self.last = torch.tensor([load.case.T - 1])
        self.lr, self.B = lr, load.case.B
        self.theta = torch.cat([p.reshape(-1) for p in load.parameters]).unsqueeze(0)
        self.velocity = torch.zeros_like(self.theta)
        self.ahead, self.gradient = self.theta.clone(), torch.empty_like(self.theta)
        self.w = split_flat(self.ahead, load.model.shape)

    def update(self) -> None:
        h, s = recurrence.rnn_forward(self.x, self.w, steps=self.last)
        assert h is not None
        gs = loss.loss_gradient("squared", s, self.y, None, scale=1 / self.B, out=s)
        recurrence.rnn_backward(self.x, h, self.w, gs, steps=self.last, out=self.gradient)
        momentum_update(
            self.theta,
            self.velocity,
            self.gradient,
            learning_rate=self.lr,
            momentum=MU,
            lookahead=MU,
            ahead=self.ahead,
        )

    def flat(self) -> Tensor:
        """θ + μv."""
        return self.ahead[0]


class Module:
    """hf.RNN under autograd with hf.NAG."""

    def __init__(self, load: Workload, lr: float) -> None:
        self.x, self.y, self.B = load.x, load.y[-1], load.case.B
        self.model = hf.RNN(load.case.n, load.case.H, load.case.k)
        self.model.load_state_dict(load.model.state_dict())
        self.opt = hf.NAG(self.model.parameters(), lr, MU)

    def closure(self) -> Tensor:
        self.opt.zero_grad()
        value = 0.5 / self.B * (self.model(self.x)[-1] - self.y).square().sum()
        value.backward()
        return value.detach()

    def update(self) -> None:
        self.opt.step(self.closure)

    def flat(self) -> Tensor:
        with self.opt.lookahead():
            return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])


class TorchModule:
    """nn.RNN and nn.Linear with torch's SGD, whose parameters are θ + μv.

    Its second bias takes the place of b_init, which nn.RNN has not, and stays out of the check.
    """

    def __init__(self, load: Workload, lr: float, **form: bool) -> None:
        self.x, self.y, self.B = load.x, load.y[-1], load.case.B
        self.rnn, self.out = nn.RNN(load.case.n, load.case.H), nn.Linear(load.case.H, load.case.k)
        W_hx, W_hh, W_yh, b_h, _, b_y = load.parameters
        with torch.no_grad():
            for p, value in (
                (self.rnn.weight_ih_l0, W_hx),
                (self.rnn.weight_hh_l0, W_hh),
                (self.rnn.bias_ih_l0, b_h),
                (self.out.weight, W_yh),
                (self.out.bias, b_y),
            ):
                p.copy_(value)
            self.rnn.bias_hh_l0.zero_()
        parameters = [*self.rnn.parameters(), *self.out.parameters()]
        self.opt = torch.optim.SGD(parameters, lr, MU, nesterov=True, **form)

    def update(self) -> None:
        self.opt.zero_grad()
        s = self.out(self.rnn(self.x)[0][-1])
        value = 0.5 / self.B * (s - self.y).square().sum()
        value.backward()
        self.opt.step()

    def flat(self) -> Tensor:
        weights = self.rnn.weight_ih_l0, self.rnn.weight_hh_l0, self.out.weight
        return torch.cat([p.detach().reshape(-1) for p in weights])


class Jax:
    """Gradient and update in one jitted call that gives its arguments' memory away."""

    def __init__(self, load: Workload, lr: float) -> None:
        import jax
        import jax.numpy as jnp

        x, y, B = jnp.asarray(load.x.numpy()), jnp.asarray(load.y[-1].numpy()), load.case.B

        def value(parameters: Any) -> Any:
            W_hx, W_hh, W_yh, b_h, b_init, b_y = parameters
            u = x @ W_hx.T + b_h
            first = jnp.tanh(u[0] + b_init)
            h, _ = jax.lax.scan(lambda h, u_t: (jnp.tanh(u_t + h @ W_hh.T), None), first, u[1:])
            return 0.5 / B * ((h @ W_yh.T + b_y - y) ** 2).sum()

        def step(theta: Any, v: Any) -> Any:
            add = jax.tree_util.tree_map
            g = jax.grad(value)(add(lambda t, a: t + MU * a, theta, v))
            v = add(lambda a, d: MU * a - lr * d, v, g)
            return add(lambda t, a: t + a, theta, v), v

        self.step, self.wait = jax.jit(step, donate_argnums=(0, 1)), jax.block_until_ready
        self.theta = tuple(jnp.array(p.numpy()) for p in load.parameters)
        self.v = tuple(jnp.zeros_like(p) for p in self.theta)

    def update(self) -> None:
        self.theta, self.v = self.wait(self.step(self.theta, self.v))

    def flat(self) -> Tensor:
        ahead = (
            np.asarray(t) + MU * np.asarray(v) for t, v in zip(self.theta, self.v, strict=True)
        )
        return torch.from_numpy(np.concatenate([a.reshape(-1) for a in ahead]))


FORMS: dict[str, Callable[[Workload, float], Any]] = {
    "hfcore": Fused,
    "hf.RNN, hf.NAG under autograd": Module,
    "torch.nn.RNN, SGD(nesterov, foreach)": lambda load, lr: TorchModule(load, lr, foreach=True),
    "torch.nn.RNN, SGD(nesterov, fused)": lambda load, lr: TorchModule(load, lr, fused=True),
    "JAX jit": Jax,
}


def difference(got: Tensor, want: Tensor, load: Workload) -> float:
    """Of two updates from the same weights, relative to how far they moved.

    ``got`` may end with the weight matrices, before the biases.
    """
    start = torch.cat([p.reshape(-1) for p in load.parameters])[: got.numel()]
    want = want[: got.numel()]
    return float((got - want).norm() / (want - start).norm())


def test_nag_update(benchmark: BenchmarkFixture, effort: Effort) -> None:
    case = ADDITION_SMALL
    load = case.make()
    want: Tensor | None = None
    contestants, absent = [], []
    for name, make in FORMS.items():
        try:
            form = make(load, CHECK_LR)
        except ImportError:
            absent.append(name)
            continue
        form.update()  # one: of the second torch's other bias would be a part
        want = form.flat().clone() if want is None else want
        error = difference(form.flat(), want, load)
        assert error <= AGREEMENT, f"{name} differs from hfcore by {error:.1e}"
        start = perf_counter()
        form = make(load, LR)
        form.update()
        setup = perf_counter() - start
        contestants.append(
            Contestant(name, form.update, setup, repeat=3, extra={"difference": error})
        )
    ours, *others = contestants
    compare(
        benchmark,
        effort,
        ours,
        others,
        group="NAG update",
        case=case.name,
        # W_hh forward, backward and in the gradient; W_hx forward and in the gradient.
        flops=(6.0 * case.H**2 + 4.0 * case.n * case.H) * case.B * case.T,
        absent=absent,
    )
