"""nn.LSTM and nn.GRU with nn.Linear, hf.LSTM and hf.GRU, in float64 against torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad

import hfcore as hf
from hfcore.nets.objective import FusedObjective
from hfcore.nets.registry import served_by
from hfcore.objective_factory import objective_for
from oracles.losses import LOSSES
from oracles.torch_recurrent import Problem

KINDS = ("ggn", "hessian", "fisher")
CELLS = ("lstm", "gru")


def close(got: Tensor, want: Tensor, rtol: float = 1e-11) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * float(want.detach().abs().max()))


def eye(p: Problem) -> Tensor:
    return torch.eye(p.theta.numel(), dtype=torch.float64)


def fused(p: Problem, **options: Any) -> FusedObjective:
    objective = objective_for(p.model, p.loss, batch_dim=p.batch_dim, **options)
    assert isinstance(objective, FusedObjective)
    return objective


def curvature(p: Problem, kind: Any = "ggn", **options: Any) -> Any:
    objective = fused(p, **options)
    return objective.curvature(objective.prepare(p.batch), p.theta, kind)


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"num_layers": 2, "batch_first": True, "out_first": True},
    {"last": True, "batch_first": True},
    {"bias": False, "out_bias": False, "num_layers": 2, "mask": None},
)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("loss", "options"), [*zip((*LOSSES, LOSSES[0]), OPTIONS, strict=True)])
def test_every_kind_equals_its_dense_matrix(cell: str, loss: Any, options: dict[str, Any]) -> None:
    p = Problem(cell, loss, H=2, **options)
    close(p.model(p.batch.inputs).detach(), p.own_targets(p.by_hand(p.theta)[1]))
    for kind in KINDS:
        want = p.dense(kind) + 0.7 * eye(p)
        for memory, backend in (("cached", "cpu"), ("recompute", "cpu"), ("cached", "reference")):
            with hf.use_backend(backend):  # type: ignore[arg-type]
                got = curvature(p, kind, l2=0.2, memory=memory).products(eye(p), 0.5)
            close(got, want)
    close(curvature(p).diagonal(), p.dense("ggn").diagonal())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (1, 3, 2, 5, 2), (5, 2, 3, 1, 1)], ids=str)
def test_shapes(cell: str, shape: tuple[int, ...]) -> None:
    p = Problem(cell, LOSSES[1], **dict(zip("TBnHk", shape, strict=True)))
    close(curvature(p).products(eye(p)), p.dense("ggn"), rtol=1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_loss_gradient_and_squares(cell: str) -> None:
    p = Problem(cell, LOSSES[2], T=5, B=7, num_layers=2, batch_first=True)
    objective = fused(p, l2=0.3)
    data = objective.prepare(p.batch)
    value, gradient = objective.gradient(data, p.theta)
    want = float(p.mean_loss(p.theta)) + 0.15 * float(p.theta @ p.theta)
    assert value == pytest.approx(want, rel=1e-13)
    assert objective.loss(data, p.theta) == pytest.approx(want, rel=1e-13)
    close(gradient, grad(p.mean_loss)(p.theta) + 0.3 * p.theta)
    close(objective.squared_gradients(data, p.theta), (p.case_gradients() ** 2).mean(0))


@pytest.mark.parametrize("cell", CELLS)
def test_structural_damping_is_that_of_the_states(cell: str) -> None:
    """As a module's own, which autograd damps by name."""
    p = Problem(cell, LOSSES[0], T=4, B=3)
    objective = fused(p, structural=0.1)
    named = {"rnn": ("identity", 0.3)}
    modular = objective_for(p.model, p.loss, batch_dim=p.batch_dim, structural=named)
    v = torch.linspace(-1, 1, p.theta.numel(), dtype=torch.float64)
    got = objective.curvature(objective.prepare(p.batch), p.theta).product(v, structural=0.3)
    want = modular.curvature(modular.prepare(p.batch), p.theta).product(v, structural=1.0)
    close(got, want)


@pytest.mark.parametrize("cell", CELLS)
def test_rows_of_a_group_are_products(cell: str) -> None:
    p = Problem(cell, LOSSES[1], T=4, B=5, num_layers=2)
    V = torch.randn(3, p.theta.numel(), generator=torch.Generator().manual_seed(3)).double()
    c = curvature(p)
    for row, want in zip(V, c.products(V, 0.2, 0.3), strict=True):
        close(c.product(row, damping=0.2, structural=0.3), want, rtol=1e-13)


