"""Nets whose function is not the one of their class: autograd takes them, and says why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, parametrize, prune

import hfcore as hf
from hfcore.autograd.objective import ModuleObjective
from hfcore.nets.grouped import grouped_gradient
from hfcore.nets.unaltered import why_not_fused
from hfcore.objective_factory import objective_for
from hfcore.training.gradients import AutogradBackpropagation, FusedBackpropagation, backpropagation


class Halved(hf.MLP):
    """Computes something else than its parameters say."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class HalvedRnn(hf.RNN):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class Doubled(nn.Module):
    def forward(self, W: Tensor) -> Tensor:
        return 2 * W


def mlp() -> hf.MLP:
    generator = torch.Generator().manual_seed(0)
    return hf.MLP([3, 4, 2], ["tanh", "linear"], dtype=torch.float64, generator=generator)


def rnn() -> hf.RNN:
    return hf.RNN(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def pruned(model: nn.Module) -> None:
    part, name = (model.layers[0], "weight") if isinstance(model, hf.MLP) else (model, "W_hh")
    prune.l1_unstructured(part, name, 0.5)


def orthogonal(model: nn.Module) -> None:
    part, name = (model.layers[0], "weight") if isinstance(model, hf.MLP) else (model, "W_hh")
    parametrizations.orthogonal(part, name)


def spectral(model: nn.Module) -> None:
    part, name = (model.layers[0], "weight") if isinstance(model, hf.MLP) else (model, "W_hh")
    parametrizations.spectral_norm(part, name)
    model.eval()


def registered(model: nn.Module) -> None:
    part, name = (model.layers[0], "weight") if isinstance(model, hf.MLP) else (model, "W_hh")
    parametrize.register_parametrization(part, name, Doubled())


def hooked(model: nn.Module) -> None:
    model.register_forward_hook(lambda m, a, s: s / 2)


def pre_hooked(model: nn.Module) -> None:
    model.register_forward_pre_hook(lambda m, a: (a[0] / 2,))


def own_forward(model: nn.Module) -> None:
    plain = model.forward
    model.forward = lambda x: plain(x) / 2  # type: ignore[method-assign]


def exchanged(model: nn.Module) -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    layer = Scaled(3, 4, dtype=torch.float64)
    model.layers[0] = layer  # type: ignore[index, operator]


def a_layer_more(model: nn.Module) -> None:
    model.layers[0] = nn.Sequential(model.layers[0], nn.Tanh())  # type: ignore[index, operator]


ALTERATIONS: dict[str, tuple[Callable[[Any], None], str]] = {
    "pruned": (pruned, "has a forward pre-hook"),
    "orthogonal": (orthogonal, "not a layer of its class|is derived from"),
    "spectral": (spectral, "not a layer of its class|is derived from"),
    "registered": (registered, "not a layer of its class|is derived from"),
    "hooked": (hooked, "it has a forward hook"),
    "pre_hooked": (pre_hooked, "it has a forward pre-hook"),
    "own_forward": (own_forward, "it has a forward of its own"),
    "exchanged": (exchanged, "Scaled 'layers.0' is not a layer of its class"),
    "a_layer_more": (a_layer_more, "Sequential 'layers.0' is not a layer of its class"),
}


def data(sequences: bool) -> hf.Batch:
    generator = torch.Generator().manual_seed(1)
    lead = (4, 5) if sequences else (5,)
    x, y = (torch.randn(*lead, n, generator=generator, dtype=torch.float64) for n in (3, 2))
    return hf.Batch(x, y)


def dense_gauss_newton(model: nn.Module, batch: hf.Batch) -> Tensor:
    """JᵀJ / cases of the squared error, with J by autograd through the model itself."""
    named = dict(model.named_parameters())
    cases = batch.inputs.shape[1 if isinstance(model, hf.RNN) else 0]

    def outputs(*values: Tensor) -> Tensor:
        parameters = dict(zip(named, values, strict=True))
        return torch.func.functional_call(model, parameters, (batch.inputs,)).reshape(-1)

    J = torch.autograd.functional.jacobian(outputs, tuple(p.detach() for p in named.values()))
    flat = torch.cat([j.reshape(j.shape[0], -1) for j in J], 1)
    return flat.T @ flat / cases


def check_right(model: nn.Module, batch: hf.Batch) -> None:
    """Loss and products are those of the model as it is called."""
    operator = hf.GaussNewton(model, hf.losses.SquaredError(), batch.inputs, batch.targets)
    want = dense_gauss_newton(model, batch)
    got = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    s = model(batch.inputs).detach()
    cases = s.shape[1 if isinstance(model, hf.RNN) else 0]
    assert operator.loss == pytest.approx(float(0.5 * (s - batch.targets).square().sum() / cases))


@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("make", [mlp, rnn])
def test_an_altered_net_goes_through_autograd(make, alteration, caplog) -> None:
    if make is rnn and alteration in ("exchanged", "a_layer_more"):
        pytest.skip("an hf.RNN has no layers to exchange")
    model, batch = make(), data(make is rnn)
    loss = hf.losses.SquaredError()
    assert why_not_fused(model) is None
    alter, reason = ALTERATIONS[alteration]
    before = model(batch.inputs)
    alter(model)
    assert (model(batch.inputs) - before).abs().max() > 1e-3  # or the test would show nothing
    with caplog.at_level(logging.WARNING, logger="hfcore"):
        objective = objective_for(model, loss)
    assert isinstance(objective, ModuleObjective)
    (record,) = [r for r in caplog.records if "goes through autograd" in r.message]
    assert any(part in record.message for part in reason.split("|"))
    check_right(model, batch)
    assert grouped_gradient(model, loss) is None
    assert isinstance(backpropagation(model, loss, 5), AutogradBackpropagation)
    optimiser = hf.HessianFree(model, loss)
    stats = optimiser.step(batch)
    assert stats.loss == pytest.approx(check_loss(before, model, batch, stats))
    assert any("goes through autograd: " in m for m in stats.messages)
    assert not any("through autograd" in m for m in optimiser.step(batch).messages)


def check_loss(before: Tensor, model: nn.Module, batch: hf.Batch, stats: hf.StepStats) -> float:
    """The model's own loss after the step is the one that the step reports."""
    s = model(batch.inputs).detach()
    cases = s.shape[1 if isinstance(model, hf.RNN) else 0]
    value = float(0.5 * (s - batch.targets).square().sum() / cases)
    assert stats.loss_after == pytest.approx(value)
    return stats.loss


@pytest.mark.parametrize("make", [lambda: Halved([3, 2], ["linear"]), lambda: HalvedRnn(3, 4, 2)])
def test_a_derived_class_goes_through_autograd(make, caplog) -> None:
    model = make().double()
    with caplog.at_level(logging.WARNING, logger="hfcore"):
        check_right(model, data(isinstance(model, hf.RNN)))
    assert "is derived from hf." in caplog.text


@pytest.mark.parametrize(
    "register",
    [
        lambda: torch_module.register_module_forward_hook(lambda m, a, s: s / 2),
        lambda: torch_module.register_module_forward_pre_hook(lambda m, a: (a[0] / 2,)),
    ],
    ids=["forward", "pre"],
)
def test_hooks_for_all_modules(register) -> None:
    model, batch = mlp(), data(sequences=False)
    handle = register()
    try:
        assert "registered for all modules" in (why_not_fused(model) or "")
        check_right(model, batch)
    finally:
        handle.remove()
    assert why_not_fused(model) is None


def test_hooks_on_gradients_are_seen() -> None:
    model = mlp()
    handle = model.layers[1].weight.register_hook(lambda g: 0 * g)
    assert why_not_fused(model) == "Linear 'layers.1' has a hook on the gradient of weight"
    backward = backpropagation(model, hf.losses.SquaredError(), 5)
    backward(data(sequences=False))
    assert float(model.layers[1].weight.grad.abs().max()) == 0.0
    handle.remove()
    assert why_not_fused(model) is None


@pytest.mark.parametrize("make", [mlp, rnn])
def test_altered_while_in_use_is_refused(make) -> None:
    """What was fused at the start cannot see a change that comes later."""
    model, batch, loss = make(), data(make is rnn), hf.losses.SquaredError()
    optimiser = hf.HessianFree(model, loss)
    backward = backpropagation(model, loss, 5)
    assert isinstance(backward, FusedBackpropagation)
    optimiser.step(batch)
    backward(batch)
    pruned(model)
    with pytest.raises(ValueError, match=r"altered since the optimiser was built, .* pre-hook"):
        optimiser.step(batch)
    with pytest.raises(ValueError, match=r"altered during the run, .* pre-hook"):
        backward(batch)
    check_right(model, batch)


def test_what_only_a_fused_net_serves_is_refused_with_the_reason() -> None:
    model, loss = rnn(), hf.losses.SquaredError()
    hooked(model)
    for options, message in (
        ({"normalize": "outputs"}, "normalize: got 'outputs'.*forward hook"),
        ({"memory": "recompute"}, "memory: belongs to a fused net.*forward hook"),
        ({"structural": 0.1}, "structural: got a number.*forward hook"),
    ):
        with pytest.raises(ValueError, match=message):
            objective_for(model, loss, **options)
