"""The block-gated LSTM: its cell against the equations and finite differences, its interface."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.training.run_folder import RunFolder

SHAPES = [(1, 1, 1, 1, 1, 1), (5, 3, 2, 2, 3, 4), (7, 2, 5, 3, 1, 2)]
IDS = [f"T{T}-B{B}-n{n}-K{K}-m{m}-k{k}" for T, B, n, K, m, k in SHAPES]


def made(shape: tuple[int, ...]) -> tuple[hf.BlockLSTM, Tensor]:
    T, B, n, K, m, k = shape
    generator = torch.Generator().manual_seed(sum(shape))
    model = hf.BlockLSTM(n, k, blocks=K, cells=m, dtype=torch.float64, generator=generator)
    with torch.no_grad():  # biases too
        for p in model.biases():
            p += torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model, torch.randn(T, B, n, generator=generator, dtype=torch.float64)


def slow_outputs(model: hf.BlockLSTM, x: Tensor) -> Tensor:
    """The equations of Gers et al., one case, one cell after the other."""
    K, m, C = model.blocks, model.cells, model.hidden_size
    W_x, W_h, W_y, b, b_y = (p.detach().numpy() for p in model.parameters())
    sigma = lambda a: 1 / (1 + math.exp(-a))  # noqa: E731
    T, B, _ = x.shape
    s = torch.zeros(T, B, model.output_size, dtype=torch.float64)
    for case in range(B):
        h, c = [0.0] * C, [0.0] * C
        for t in range(T):
            a = W_x @ x[t, case].numpy() + W_h @ h + b
            new_h = list(h)
            for j in range(C):
                block = j // m
                i, f, o = (sigma(a[C + g * K + block]) for g in range(3))
                c[j] = f * c[j] + i * math.tanh(a[j])
                new_h[j] = o * math.tanh(c[j])
            h = new_h
            s[t, case] = torch.from_numpy(W_y @ h + b_y)
    return s


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_outputs_follow_the_equations(shape: tuple[int, ...]) -> None:
    model, x = made(shape)
    torch.testing.assert_close(model(x), slow_outputs(model, x), rtol=1e-12, atol=1e-13)


def test_blocks_of_one_cell_are_the_lstm_of_torch() -> None:
    n, C, k = 3, 4, 2
    model, x = made((6, 5, n, C, 1, k))
    theirs = torch.nn.LSTM(n, C, dtype=torch.float64)
    z, i, f, o = (slice(q * C, (q + 1) * C) for q in range(4))
    with torch.no_grad():  # torch's rows are those of i, f, z, o
        for name, W in (("weight_ih_l0", model.W_x), ("weight_hh_l0", model.W_h)):
            theirs.get_parameter(name).copy_(torch.cat([W[i], W[f], W[z], W[o]]))
        theirs.get_parameter("bias_ih_l0").copy_(torch.cat([model.b[q] for q in (i, f, z, o)]))
        theirs.get_parameter("bias_hh_l0").zero_()
    states = theirs(x)[0]
    expected = states @ model.W_y.mT + model.b_y
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-13)


def test_the_cell_has_the_derivatives_of_finite_differences() -> None:
    model, _ = made((1, 1, 2, 2, 3, 1))
    generator = torch.Generator().manual_seed(1)
    drawn: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "requires_grad": True}
    a, h, c = torch.randn(4, 12, **drawn), torch.randn(4, 6, **drawn), torch.randn(4, 2, 3, **drawn)

    def cell(a: Tensor, h: Tensor, c: Tensor, W_h: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(_Cell(model), {"model.W_h": W_h}, (a, h, c))  # type: ignore[return-value]

    inputs = (a, h, c, model.W_h.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(cell, inputs)
    assert torch.autograd.gradgradcheck(cell, inputs)


class _Cell(torch.nn.Module):
    """A step as a forward pass."""

    def __init__(self, model: hf.BlockLSTM) -> None:
        super().__init__()
        self.model = model

    def forward(self, a: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.cell(a, h, c)


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_gradients_through_time_are_those_of_finite_differences(shape: tuple[int, ...]) -> None:
    model, x = made(shape)
    names = [name for name, _ in model.named_parameters()]

    def outputs(*values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, parameters, (x,))  # type: ignore[return-value]

    values = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    assert torch.autograd.gradcheck(outputs, values)


def test_parameters_are_as_many_as_published() -> None:
    """Weights of 225 inputs and outputs: 272 thousand, where the RNN has 225."""
    model = hf.BlockLSTM(225, 225)
    assert sum(W.numel() for W in model.matrices()) == 272_250
    assert sum(W.numel() for W in hf.RNN(225, 300, 225).matrices()) == 225_000
    assert [tuple(p.shape) for p in model.parameters()] == [
        (390, 225), (390, 300), (225, 300), (390,), (225,),
    ]  # fmt: skip


def test_forget_gates_start_open() -> None:
    model = hf.BlockLSTM(2, 1, blocks=3, cells=2, forget_bias=2.5)
    assert model.b.tolist() == [0.0] * 9 + [2.5] * 3 + [0.0] * 3
    assert not model.b_y.any()


def test_the_generator_decides_the_weights() -> None:
    one, other, again = (
        hf.BlockLSTM(3, 2, blocks=2, cells=2, generator=torch.Generator().manual_seed(s))
        for s in (0, 1, 0)
    )
    assert torch.equal(one.W_h, again.W_h)
    assert not torch.equal(one.W_h, other.W_h)


def test_a_run_is_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # plots are drawn in other tests, and take longer than this run
    monkeypatch.setattr(RunFolder, "draw", lambda self, *, solved_below: ())
    x = torch.rand(4, 6, 3, generator=torch.Generator().manual_seed(0))
    model = hf.BlockLSTM(3, 3, blocks=2, cells=2, generator=torch.Generator().manual_seed(0))
    opt = hf.ClassicalMomentum(model.parameters(), lr=0.05, momentum=0.9)
    before = hf.losses.SquaredError().value(model(x).detach(), x)
    hf.train(
        model, (x, x), opt, loss=hf.losses.SquaredError(), stop=hf.training.Limits(20),
        run_dir=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert hf.losses.SquaredError().value(model(x).detach(), x) < 0.7 * before
    loaded = hf.load_run(tmp_path / "run").model
    assert isinstance(loaded, hf.BlockLSTM)
    assert torch.equal(loaded(x), model(x))


def test_hessian_free_takes_it_as_any_module() -> None:
    model, x = made((4, 3, 2, 2, 2, 2))
    loss = hf.losses.SquaredError()
    opt = hf.HessianFree(model, loss, damping=0.1, batch_dim=1)
    values = [opt.step((x, x)).loss for _ in range(4)]
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size: got 0"),
        ({"output_size": 1.5}, TypeError, "output_size: got float"),
        ({"blocks": 0}, ValueError, "blocks: got 0"),
        ({"cells": True}, TypeError, "cells: got True"),
        ({"forget_bias": "open"}, TypeError, "forget_bias: got 'open'"),
        ({"dtype": torch.int64}, TypeError, "dtype: got torch.int64"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hf.BlockLSTM(**{"input_size": 2, "output_size": 1, **options})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(4, 3, 5), ValueError, r"x: got shape \[4, 3, 5\], need \[T,B,2\]"),
        (torch.zeros(4, 2), ValueError, r"x: got shape \[4, 2\]"),
        (torch.zeros(0, 3, 2), ValueError, "T: got 0"),
        (torch.zeros(4, 0, 2), ValueError, "B: got 0"),
        (torch.zeros(4, 3, 2, dtype=torch.float64), TypeError, "x: got torch.float64, need"),
        ([[1.0]], TypeError, "x: got list"),
    ],
    ids=["n", "rank", "T", "B", "dtype", "list"],
)
def test_bad_inputs(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hf.BlockLSTM(2, 1, blocks=1, cells=1, dtype=torch.float32)(x)