@pytest.mark.parametrize(("make", "kind"), [(hf.LSTM, nn.LSTM), (hf.GRU, nn.GRU)])
def test_models_are_torchs_modules(make: Any, kind: type[nn.Module]) -> None:
    before = torch.get_rng_state()
    draw = torch.Generator().manual_seed(0)
    model = make(3, 4, 2, layers=2, dtype=torch.float64, generator=draw)
    assert bool((torch.get_rng_state() == before).all())
    assert type(model.rnn) is kind
    other = make(3, 4, 2, layers=2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other.load_state_dict(model.state_dict())
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    y = torch.randn(5, 6, 2, dtype=torch.float64)
    close(model(x), model.out(model.rnn(x)[0]))
    assert served_by(model, LOSSES[0])[0] == "GatedNet"
    A = hf.GaussNewton(model, LOSSES[0], x, y)
    B = hf.GaussNewton(nn.Sequential(Wrapped(model)), LOSSES[0], x, y, batch_dim=1)
    v = torch.randn(A.shape[0], dtype=torch.float64)
    close(A @ v, B @ v)
    assert not any(bool(b.any()) for b in model.biases() if make is hf.GRU)
    assert sum(W.numel() for W in model.matrices() + model.biases()) == A.shape[0]
    assert model.damping_start(x) == pytest.approx(0.5)


class Wrapped(nn.Module):
    """The same parameters, served by autograd: its forward does a little more."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        s: Tensor = self.model.out(self.model.rnn(x)[0])
        return s + 0


def test_forget_gates_start_open() -> None:
    model = hf.LSTM(2, 3, 1, layers=2, forget_bias=2.0)
    for l in range(2):
        assert (
            model.rnn.get_parameter(f"bias_ih_l{l}").tolist() == [0.0] * 3 + [2.0] * 3 + [0.0] * 6
        )
    assert "forget_bias=2.0" in repr(model)


def test_bad_arguments_are_named() -> None:
    for arguments, options, error, message in (
        ((0, 3, 1), {}, ValueError, "input_size: got 0"),
        ((2, 2.5, 1), {}, TypeError, "hidden_size: got"),
        ((2, 3, True), {}, TypeError, "output_size: got"),
        ((2, 3, 1), {"layers": 0}, ValueError, "layers: got 0"),
        ((2, 3, 1), {"dtype": torch.int64}, TypeError, "dtype: got torch.int64"),
    ):
        for make in (hf.LSTM, hf.GRU):
            with pytest.raises(error, match=message):
                make(*arguments, **options)
    with pytest.raises(TypeError, match="forget_bias: got"):
        hf.LSTM(2, 3, 1, forget_bias="open")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x: got shape \[2, 5\], need \[T,B,2\]"):
        hf.LSTM(2, 3, 1)(torch.zeros(2, 5))


def first_symbol(T: int = 6, B: int = 64) -> hf.Batch:
    """The first of a sequence of symbols, asked for at its end."""
    symbols = torch.randint(4, (T, B), generator=torch.Generator().manual_seed(7))
    mask = torch.zeros(T, B, dtype=torch.bool)
    mask[-1] = True
    return hf.Batch(nn.functional.one_hot(symbols, 4).float(), symbols[:1].expand(T, B), mask)


@pytest.mark.parametrize("make", [hf.LSTM, hf.GRU])
def test_hessian_free_trains_it(make: Any) -> None:
    net = make(4, 12, 4, generator=torch.Generator().manual_seed(0))
    optimiser = hf.HessianFree(
        net, LOSSES[2], damping=0.1, structural=0.03, preconditioner="fisher", cg_max_iter=40
    )
    losses = [optimiser.step(first_symbol()).loss for _ in range(8)]
    assert losses[-1] < 0.3 * losses[0]


def test_a_first_order_run_has_the_losses_of_autograd() -> None:
    class Derived(hf.LSTM):
        pass

    ends = []
    for make in (hf.LSTM, Derived):
        model = make(2, 7, 1, generator=torch.Generator().manual_seed(0))
        optimiser = hf.NAG(model, lr=0.01, momentum=0.9)
        options: dict[str, Any] = {"batch_size": 20, "test_size": 30, "progress": False}
        hf.train(model, hf.problems.Addition(8), optimiser, minibatches=0.4, **options)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)
