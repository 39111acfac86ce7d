"""Gauss-Newton products of ordinary torch modules, tracing reported apart as set-up seconds.

Three nets that hfcore has no kernels for: a small CNN, a transformer of two layers, and an RNN
written as a Python loop over 100 steps; and torch's own recurrent modules with a linear read-out,
which run on the fused ones. Every contestant computes G v = (1/B) Σ JᵀJv of the same module and is
checked against ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.func import functional_call

import hfcore as hf
from bench.interleave import Contestant, Effort, compare
from bench.peers import Peer, agreeing
from hfcore.autograd.strategies import STRATEGIES


class LoopRNN(nn.Module):
    """Outputs ``[B,1]`` of the last step, for inputs ``[T,B,2]``; 100 tanh units."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(2, 100)
        self.states = nn.Linear(100, 100, bias=False)
        self.outputs = nn.Linear(100, 1)

    def forward(self, x: Tensor) -> Tensor:
        u = self.inputs(x)
        h = torch.tanh(u[0])
        for t in range(1, len(x)):
            h = torch.tanh(u[t] + self.states(h))
        s: Tensor = self.outputs(h)
        return s


def small_cnn() -> nn.Module:
    """Two convolutions and a linear layer on ``[B,1,28,28]``, 10 outputs, about 9,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(784, 10),
    )


class Attending(nn.Module):
    """A layer of a transformer, ``[B,T,128]`` to the same: four heads, then 512 units."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.read = nn.Linear(128, 384), nn.Linear(128, 128)
        self.norms = nn.ModuleList(nn.LayerNorm(128) for _ in range(2))
        self.wide, self.back = nn.Linear(128, 512), nn.Linear(512, 128)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mixed(self.norms[0](x)).unflatten(-1, (3, 4, 32)).permute(2, 0, 3, 1, 4)
        heads = torch.softmax(q @ k.mT / 32**0.5, -1) @ v
        x = x + self.read(heads.transpose(1, 2).flatten(2))
        s: Tensor = x + self.back(torch.relu(self.wide(self.norms[1](x))))
        return s


def transformer() -> nn.Module:
    """Two layers of 128 numbers a position, 10 outputs ``[B,T,10]``, about 400,000 weights."""
    return nn.Sequential(Attending(), Attending(), nn.Linear(128, 10))


class Recurrent(nn.Module):
    """Outputs ``[T,B,1]`` of every step, for inputs ``[T,B,2]``; 100 units of torch's."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.states = kind(2, 100)
        self.outputs = nn.Linear(100, 1)

    def forward(self, x: Tensor) -> Tensor:
        s: Tensor = self.outputs(self.states(x)[0])
        return s


@dataclass(frozen=True)
class Load:
    """A module with data, its batch dimensions (inputs, outputs) and a tangent ``v [N]``."""

    model: nn.Module
    x: Tensor
    y: Tensor
    batch_dim: tuple[int, int]
    v: Tensor

    @property
    def cases(self) -> int:
        return self.y.shape[self.batch_dim[1]]


def cnn_load(cases: int) -> Load:
    return _load(small_cnn, (cases, 1, 28, 28), (cases, 10), (0, 0))


def transformer_load(cases: int) -> Load:
    return _load(transformer, (cases, 64, 128), (cases, 64, 10), (0, 0))


def rnn_load(cases: int) -> Load:
    return _load(LoopRNN, (100, cases, 2), (cases, 1), (1, 0))


def recurrent_load(kind: type[nn.RNNBase]) -> Load:
    return _load(partial(Recurrent, kind), (80, 100, 2), (80, 100, 1), (1, 1))


def _load(
    make: Callable[[], nn.Module], x: tuple[int, ...], y: tuple[int, ...], dims: tuple[int, int]
) -> Load:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        v = torch.randn(sum(p.numel() for p in model.parameters()))
        return Load(model, torch.randn(x), torch.randn(y), dims, v)


def flat(product: Tensor) -> Tensor:
    """Every contestant's product is flat already."""
    return product


def make_hfcore(load: Load, strategy: str = "auto") -> Peer:
    """``hf.GaussNewton``; with ``"auto"`` the measuring is part of the set-up."""
    op = hf.GaussNewton(
        load.model,
        hf.losses.SquaredError(),
        load.x,
        load.y,
        batch_dim=load.batch_dim,
        strategy=strategy,
    )
    return Peer(lambda: op @ load.v, flat)


