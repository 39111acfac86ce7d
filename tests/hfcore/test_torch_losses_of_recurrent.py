"""torch's own losses with nn.RNN, nn.LSTM and nn.GRU, in float64 against torch.func."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

import hfcore as hf
from hfcore.autograd.objective import ModuleObjective
from hfcore.nets.objective import FusedObjective
from hfcore.nets.registry import served_by
from hfcore.objective_factory import objective_for
from oracles.loss_cases import MODULES, K, draw
from oracles.torch_recurrent import Net, Problem

T, B = 3, 4
LOSS = hf.losses.SquaredError()
MEANS = {name: case for name, case in MODULES.items() if case[0].reduction == "mean"}


class ClassesSecond(nn.Module):
    """Outputs ``[B,k,T]`` of a net that gives ``[B,T,k]``."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).transpose(1, 2)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11 * float(want.abs().max()) + 1e-15)


class Setting:
    """A net with outputs ``[B,k]``, ``[B,k,T]`` or ``[B,T,k]``, and f(θ) by hand."""

    def __init__(self, kind: str, name: str, layout: str) -> None:
        torchs, drawn = MEANS[name]
        weight = getattr(torchs, "weight", None)
        if layout == "[B,k,T]" and weight is not None and drawn != "classes":
            torchs = type(torchs)()  # its weights would be those of time
        self.torchs, self.layout = torchs, layout
        options: dict[str, Any] = {"batch_first": True, "last": layout == "[B,k]", "k": K}
        self.p = Problem(kind, LOSS, T=T, B=B, H=2, mask=None, **options)
        self.model = ClassesSecond(self.p.model) if layout == "[B,k,T]" else self.p.model
        lead = (B,) if layout == "[B,k]" else (B, T)
        self.y = draw(drawn, lead)[1]
        if layout == "[B,k,T]" and drawn != "classes":
            self.y = self.y.transpose(1, 2)

    def outputs(self, theta: Tensor) -> Tensor:
        s = self.p.by_hand(theta)[1].transpose(0, 1)
        return s[:, 0] if self.layout == "[B,k]" else s.mT if self.layout == "[B,k,T]" else s

    def f(self, theta: Tensor) -> Tensor:
        value: Tensor = self.torchs(self.outputs(theta), self.y)
        return value

    def gauss_newton(self) -> Tensor:
        s = self.outputs(self.p.theta).detach()
        J = jacobian(self.outputs, self.p.theta).flatten(0, -2)
        L = hessian(lambda s: self.torchs(s, self.y), s).reshape(len(J), len(J))
        return J.T @ L @ J


LAYOUTS = [
    (kind, name, layout)
    for name, (_, drawn) in MEANS.items()
    for kind, layout in (("rnn", "[B,k]"), ("gru", "[B,k,T]"), ("rnn", "[B,T,k]"))
    if (drawn, layout) != ("classes", "[B,T,k]")
]


@pytest.mark.parametrize(("kind", "name", "layout"), LAYOUTS)
def test_products_are_those_of_torchs_mean(kind: str, name: str, layout: str) -> None:
    p = Setting(kind, name, layout)
    objective = objective_for(p.model, p.torchs)
    assert isinstance(objective, FusedObjective)
    theta, eye = p.p.theta, torch.eye(len(p.p.theta), dtype=torch.float64)
    data = objective.prepare(hf.Batch(p.p.batch.inputs, p.y))
    value, gradient = objective.gradient(data, theta)
    assert value == pytest.approx(float(p.f(theta)), rel=1e-12)
    close(gradient, jacobian(p.f, theta))
    close(objective.curvature(data, theta).products(eye), p.gauss_newton())
    close(objective.curvature(data, theta, "hessian").products(eye), hessian(p.f, theta))


@pytest.mark.parametrize("mask", ["none", "bool", "weights"])
@pytest.mark.parametrize("name", ["ce-all", "bce-weight", "mse"])
def test_several_batches_and_masks_are_served_alike_by_autograd(name: str, mask: str) -> None:
    """Of other lengths, too: the mean is over all that counts."""
    p = Setting("lstm", name, "[B,k,T]" if name.startswith("ce") else "[B,T,k]")
    draws = torch.Generator().manual_seed(5)
    batches = []
    for t, b in ((T, slice(0, 3)), (T - 1, slice(2, 4))):
        y = p.y[b, ..., :t] if p.y.ndim == 2 else p.y[b, :t]
        keep = torch.rand(y.shape[:2], generator=draws, dtype=torch.float64) < 0.7
        keep[0, 0] = True
        weights = keep * torch.rand(y.shape[:2], generator=draws, dtype=torch.float64)
        m = {"none": None, "bool": keep, "weights": weights}[mask]
        where, nothing = (keep, 7) if y.ndim == 2 else (keep.unsqueeze(-1), torch.nan)
        wild = torch.where(where, y, nothing)
        batches.append(hf.Batch(p.p.batch.inputs[b, :t], y if m is None else wild, m))
    fused, modular = objective_for(p.model, p.torchs), ModuleObjective(p.model, p.torchs)
    assert isinstance(fused, FusedObjective)
    theta, v = p.p.theta, torch.linspace(-1, 1, len(p.p.theta), dtype=torch.float64)
    a, b_ = fused.prepare(batches), modular.prepare(batches)
    (value, gradient), (want, of_autograd) = fused.gradient(a, theta), modular.gradient(b_, theta)
    assert value == pytest.approx(want, rel=1e-12)
    close(gradient, of_autograd)
    for kind in ("ggn", "fisher"):
        got = fused.curvature(a, theta, kind).product(v)  # type: ignore[arg-type]
        close(got, modular.curvature(b_, theta, kind).product(v))


def test_what_torch_lays_out_otherwise_goes_through_autograd(caplog: Any) -> None:
    whole, ce = Net("rnn", 2, 3, K, batch_first=True), nn.CrossEntropyLoss()
    assert isinstance(objective_for(whole, ce), ModuleObjective)
    assert "along axis 1; need hf.losses.from_torch" in caplog.text
    second = ClassesSecond(whole)
    assert isinstance(objective_for(second, LOSS), ModuleObjective)
    assert "its outputs are [B,k,T], and SquaredError takes [B,T,k]" in caplog.text
    weighted = nn.BCEWithLogitsLoss(weight=torch.ones(T))
    assert isinstance(objective_for(second, weighted), ModuleObjective)
    assert "has weights along the last axis" in caplog.text
    with pytest.raises(ValueError, match="reduction='sum', need 'mean'"):
        objective_for(second, nn.MSELoss(reduction="sum"))
    assert served_by(second, ce)[0] == "TorchRnnNet"


@pytest.mark.parametrize("masked", [False, True])
def test_training_takes_the_fused_path(masked: bool) -> None:
    """With a mask too, whose mean is the same through autograd."""
    ends = []
    for fuses in (True, False):
        p = Setting("rnn", "ce-weight", "[B,k,T]")
        model = copy.deepcopy(p.model)
        if not fuses:
            model.forward = lambda x, plain=model.forward: plain(x)
        mask = torch.ones(B, T, dtype=torch.bool)
        mask[1, 1:] = False
        data = (p.p.batch.inputs, p.y, mask) if masked else (p.p.batch.inputs, p.y)
        optimiser = hf.NAG(model, lr=0.05, momentum=0.9)
        options: dict[str, Any] = {"loss": p.torchs, "batch_size": B, "progress": False}
        result = hf.train(model, data, optimiser, test=data, minibatches=0.008, **options)
        ends.append((torch.cat([q.detach().flatten() for q in model.parameters()]), result))
    close(ends[0][0], ends[1][0])
