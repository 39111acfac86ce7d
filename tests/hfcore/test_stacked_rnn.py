"""hf.StackedRNN, a fused net made of the recurrence ops, in float64 against torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

import hfcore as hf
from hfcore.flat import FlatParameters
from hfcore.losses import Loss
from hfcore.nets import recurrent
from hfcore.nets.objective import FusedObjective
from hfcore.objective_factory import objective_for
from oracles.layers import Layered
from oracles.losses import LOSSES
from oracles.rnn import ACTIVATIONS, moved, steps_of_loss

KINDS = ("ggn", "hessian", "fisher")


class Problem(Layered):
    """A small net and its data."""

    def __init__(
        self, loss: Loss, sizes: tuple[int, ...] = (3, 4), nonlinearity: str = "tanh", *,
        T: int = 4, B: int = 3, n: int = 2, k: int = 2, mask: str = "ragged",
    ) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(T * 100 + B)
        options: dict[str, Any] = {"nonlinearity": nonlinearity, "dtype": torch.float64}
        self.loss, self.model = loss, hf.StackedRNN(n, sizes, k, generator=g, **options)
        moved(self.model, g)
        self.nonlinearity = nonlinearity
        self.parameters = FlatParameters(self.model)
        self.theta = self.parameters.read()
        self.x = torch.randn(T, B, n, generator=g, dtype=torch.float64)
        self.y = torch.rand(T, B, k, generator=g, dtype=torch.float64)
        if loss.kind == "softmax":
            self.y = torch.randint(k, (T, B), generator=g)
        self.mask = steps_of_loss(mask, T, B, g)
        if mask == "ragged":
            self.mask[0] = T == 1

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.parameters.names, self.parameters.split(theta), strict=True))

    def by_hand(self, theta: Tensor) -> tuple[list[Tensor], Tensor]:
        """t ``[T,B,H]`` of every layer and s ``[T,B,k]``, written out."""
        p, below, ts = self.named(theta), self.x, []
        for l in range(len(self.model.layers)):
            W = {name: p[f"layers.{l}.{name}"] for name in ("W_hx", "W_hh", "b_h", "b_init")}
            t, h = [], []
            for x_t in below:
                back = h[-1] @ W["W_hh"].T if h else W["b_init"]
                t.append(x_t @ W["W_hx"].T + W["b_h"] + back)
                h.append(ACTIVATIONS[self.model.nonlinearity](t[-1]))
            ts.append(torch.stack(t))
            below = torch.stack(h)
        return ts, below @ p["W_yh"].T + p["b_y"]

    def objective(self, **options: Any) -> FusedObjective:
        objective = objective_for(self.model, self.loss, **options)
        assert isinstance(objective, FusedObjective)
        return objective

    def curvature(self, kind: Any = "ggn", **options: Any) -> Any:
        objective = self.objective(**options)
        data = objective.prepare(hf.Batch(self.x, self.y, self.mask))
        return objective.curvature(data, self.theta, kind)


def close(got: Tensor, want: Tensor, rtol: float = 1e-11) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * float(want.detach().abs().max()))


def eye(p: Problem) -> Tensor:
    return torch.eye(p.theta.numel(), dtype=torch.float64)


# ---------------------------------------------------------------------------------- module


@pytest.mark.parametrize("nonlinearity", ACTIVATIONS)
def test_forward_and_its_derivatives_by_torch(nonlinearity: str) -> None:
    p = Problem(LOSSES[0], (3, 5, 2), nonlinearity)
    close(p.model(p.x).detach(), p.by_hand(p.theta)[1])

    def outputs(theta: Tensor) -> Tensor:
        return functional_call(p.model, p.named(theta), (p.x,))

    v = torch.randn(p.theta.numel(), generator=torch.Generator().manual_seed(0)).double()
    got = torch.func.jvp(outputs, (p.theta,), (v,))[1]
    close(got, torch.func.jvp(lambda t: p.by_hand(t)[1], (p.theta,), (v,))[1])
    by_autograd = torch.autograd.grad(p.model(p.x).square().sum(), list(p.model.parameters()))
    want = grad(lambda t: p.by_hand(t)[1].square().sum())(p.theta)
    close(torch.cat([g.flatten() for g in by_autograd]), want)
    many = vmap(p.model)(torch.stack([p.x, 2 * p.x]))
    close(many, torch.stack([p.model(p.x), p.model(2 * p.x)]))


def test_one_layer_is_an_rnn() -> None:
    p = Problem(LOSSES[2], (4,), mask="last")
    rnn = hf.RNN(2, 4, 2, dtype=torch.float64)
    with torch.no_grad():
        for name, value in p.named(p.theta).items():
            getattr(rnn, name.removeprefix("layers.0.")).copy_(value)
    close(p.model(p.x), rnn(p.x))
    order = [f"layers.0.{n}" if n in ("W_hx", "W_hh", "b_h", "b_init") else n
             for n, _ in rnn.named_parameters()]  # fmt: skip
    v = p.named(torch.randn(p.theta.numel(), generator=torch.Generator().manual_seed(1)).double())
    for operator in (hf.GaussNewton, hf.Hessian, hf.EmpiricalFisher):
        data = (p.loss, p.x, p.y)
        A = operator(p.model, *data, mask=p.mask, damping=0.3, structural=0.2)
        M = operator(rnn, *data, mask=p.mask, damping=0.3, structural=0.2)
        got = p.named(A @ torch.cat([t.flatten() for t in v.values()]))
        want = M @ torch.cat([v[name].flatten() for name in order])
        close(torch.cat([got[name].flatten() for name in order]), want)


def test_bad_arguments_are_named() -> None:
    for arguments, error, message in (
        ((2, 3, 1), TypeError, "hidden_sizes: got int, need a sequence"),
        ((2, [], 1), ValueError, "hidden_sizes: got no layer, need at least one"),
        ((2, [3, 0], 1), ValueError, r"hidden_sizes\[1\]: got 0, need at least 1"),
        ((2, [3, 2.5], 1), TypeError, r"hidden_sizes\[1\]: got 2.5, need an int"),
        ((0, [3], 1), ValueError, "input_size: got 0"),
        ((2, [3], True), TypeError, "output_size: got True, need an int"),
    ):
        with pytest.raises(error, match=message):
            hf.StackedRNN(*arguments)
    with pytest.raises(ValueError, match="nonlinearity: got 'sin'"):
        hf.StackedRNN(2, [3], 1, nonlinearity="sin")
    with pytest.raises(TypeError, match=r"dtype: got torch.int64"):
        hf.StackedRNN(2, [3], 1, dtype=torch.int64)
    model = hf.StackedRNN(2, [3], 1)
    with pytest.raises(ValueError, match=r"x: got shape \[2, 5\], need \[T,B,2\]"):
        model(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="T: got 0"):
        model(torch.zeros(0, 5, 2))
    for structural, error, message in (
        ({"layers.1": "tanh"}, ValueError, r"got submodule 'layers.1', need one of layers.0"),
        ({"layers.0": "identity"}, ValueError, r"\['layers.0'\]: got 'identity', need 'tanh'"),
        ({"layers.0": ("tanh", -1.0)}, ValueError, r"\['layers.0'\]: got -1.0, need a finite"),
        ("tanh", TypeError, "structural: got 'tanh', need a number"),
    ):
        with pytest.raises(error, match=message):
            objective_for(model, LOSSES[0], structural=structural)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- curvature


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
@pytest.mark.parametrize("nonlinearity", ACTIVATIONS)
@pytest.mark.parametrize("mask", ["all", "last", "ragged"])
def test_every_kind_equals_its_dense_matrix(loss, nonlinearity: str, mask: str) -> None:
    p = Problem(loss, (2, 3), nonlinearity, mask=mask)
    held = 0.7 * eye(p) + 0.4 * (p.structural(0) + p.structural(1))
    for kind in KINDS:
        want = p.dense(kind) + held
        for memory, backend in (("cached", "cpu"), ("recompute", "cpu"), ("cached", "reference")):
            with hf.use_backend(backend):  # type: ignore[arg-type]
                got = p.curvature(kind, l2=0.2, memory=memory).products(eye(p), 0.5, 0.4)
            close(got, want)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 2, 2), (2, 1, 1, 1), (7, 5, 3, 3)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (5, 2, 3)], ids=str)
def test_shapes(shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    p = Problem(LOSSES[1], sizes, **dict(zip("TBnk", shape, strict=True)))
    for kind in KINDS:
        close(p.curvature(kind).products(eye(p)), p.dense(kind), rtol=1e-10)
    close(p.curvature().diagonal(), p.dense("ggn").diagonal(), rtol=1e-10)


def test_symmetry_and_sign() -> None:
    p = Problem(LOSSES[0])
    for kind in KINDS:
        A = p.curvature(kind).products(eye(p), 0.0, 0.3)
        assert float((A - A.T).abs().max()) <= 1e-14 * float(A.abs().max())
        lowest = float(torch.linalg.eigvalsh(A)[0])
        assert lowest < -1e-3 if kind == "hessian" else lowest >= -1e-14


@pytest.mark.parametrize("kind", KINDS)
def test_named_layers_are_damped(kind: Any) -> None:
    p = Problem(LOSSES[1], (3, 2, 3))
    named = {"layers.0": "tanh", "layers.2": ("tanh", 0.3)}
    want = p.dense(kind) + 0.8 * (p.structural(0) + 0.3 * p.structural(2))
    close(p.curvature(kind, structural=named).products(eye(p), 0.0, 0.8), want)


@pytest.mark.parametrize("normalize", ["sequences", "outputs"])
def test_loss_gradient_and_squares(normalize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem(LOSSES[2], T=5, B=7)
    objective = p.objective(l2=0.3, normalize=normalize)
    data = objective.prepare(hf.Batch(p.x, p.y, p.mask))
    share = 1.0 if normalize == "sequences" else p.x.shape[1] / int(p.mask.sum())
    value, gradient = objective.gradient(data, p.theta)
    want = share * float(p.mean_loss(p.theta)) + 0.15 * float(p.theta @ p.theta)
    assert value == pytest.approx(want, rel=1e-13)
    assert objective.loss(data, p.theta) == pytest.approx(want, rel=1e-13)
    close(gradient, share * grad(p.mean_loss)(p.theta) + 0.3 * p.theta)
    squares = ((share * p.case_gradients()) ** 2).mean(0)
    close(objective.squared_gradients(data, p.theta), squares)
    monkeypatch.setattr(recurrent, "CASE_BYTES", 1)
    close(objective.squared_gradients(data, p.theta), squares)
    assert objective.damping_start(data) == pytest.approx(0.5)


def test_rows_of_a_group_are_products() -> None:
    p = Problem(LOSSES[1], T=6, B=5)
    V = torch.randn(3, p.theta.numel(), generator=torch.Generator().manual_seed(3)).double()
    for kind in KINDS:
        c = p.curvature(kind)
        for row, want in zip(V, c.products(V, 0.2, 0.3), strict=True):
            close(c.product(row, damping=0.2, structural=0.3), want, rtol=1e-13)
        out = torch.full_like(V[0], 7.0)
        c.product(V[0], out=out, stop=torch.ones(1, dtype=torch.int32))
        assert bool((out == 7.0).all())


# --------------------------------------------------------------------------------- training


def delayed(T: int = 6, B: int = 64) -> hf.Batch:
    """The input of three steps ago."""
    x = torch.rand(T, B, 1, generator=torch.Generator().manual_seed(7)) - 0.5
    y = torch.cat([torch.zeros(3, B, 1), x[:-3]])
    mask = torch.ones(T, B, dtype=torch.bool)
    mask[:3] = False
    return hf.Batch(x, y, mask)


def test_hessian_free_trains_it() -> None:
    net = hf.StackedRNN(1, [12, 8], 1, generator=torch.Generator().manual_seed(0))
    hf.init.sparse_(net, torch.Generator().manual_seed(1))
    assert not bool(net.b_y.any())
    assert int((net.layers[1].W_hh != 0).sum(1).max()) <= 15
    optimiser = hf.HessianFree(net, LOSSES[0], structural=0.01, preconditioner="fisher")
    losses = [optimiser.step(delayed()).loss for _ in range(10)]
    assert losses[-1] < 0.1 * losses[0]


def test_a_training_run_has_the_losses_of_autograd() -> None:
    """hf.train goes through the fused net; a derived class computes the same by autograd."""

    class Derived(hf.StackedRNN):
        pass

    problem = hf.problems.Addition(8)
    ends = []
    for make in (hf.StackedRNN, Derived):
        model = make(2, [7, 5], 1, generator=torch.Generator().manual_seed(0))
        optimiser = hf.NAG(model, lr=0.01, momentum=0.9)
        hf.train(
            model, problem, optimiser, minibatches=0.4, batch_size=20, test_size=30, progress=False
        )
        ends.append(FlatParameters(model).read())
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)
