"""hf.pretrain: the stack, what is unrolled, the run folder, what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.pretraining import RBM, unroll_
from hfcore.pretraining.settings import layer_settings
from hfcore.training import ConfigMismatchError, RunFolderError


class Killed(Exception):
    """Stands for a kill at that moment."""


def images(count: int = 53, size: int = 12) -> Tensor:
    """Smooth random images in [0, 1]."""
    draw = torch.Generator().manual_seed(0)
    centre = torch.rand(count, 1, generator=draw) * size
    return torch.exp(-((torch.arange(size) - centre) ** 2) / 4)


def net(seed: int = 1, **options: Any) -> hf.Autoencoder:
    draw = torch.Generator().manual_seed(seed)
    return hf.Autoencoder([12, 7, 5, 2], generator=draw, **options)


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]


SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 10}


def test_the_unrolled_net_computes_what_the_machines_do() -> None:
    model, x = net(), images()
    result = hf.pretrain(model, x, **SMALL)
    assert result.reason == "finished"
    h = x
    for rbm in result.rbms:
        h = rbm.hidden_mean(h)
    for rbm in reversed(result.rbms):
        h = rbm.visible_mean(h)
    torch.testing.assert_close(model(x).sigmoid(), h, rtol=1e-5, atol=1e-6)
    assert [r.hidden_units for r in result.rbms] == ["bernoulli", "bernoulli", "gaussian"]
    assert [r.visible_units for r in result.rbms] == ["bernoulli"] * 3


def test_the_decoder_is_not_tied() -> None:
    model = net()
    hf.pretrain(model, images(), **SMALL)
    matrices = model.matrices()
    for up, down in zip(matrices[:3], reversed(matrices[3:]), strict=True):
        assert torch.equal(up.T, down)
    with torch.no_grad():
        matrices[0].zero_()
    assert matrices[-1].any()


def test_the_start_of_the_net_plays_no_part_and_the_seed_does() -> None:
    a, b, c = net(1), net(2), net(1)
    hf.pretrain(a, images(), **SMALL)
    hf.pretrain(b, images(), **SMALL)
    hf.pretrain(c, images(), seed=1, **SMALL)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.matrices()[0], c.matrices()[0])


def test_a_machine_sees_what_the_one_below_makes_of_the_data() -> None:
    """The stack in two calls: the upper layers as a net of their own, on hidden means."""
    x = images()
    first = hf.pretrain(net(), x, epochs=(4, 0, 0), batch_size=10).rbms[0]
    both = hf.pretrain(net(), x, epochs=(4, 2, 0), batch_size=10).rbms
    assert torch.equal(first.theta, both[0].theta)
    untrained = hf.pretrain(net(), x, epochs=0).rbms[1]
    line = hf.pretrain(net(), x, epochs=(4, 1, 0), batch_size=53, learning_rate=1e-9).lines[-1]
    below = hf.pretrain(net(), x, epochs=(4, 0, 0), batch_size=53, learning_rate=1e-9).rbms[0]
    means = below.hidden_mean(x)
    assert line["layer"] == 2
    # Nothing has moved: the free energy is that of the first weights on the means.
    want = float(untrained.free_energy(means).mean())
    assert line["free_energy"] == pytest.approx(want, rel=1e-5)


def test_it_learns() -> None:
    """On CURVES: the unrolled net is better than the mean image, which a random one is not."""
    data = hf.data.curves(200, 1, seed=3)
    x = data.train
    model = hf.Autoencoder([784, 20, 6])
    result = hf.pretrain(model, data, epochs=(30, 30), batch_size=10)
    mean = float((x - x.mean(0)).square().sum(1).mean())
    with torch.no_grad():
        error = float((model(x).sigmoid() - x).square().sum(1).mean())
    assert error < 0.9 * mean
    first = [line["reconstruction_error"] for line in result.lines if line["layer"] == 1]
    assert first[-1] < 0.5 * first[0]
    momenta = [line["momentum"] for line in result.lines if line["layer"] == 2]
    assert momenta[:7] == [0.5] * 5 + [0.9] * 2


def test_defaults_by_layer() -> None:
    def found(model: hf.Autoencoder, visible: str) -> list[tuple[int, float]]:
        return [(s.epochs, s.learning_rate) for s in layer_settings(model, visible, None, None)]

    assert found(net(), "bernoulli") == [(50, 0.1), (50, 0.1), (50, 0.001)]
    assert found(net(), "gaussian") == [(200, 0.001), (50, 0.1), (50, 0.001)]
    assert found(net(code="logistic"), "bernoulli") == [(50, 0.1)] * 3


def test_gaussian_visible_units() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=draw) @ torch.randn(3, 12, generator=draw) / 3**0.5
    model = net()
    result = hf.pretrain(model, x, visible="gaussian", epochs=(60, 5, 5), batch_size=10)
    assert result.rbms[0].visible_units == "gaussian"
    errors = [line["reconstruction_error"] for line in result.lines if line["layer"] == 1]
    assert errors[-1] < errors[0]
    torch.testing.assert_close(model.biases()[-1].detach(), result.rbms[0].b_v)


@pytest.mark.parametrize("kind", ["array", "problem", "float64"])
def test_forms_of_data(kind: str) -> None:
    x, model = images(), net()
    if kind == "array":
        given: Any = x.double().numpy()
    elif kind == "problem":

        class Fixed:
            def all_cases(self, dtype: torch.dtype = torch.float32) -> hf.Batch:
                return hf.Batch(x.to(dtype), x.to(dtype))

        given = Fixed()
    else:
        given, model = x.double(), net(dtype=torch.float64)
    result = hf.pretrain(model, given, **SMALL)
    assert result.rbms[0].theta.dtype == model.matrices()[0].dtype
    if kind != "float64":
        other = net()
        hf.pretrain(other, x, **SMALL)
        assert torch.equal(model.matrices()[0], other.matrices()[0])


def test_a_validation_part_has_a_free_energy() -> None:
    x = images(60)
    data = hf.data.Dataset("made up", x[:40], x[:1], x[40:], (3, 4), 2, "Made up.")
    line = hf.pretrain(net(), data, **SMALL).lines[-1]
    assert np.isfinite(line["validation_free_energy"])
    assert "validation_free_energy" not in hf.pretrain(net(), x, **SMALL).lines[-1]


# ---- run folders


@pytest.mark.parametrize("at", [1, 4, 9])
def test_killed_and_resumed_it_is_the_same(tmp_path: Path, at: int) -> None:
    """In a layer, between layers, before the last checkpoint; with checkpoints of two epochs."""
    whole, model = net(), net()
    want = hf.pretrain(whole, images(), run_dir=tmp_path / "whole", **SMALL)

    def kill(line: dict[str, Any]) -> None:
        if line["iteration"] == at:
            raise Killed

    options = {**SMALL, "run_dir": tmp_path / "run", "checkpoint_every": 2}
    with pytest.raises(Killed):
        hf.pretrain(model, images(), report=kill, **options)
    result = hf.pretrain(model, images(), resume=True, **options)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), whole.parameters(), strict=True)
    )
    assert timeless(result.lines) == timeless(want.lines)
    logged = hf.training.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert timeless(logged) == timeless(want.lines)
    again = net(5)
    done = hf.pretrain(again, images(), resume=True, **options)
    assert timeless(done.lines) == timeless(want.lines)
    assert torch.equal(again.matrices()[0], whole.matrices()[0])


def test_ctrl_c_ends_it_after_the_epoch(tmp_path: Path) -> None:
    def interrupt(line: dict[str, Any]) -> None:
        if line["iteration"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    model, untouched = net(), net()
    result = hf.pretrain(model, images(), run_dir=tmp_path / "run", report=interrupt, **SMALL)
    assert result.reason == "interrupted"
    assert len(result.lines) == 4
    assert torch.equal(model.matrices()[0], untouched.matrices()[0])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 4
    assert hf.pretrain(
        model, images(), run_dir=tmp_path / "run", resume=True, **SMALL
    ).reason == "finished"  # fmt: skip


def test_a_folder_of_another_stack(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hf.pretrain(net(), images(), run_dir=folder, **SMALL)
    with pytest.raises(RunFolderError, match="already holds a run"):
        hf.pretrain(net(), images(), run_dir=folder, **SMALL)
    with pytest.raises(ConfigMismatchError, match="seed"):
        hf.pretrain(net(), images(), run_dir=folder, resume=True, seed=1, **SMALL)
    with pytest.raises(ConfigMismatchError, match="sha256"):
        hf.pretrain(net(), images() * 0.5, run_dir=folder, resume=True, **SMALL)


# ---- refusals


def test_weights_that_diverge() -> None:
    """By their epoch and rate, before any number overflows; the net stays as it was."""
    x = torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    model, untouched = net(), net()
    with pytest.raises(
        ValueError, match=r"learning_rate: got 30 for layer 1 \(12-7\), whose weights diverged in e"
    ):
        hf.pretrain(model, x, visible="gaussian", learning_rate=30.0, epochs=30, batch_size=10)
    assert torch.equal(model.matrices()[0], untouched.matrices()[0])
    with pytest.raises(ValueError, match=r"for layer 3 \(5-2\), whose weights diverged"):
        hf.pretrain(net(), images(), learning_rate=(0.1, 0.1, 50.0), epochs=30, batch_size=10)


ONES: dict[str, Any] = {"autoencoder": net, "data": images}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"autoencoder": hf.MLP([12, 2, 12], ["linear"] * 2)}, TypeError, "autoencoder: got MLP"),
        ({"autoencoder": hf.Autoencoder([12, 5, 2], activation="tanh")}, ValueError,
         "autoencoder: layer 1 is tanh, need logistic or linear"),
        ({"data": torch.rand(5, 11)}, ValueError, r"data: got shape \[5, 11\], need \[N,12\]"),
        ({"data": torch.rand(0, 12)}, ValueError, "N: got 0, need at least 1"),
        ({"data": torch.rand(5, 12).double()}, TypeError, "data: got torch.float64"),
        ({"data": torch.rand(5, 12).to_sparse()}, TypeError, "data: got layout"),
        ({"data": [1.0]}, TypeError, "data: got list, need images"),
        ({"data": torch.full((5, 12), float("nan"))}, ValueError, "data: holds NaN or Inf"),
        ({"data": torch.full((5, 12), 2.0)}, ValueError,
         "visible: got 'bernoulli', but data goes from 2 to 2"),
        ({"validation": torch.full((5, 12), -0.5)}, ValueError, "but validation goes from -0.5"),
        ({"validation": torch.rand(5, 3)}, ValueError, r"validation: got shape \[5, 3\]"),
        ({"visible": "binary"}, ValueError, "visible: got 'binary', need one of"),
        ({"epochs": (1, 2)}, ValueError, "epochs: got 2 values, need one, or 3"),
        ({"epochs": -1}, ValueError, "epochs: got -1"),
        ({"epochs": 1.5}, TypeError, "epochs: got float"),
        ({"epochs": "many"}, TypeError, "epochs: got 'many'"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate: got 0.0"),
        ({"learning_rate": (0.1,)}, ValueError, "learning_rate: got 1 values"),
        ({"momentum": 1.0}, ValueError, "momentum: got 1.0, need 0 ≤ momentum < 1"),
        ({"initial_momentum": -0.1}, ValueError, "initial_momentum: got -0.1"),
        ({"initial_epochs": -1}, ValueError, "initial_epochs: got -1"),
        ({"weight_cost": float("nan")}, ValueError, "weight_cost: got nan"),
        ({"scale": -1}, ValueError, "scale: got -1"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"resume": True}, ValueError, "resume: got True without run_dir"),
        ({"resume": 1}, TypeError, "resume: got int"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every: got 0"),
        ({"keep_checkpoints": 0}, ValueError, "keep_checkpoints: got 0"),
        ({"report": 3}, TypeError, "report: got int, need a function"),
        ({"run_dir": 3}, TypeError, "run_dir: got int, need a path"),
    ],
)  # fmt: skip
def test_refusals(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    made = {name: make() for name, make in ONES.items()}
    with pytest.raises(error, match=message):
        hf.pretrain(**{**made, "epochs": 1, **changes})


def test_machines_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"rbms: got sizes \[\(12, 7\), \(6, 5\)\], need"):
        unroll_(net(), [RBM(12, 7), RBM(6, 5)])
