"""A net that is defined outside of the package (outside_net.py) goes where the package's own go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from outside_net import Residual, ResidualNet
from torch import Tensor
from torch.func import functional_call, hessian, jacrev, vmap

import hfcore as hf
from hfcore.flat import FlatParameters
from hfcore.nets.objective import FusedObjective
from hfcore.objective_factory import objective_for

LOSS = hf.losses.LogisticCrossEntropy()


def problem(B: int = 7) -> tuple[Residual, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    model = Residual(5, 3, g).double()
    x, y = (torch.rand(B, 5, generator=g, dtype=torch.float64) for _ in range(2))
    return model, x, y


def dense(model: Residual, x: Tensor, y: Tensor) -> Tensor:
    """JᵀL''J/B by torch.func."""
    flat = FlatParameters(model)

    def outputs(theta: Tensor) -> Tensor:
        named = dict(zip(flat.names, flat.split(theta), strict=True))
        return functional_call(model, named, (x,))

    def loss(s: Tensor, y: Tensor) -> Tensor:
        return (torch.nn.functional.softplus(s) - s * y).sum()

    J = jacrev(outputs)(flat.read())
    L = vmap(hessian(loss))(outputs(flat.read()), y)
    return torch.einsum("bin,bij,bjm->nm", J, L, J) / len(x)


def test_products_are_those_of_the_dense_matrix() -> None:
    model, x, y = problem()
    objective = objective_for(model, LOSS)
    assert isinstance(objective, FusedObjective)
    A = hf.GaussNewton(model, LOSS, x, y, damping=0.3)
    assert A.strategy == "fused"
    eye = torch.eye(A.shape[0], dtype=torch.float64)
    want = dense(model, x, y) + 0.3 * eye
    torch.testing.assert_close(A @ eye, want, rtol=1e-12, atol=1e-13)
    by_hand = hf.GaussNewton(objective=FusedObjective(ResidualNet(model, LOSS)), model=model,
                             inputs=x, targets=y, damping=0.3)  # fmt: skip
    torch.testing.assert_close(by_hand @ eye, want, rtol=1e-12, atol=1e-13)


def test_gradient_and_fisher_are_those_of_autograd() -> None:
    model, x, y = problem()
    flat, objective = FlatParameters(model), objective_for(model, LOSS, l2=0.1)
    data = objective.prepare(hf.Batch(x, y))
    cases = []
    for i in range(len(x)):
        s = model(x[i : i + 1])
        (torch.nn.functional.softplus(s) - s * y[i]).sum().backward()
        cases.append(torch.cat([p.grad.flatten() for p in flat.tensors]))
        model.zero_grad()
    g = torch.stack(cases)
    theta = flat.read()
    torch.testing.assert_close(objective.gradient(data, theta)[1], g.mean(0) + 0.1 * theta)
    F = objective.curvature(data, theta, "fisher").products(torch.eye(len(theta)).double())
    torch.testing.assert_close(F, g.T @ g / len(x) + 0.1 * torch.eye(len(theta)).double())


def test_what_it_does_not_bring_is_named() -> None:
    model, x, y = problem()
    for make, message in (
        (lambda: hf.Hessian(model, LOSS, x, y), "kind: ResidualNet has no R-op of its gradient"),
        (lambda: hf.GaussNewton(model, LOSS, x, y).diagonal(), "diagonal: ResidualNet has no sq"),
        (
            lambda: hf.GaussNewton(model, LOSS, x, y, damping=1.0, structural=0.1) @ x.new_ones(33),
            "structural",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_hessian_free_trains_it() -> None:
    def losses(**options: Any) -> list[float]:
        model, x, _ = problem(40)
        y = x.flip(1)
        if options.pop("by_objective", False):
            loss: Any = None
            options["objective"] = FusedObjective(ResidualNet(model, LOSS))
        else:
            loss = LOSS
        optimiser = hf.HessianFree(model, loss, damping=1.0, **options)
        return [optimiser.step((x, y)).loss for _ in range(6)]

    by_registry = losses()
    assert by_registry[-1] < by_registry[0] - 0.1
    assert losses(by_objective=True) == by_registry


def test_it_goes_through_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """hf.train takes the fused net's gradient, to the losses of autograd."""
    problem = hf.problems.create("curves", images=60)
    ends, calls = [], []
    backward = ResidualNet.backward

    def counted(self: ResidualNet, *arguments: Any) -> Tensor:
        calls.append(1)
        return backward(self, *arguments)

    monkeypatch.setattr(ResidualNet, "backward", counted)

    class Derived(Residual):
        pass

    for make in (Residual, Derived):
        model = make(problem.input_size, 4, torch.Generator().manual_seed(0))
        optimiser = hf.NAG(model, lr=1e-3, momentum=0.9)
        options: dict[str, Any] = {"minibatches": 0.2, "batch_size": 20, "test_size": 20}
        hf.train(model, problem, optimiser, progress=False, **options)
        ends.append(FlatParameters(model).read())
        assert len(calls) == 10
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


def test_bad_registrations_are_named() -> None:
    with pytest.raises(TypeError, match="model_class: got 3, need a subclass"):
        hf.nets.register(3, ResidualNet)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="factory: got int, need a callable"):
        hf.nets.register(Residual, 3)  # type: ignore[arg-type]

    class Half(hf.nets.FusedNet):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Half(problem()[0], LOSS, numel=33, output_size=5)  # type: ignore[abstract]
    frozen = problem()[0]
    frozen.b.requires_grad_(False)
    with pytest.raises(ValueError, match="model: some parameters of the Residual are frozen"):
        ResidualNet(frozen, LOSS)
