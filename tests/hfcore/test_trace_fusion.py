"""Norms and attention in recorded products: fewer passes, the same numbers as autograd's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hfcore.autograd.double_vjp import DoubleVjp
from hfcore.autograd.graph import Graph, Split, sample
from hfcore.autograd.trace import Program, aten, trace
from hfcore.autograd.trace_compile import compile_program
from hfcore.autograd.trace_passes import optimise
from oracles.modules import relative_error


class Attending(nn.Module):
    """A layer of a transformer of two heads, ``[B,T,6]`` to the same."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.mixed, self.read = nn.Linear(6, 18), nn.Linear(6, 6)
        self.norms = nn.ModuleList(nn.LayerNorm(6, elementwise_affine=affine) for _ in range(2))
        self.wide, self.back = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mixed(self.norms[0](x)).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        heads = torch.softmax(q @ k.mT / 3**0.5, -1) @ v
        x = x + self.read(heads.transpose(1, 2).flatten(2))
        s: Tensor = x + self.back(torch.relu(self.wide(self.norms[1](x))))
        return s


class Scaled(nn.Module):
    """Sums, differences and factors of every kind that the passes look for, and near ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))
        self.c = nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        u = self.a * x * x[:1] + self.b * x  # a row's factor among them
        w = u - self.b * torch.tanh(x) - self.a * self.b
        stacks = torch.bmm(self.c, self.c.mT) + torch.bmm(self.c.mT, self.c).sum()
        twice = (torch.bmm(self.c, w.mT.expand(2, 3, 4)) + stacks) / 1.7
        return (twice + twice.square()).reshape(8, 4) @ w.square() * 0.5 + (self.a @ x.mT).sum()


NETS: dict[str, Any] = {
    "attention": lambda: (Attending(), (2, 5, 6)),
    "two layers": lambda: (nn.Sequential(Attending(), Attending(), nn.Linear(6, 2)), (2, 5, 6)),
    "no weights of norms": lambda: (Attending(affine=False), (2, 5, 6)),
    "one position": lambda: (nn.Sequential(Attending(), nn.LayerNorm(6)), (1, 1, 6)),
    "other norms": lambda: (
        nn.Sequential(nn.Linear(6, 6), nn.LayerNorm((5, 6)), nn.GroupNorm(5, 5), nn.LayerNorm(6)),
        (2, 5, 6),
    ),
    "library": lambda: (
        nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True, activation="gelu"),
        (2, 5, 6),
    ),
    "sums": lambda: (Scaled(), (4, 3)),
}


def graph(name: str, dtype: torch.dtype = torch.float64) -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, shape = NETS[name]()
        for p in model.parameters():  # γ of norms is 1 and their β is 0 otherwise
            nn.init.uniform_(p, -1.0, 1.0)
        model = model.to(dtype)
        x = torch.randn(shape, dtype=torch.float64).to(dtype)
    with sdpa_kernel(SDPBackend.MATH):
        s = model(x)
    split = Split(s, lambda R: R.mul_(0.5))
    return Graph(list(model.parameters()), s.sum(), [split], [], False, None, None)


def optimised(graph: Graph) -> Program:
    plain = DoubleVjp(graph)
    return optimise(trace(lambda v: plain.apply(v, 0.0), sample(graph.parameters, False, 1)))


def flat(parts: Any) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_products_are_those_of_autograd(name: str, dtype: torch.dtype) -> None:
    g, exact = graph(name, dtype), graph(name)
    program = optimised(g)
    want = flat(DoubleVjp(exact).apply(sample(exact.parameters, False, 3), 0.0))
    v = [t.to(dtype) for t in sample(exact.parameters, False, 3)]
    for reuse in (True, False):
        product = compile_program(program, reuse=reuse)
        for _ in range(2):  # what it wrote over is its own
            with torch.no_grad():
                got = flat(product(*v))
            assert relative_error(got.double(), want) <= (1e-12 if dtype == want.dtype else 1e-4)


def test_norms_and_attention_take_few_passes() -> None:
    """Of each norm one op forward and one back; of attention no sum that a product can do."""
    ops = Counter(node.op for node in optimised(graph("attention")).order())
    # What goes into the first norm is constant: there is nothing to push through it.
    assert ops[aten.native_layer_norm_backward.default] == 3
    assert ops[aten.baddbmm.default] == 2  # of the scores and of the heads
    assert ops[aten.div.Tensor] == 0
    assert ops[aten.sub.Tensor] == 0
    # Queries, keys and values and the heads, there and back but for the three together.
    assert ops[aten.clone.default] == 5
    assert ops[aten.stack.default] == 1


def test_copies_that_keep_their_strides_are_left_alone() -> None:
    def function(values: list[Tensor]) -> list[Tensor]:
        (v,) = values
        turned = torch.stack([v, v * v]).permute(1, 2, 0).clone()  # lies as before
        other = (v * 2).expand(2, 3, 4).transpose(1, 2).clone(memory_format=torch.preserve_format)
        return [turned.permute(2, 0, 1).view(24), torch.bmm(other, torch.ones(2, 3, 2)).view(16)]

    program = optimise(trace(function, [torch.ones(3, 4)]))
    v = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for got, want in zip(compile_program(program)(v), function([v]), strict=True):
        assert got is not None
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_factors_are_merged_only_where_nothing_grows() -> None:
    row, column = torch.rand(3), torch.rand(4, 1)

    def function(values: list[Tensor]) -> list[Tensor]:
        (v,) = values
        return [v * row * column, v * column * column, v.sum(0) * row + v * column]

    program = optimise(trace(function, [torch.ones(4, 3)]))
    ops = Counter(node.op for node in program.order())
    assert ops[aten.mul.Tensor] == 4  # two, one, and one beside the addcmul
    assert ops[aten.addcmul.default] == 1
    v = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for got, want in zip(compile_program(program)(v), function([v]), strict=True):
        assert got is not None
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