def make_torch_func(load: Load, *, cached: bool) -> Peer:
    """``torch.func``: linearize and vjp once, or jvp and vjp in every product."""
    names = [name for name, _ in load.model.named_parameters()]
    values = [p.detach() for p in load.model.parameters()]
    parts = load.v.split([p.numel() for p in values])
    tangents = [t.view_as(p) for t, p in zip(parts, values, strict=True)]

    def f(parameters: list[Tensor]) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        s: Tensor = functional_call(load.model, named, (load.x,))
        return s

    def flatten(parts: list[Tensor]) -> Tensor:
        return torch.cat([p.reshape(-1) for p in parts])

    if cached:
        jvp = torch.func.linearize(f, values)[1]
        vjp = torch.func.vjp(f, values)[1]
        return Peer(lambda: flatten(vjp(jvp(tangents) / load.cases)[0]), flat)

    def product() -> Tensor:
        tangent = torch.func.jvp(f, (values,), (tangents,))[1]
        return flatten(torch.func.vjp(f, values)[1](tangent / load.cases)[0])

    return Peer(product, flat)


def make_curvlinops(load: Load) -> Peer:
    """``curvlinops.GGNLinearOperator``; its MSELoss has no ½, hence the 2."""
    from curvlinops import GGNLinearOperator

    op = GGNLinearOperator(
        load.model,
        nn.MSELoss(reduction="sum"),
        list(load.model.parameters()),
        [(load.x, load.y)],
        check_deterministic=False,
        num_data=load.cases,
        batch_size_fn=lambda x: x.shape[load.batch_dim[0]],
    )
    return Peer(lambda: (op @ load.v) / (2 * load.cases), flat)


PEERS: dict[str, Callable[[Load], Peer]] = {
    **{f"hfcore, {name}": lambda load, name=name: make_hfcore(load, name) for name in STRATEGIES},
    "torch.func cached linearize + vjp": lambda load: make_torch_func(load, cached=True),
    "torch.func jvp + vjp": lambda load: make_torch_func(load, cached=False),
    "curvlinops": make_curvlinops,
}
CASES = {
    "CNN-B64": lambda: cnn_load(64),
    "CNN-B512": lambda: cnn_load(512),
    "transformer-T64-B8": lambda: transformer_load(8),
    "loop-RNN-T100-B100": lambda: rnn_load(100),
    "loop-RNN-T100-B1000": lambda: rnn_load(1000),
}
# Gradients scattered into zeros of all steps make autograd's own products O(T²) there: seconds.
SLOW = "loop-RNN-T100-B1000"


@pytest.mark.parametrize("case", CASES)
def test_module_product(benchmark: BenchmarkFixture, effort: Effort, case: str) -> None:
    load = CASES[case]()
    peers = {name: partial(make, load) for name, make in PEERS.items()}
    rounds = dict.fromkeys(PEERS, 3) if case == SLOW else None
    ours, others, absent = agreeing(partial(make_hfcore, load), peers, case, rounds)
    compare(
        benchmark,
        effort,
        ours,
        others,
        group="Gauss-Newton product of any module",
        case=case,
        absent=absent,
    )


def hf_rnn_product(load: Load) -> Callable[[], Tensor]:
    """A product of an hf.RNN of these sizes."""
    op = hf.GaussNewton(hf.RNN(2, 100, 1), hf.losses.SquaredError(), load.x, load.y)
    v = load.v[: op.shape[0]]
    return lambda: op @ v


def through_torchs_kernels(make: Callable[[Load], Peer], load: Load) -> Peer:
    """A peer without oneDNN, whose LSTM has no forward mode."""
    with torch.backends.mkldnn.flags(enabled=False):
        peer = make(load)

    def product() -> Tensor:
        with torch.backends.mkldnn.flags(enabled=False):
            result: Tensor = peer.product()
        return result

    return Peer(product, peer.flat)


RECURRENT = {"nn.RNN": nn.RNN, "nn.LSTM": nn.LSTM, "nn.GRU": nn.GRU}


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_module_product(benchmark: BenchmarkFixture, effort: Effort, kind: str) -> None:
    load = recurrent_load(RECURRENT[kind])
    theirs = {name: make for name, make in PEERS.items() if not name.startswith("hfcore")}
    peers = {name: partial(through_torchs_kernels, make, load) for name, make in theirs.items()}
    case = f"{kind}-T80-B100-H100"
    ours, others, absent = agreeing(partial(make_hfcore, load), peers, case)
    if kind == "nn.RNN":
        others.append(Contestant("hf.RNN", hf_rnn_product(load)))
    compare(
        benchmark,
        effort,
        ours,
        others,
        group="Gauss-Newton product of a recurrent module",
        case=case,
        absent=absent,
    )
