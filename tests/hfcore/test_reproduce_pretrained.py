"""``hfcore reproduce``: columns of Martens (2010), table 2, that start from pre-trained nets."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import command_line
import hfcore as hf
from command_line import table_of
from hfcore.cli.tables import number
from hfcore.data import Dataset, curves
from hfcore.experiments.commands import autoencoders as command_module
from hfcore.experiments.experiment import Experiment, Method
from hfcore.experiments.fig2 import levels, seconds_to
from hfcore.experiments.published import (
    MARTENS2010_COLUMNS,
    MARTENS2010_TABLE2,
    TABLE1,
)
from hfcore.experiments.training import Trained
from hfcore.experiments.weight_penalty import WeightPenalty
from hfcore.presets import AutoencoderPreset
from hfcore.training.run_folder import RunFolder

SMALL = ["--iterations", "1", "--pretrain-epochs", "2", "--quiet", "--threads", "1"]
TABLE = ["martens2010-table2", *SMALL, "--columns", "pt-ncg,rand-hf,pt-hf", "--dataset"]

invoke = partial(command_line.invoke, "reproduce")


def tiny_data(name: str) -> Dataset:
    if name == "curves":
        return curves(40, 12, seed=1)
    images = torch.rand(60, 784, generator=torch.Generator().manual_seed(0))
    return Dataset(name, images[:40], images[40:], None, (28, 28), 3, f"{name} made up.")


def preset_of(name: str) -> AutoencoderPreset:
    published = hf.presets.autoencoders[name]
    options = {**published.optimiser, "cg_max_iter": 6}
    return AutoencoderPreset((784, 6, 3), published.loss, 2, options, published.starred_l2)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(hf.presets.autoencoders):
        monkeypatch.setitem(hf.presets.autoencoders, name, preset_of(name))
    monkeypatch.setattr(command_module, "load", lambda name, folder=None: tiny_data(name))
    # Plots of every run are drawn in other tests, and take longer than these runs.
    monkeypatch.setattr(RunFolder, "draw", lambda self, *, solved_below: ())


def rows_of(text: str) -> dict[str, list[str]]:
    return {first: rest for first, *rest in table_of(text)}


def test_three_columns_beside_the_published_ones(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke(*TABLE, "curves", "--run-dir", folder)
    assert result.exit_code == 0, result.output
    rows = rows_of(result.output)
    found = json.loads((folder / "table2_curves.json").read_text())
    names = {"PT+NCG": "pt-ncg", "RAND+HF": "hf", "PT+HF": "pt-hf"}
    for column, (train, test) in {
        "PT+NCG": ("0.74", "0.82"), "RAND+HF": ("0.11", "0.2"), "PT+HF": ("0.1", "0.21")
    }.items():  # fmt: skip
        assert rows[f"{column}, published (Martens (2010), table 2)"][:2] == [train, test]
        method = found["methods"][names[column]]
        last = method["iterations"][-1]
        row = rows[f"{column}, here (iterations)"]
        assert row[:3] == [number(last["train_error"]), number(last["test_error"]), "1"]
        assert row[3] == number(method["pretraining_seconds"] + last["training_seconds"])
    # Both pre-trained columns begin with the same net, the other with another one.
    start = {k: m["iterations"][0]["train_error"] for k, m in found["methods"].items()}
    assert start["pt-ncg"] == start["pt-hf"] != start["hf"]
    assert found["methods"]["hf"]["pretraining_seconds"] == 0
    assert found["methods"]["pt-hf"]["pretraining_seconds"] > 0
    loss = found["methods"]["pt-hf"]["iterations"][0]["train_loss"]
    assert f"After pre-training: loss {number(loss)}" in result.output
    stored = json.loads((folder / "pretraining" / "config.json").read_text())
    assert [layer["epochs"] for layer in stored["pretraining"]["layers"]] == [2, 2]


def test_stopped_in_the_pre_training_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(line: dict[str, Any]) -> None:
        if line["iteration"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "run"
    arguments = [*TABLE, "curves", "--columns", "pt-hf", "--run-dir", folder]
    with monkeypatch.context() as patched:
        patched.setattr(command_module, "_say_epoch", interrupt)
        stopped = invoke(*(a for a in arguments if a != "--quiet"))
    assert stopped.exit_code == 130, stopped.output
    assert f"continue with the same command and: --run-dir {folder} --resume" in stopped.output
    assert not (folder / "pt-hf").exists()
    resumed = invoke(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert rows_of(resumed.output)["PT+HF, here (iterations)"][2] == "1"
    lines = hf.training.read_metrics(folder / "pretraining" / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]


def test_faces_have_gaussian_visible_units(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*TABLE, "faces", "--columns", "pt-hf", "--early-stopping", "1"]
    result = invoke(*arguments, "--run-dir", folder)
    assert result.exit_code == 0, result.output
    layers = json.loads((folder / "pretraining" / "config.json").read_text())["pretraining"]
    assert layers["layers"][0]["visible_units"] == "gaussian"
    lines = hf.training.read_metrics(folder / "pretraining" / "metrics.jsonl")
    assert "validation_free_energy" in lines[-1]  # of the part that is held out
    assert rows_of(result.output)["PT+NCG, published (Martens (2010), table 2)"][:2] == ["–", "124"]
    assert "PT+HF, published (Martens (2010), table 2)" not in rows_of(result.output)


@pytest.mark.parametrize("column", ["rand-hf", "pt-ncg"])
def test_starred_runs_penalise_connection_weights_alone(column: str) -> None:
    """Weights shrink and biases do not: with an enormous penalty the biases fit the mean."""
    data = tiny_data("mnist")
    experiment = Experiment(data, preset_of("mnist"), l2=1e4, weights_alone=True)
    method, start = Method.parse(column), None
    if method.pretrained:
        start = hf.pretrain(experiment.net(), data, epochs=1)
    training = experiment.training(method, start)
    x = data.train

    def closure() -> Tensor:
        training.optimizer.zero_grad()
        s = training.model(x)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(s, x, reduction="sum") / len(x)
        loss.backward()
        return loss

    for _ in range(8):
        training.optimizer.step((x, x) if method.name == "hf" else closure)  # type: ignore[arg-type]
    weights = [p for p in training.model.parameters() if p.ndim == 2]
    assert max(float(w.detach().abs().max()) for w in weights) < 1e-2
    with torch.no_grad():
        torch.testing.assert_close(
            training.model(x).sigmoid(), x.mean(0).expand_as(x), rtol=0, atol=0.02
        )


def test_the_penalty_is_in_loss_gradient_and_curvature() -> None:
    """Against autograd and the dense matrix of the plain objective, in float64."""
    draw = torch.Generator().manual_seed(0)
    model = hf.MLP([3, 4, 2], ["tanh", "linear"], dtype=torch.float64, generator=draw)
    x, y = (torch.randn(5, n, dtype=torch.float64, generator=draw) for n in (3, 2))
    loss, l2 = hf.losses.SquaredError(), 0.3
    objective, plain = WeightPenalty(model, loss, l2), hf.objective_for(model, loss)
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    is_weight = torch.cat(
        [
            torch.full((p.numel(),), float(p.ndim == 2), dtype=torch.float64)
            for p in model.parameters()
        ]
    )
    data = objective.prepare(hf.Batch(x, y))
    penalty = 0.5 * l2 * float((is_weight * theta**2).sum())
    assert objective.loss(data, theta) == pytest.approx(plain.loss(data, theta) + penalty)
    value, gradient = objective.gradient(data, theta)
    assert value == pytest.approx(objective.loss(data, theta))
    torch.testing.assert_close(
        gradient, plain.gradient(data, theta)[1] + l2 * is_weight * theta, rtol=1e-12, atol=1e-14
    )
    curved, flat = objective.curvature(data, theta), plain.curvature(data, theta)
    assert curved.loss == pytest.approx(value)
    for v in torch.eye(len(theta), dtype=torch.float64)[::3]:
        want = flat.product(v, damping=0.1) + l2 * is_weight * v
        torch.testing.assert_close(curved.product(v, damping=0.1), want, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(
            curved.product(v, damping=0.1, out=torch.full_like(v, torch.nan)), want,
            rtol=1e-12, atol=1e-14,
        )  # fmt: skip
    assert torch.equal(
        objective.squared_gradients(data, theta), plain.squared_gradients(data, theta)
    )


# ---- small pieces


@pytest.mark.parametrize(
    ("text", "name", "column"),
    [
        ("hf", "hf", "RAND+HF"),
        ("rand-hf", "hf", "RAND+HF"),
        (" pt-hf ", "pt-hf", "PT+HF"),
        ("pt-ncg", "pt-ncg", "PT+NCG"),
        ("rand-ncg", "ncg", "RAND+NCG"),
        ("pt-adam=0.002", "pt-adam=0.002", "pt-adam=0.002"),
    ],
)
def test_names_of_methods(text: str, name: str, column: str) -> None:
    method = Method.parse(text)
    assert (str(method), method.column) == (name, column)
    assert Method.parse(str(method)) == method


def test_bad_methods() -> None:
    for text in ("pt-lbfgs", "pt-", "pt-ncg=0.1", "pt-adam=-1"):
        with pytest.raises(ValueError, match="method: got"):
            Method.parse(text)
    experiment = Experiment(tiny_data("mnist"), preset_of("mnist"))
    with pytest.raises(ValueError, match="pt-hf needs a pre-training that has finished"):
        experiment.training(Method.parse("pt-hf"))
    started = hf.pretrain(experiment.net(), experiment.dataset, epochs=0)
    with pytest.raises(ValueError, match="pt-hf needs a pre-training that has finished"):
        experiment.training(Method.parse("pt-hf"), replace(started, reason="interrupted"))


def made_up(errors: list[float], before: float = 0.0) -> Trained:
    """A run of two seconds an iteration."""
    lines = [
        {"iteration": i, "train_error": e, "training_seconds": 2.0 * i}
        for i, e in enumerate(errors)
    ]
    return Trained("iterations", lines, len(errors) - 1, before)


def test_figure_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command asks for the three columns, and puts seconds beside levels of error."""
    folder, asked = tmp_path / "run", []
    folder.mkdir()
    errors = {"pt-ncg": [9.0, 0.9], "hf": [300.0, 40.0, 4.0, 0.4], "pt-hf": [9.0, 0.4]}

    def run_all(self: Any, experiment: Experiment, methods: list[Method]) -> dict[Method, Trained]:
        asked.extend(map(str, methods))
        return {m: made_up(errors[str(m)], 10.0 if m.pretrained else 0.0) for m in methods}

    monkeypatch.setattr(command_module._Autoencoders, "run_all", run_all)
    drawn = invoke("fig2", *SMALL, "--run-dir", folder)
    assert drawn.exit_code == 0, drawn.output
    assert asked == list(errors)
    table = table_of(drawn.output)
    assert table[0] == ["train error below", *MARTENS2010_COLUMNS]
    rows = {first: rest for first, *rest in table[2:]}
    assert rows["5"] == ["12", "4", "12"]
    assert rows["0.5"] == ["–", "6", "12"]
    assert rows["100"] == ["10", "2", "10"]
    assert "PT+NCG 0.9 after 12 s (1 iterations)" in drawn.output
    assert "The 10 seconds of pre-training count for PT." in drawn.output
    assert (folder / "fig2.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((folder / "fig2.json").read_text())
    assert found["methods"]["pt-hf"]["pretraining_seconds"] == 10.0


def test_seconds_and_levels_of_figure_2() -> None:
    result = made_up([300.0, 40.0, 12.0, 9.0], before=10.0)
    assert levels([result]) == [200.0, 100.0, 50.0, 20.0, 10.0]
    assert [seconds_to(result, x) for x in (200.0, 50.0, 10.0, 9.0)] == [12.0, 12.0, 16.0, None]
    assert result.seconds == 16.0


def test_the_published_table_is_that_of_the_paper() -> None:
    assert set(MARTENS2010_TABLE2.numbers) == {"curves", "mnist", "mnist*", "faces", "faces*"}
    # HF* of Sutskever et al. (2013) quotes two of them, rounded.
    assert MARTENS2010_TABLE2.get("curves", "RAND+HF/train") == TABLE1.get("curves", "HF*")
