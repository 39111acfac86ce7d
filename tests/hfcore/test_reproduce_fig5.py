"""``hfcore reproduce fig5``: the stored quadratic, CG and NAG on it."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hfcore as hf
from command_line import invoke
from hfcore.cli.tables import number
from hfcore.data import curves
from hfcore.experiments import fig5
from hfcore.experiments.commands import fig5 as command_module
from hfcore.experiments.commands import training as training_module
from hfcore.experiments.experiment import HF, Experiment, Method
from hfcore.experiments.quadratic import Krylov, Quadratic, QuadraticSettings, lanczos
from hfcore.experiments.report import describe
from hfcore.minibatches import FullGradient
from hfcore.presets import AutoencoderPreset
from hfcore.schedules import Constant, Nesterov
from hfcore.solvers.conjugate_gradient import StopRule, conjugate_gradient
from hfcore.training import CheckpointError, Limits

PNG = b"\x89PNG\r\n\x1a\n"
TINY = ["reproduce", "fig5", "--iterations", "2", "--cg-iterations", "9", "--quiet"]
TINY += ["--threads", "1"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**hf.presets.martens2010_curves, "cg_max_iter": 5}
    preset = AutoencoderPreset((784, 4, 2), hf.losses.LogisticCrossEntropy(), 3, options)
    monkeypatch.setitem(hf.presets.autoencoders, "curves", preset)
    monkeypatch.setattr(command_module, "load", lambda name: curves(40, 5, seed=1))


def matrix(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    A = Q @ torch.diag(torch.logspace(-2, 1, size, dtype=torch.float64)) @ Q.mT
    return A, torch.randn(size, generator=generator, dtype=torch.float64)


# ---- the Krylov space


def test_minima_over_the_krylov_space_are_those_of_cg() -> None:
    A, g = matrix(30)
    krylov = lanczos(lambda v: A @ v, g, 12)
    rule = StopRule(max_iterations=12, min_iterations=12, tolerance=0.0)
    direct = conjugate_gradient(
        lambda v, out: torch.mv(A, v, out=out), -g, torch.zeros_like(g), rule=rule
    )
    assert direct.iterations == 12
    np.testing.assert_allclose(krylov.minima(), direct.history, rtol=1e-9)


@pytest.mark.parametrize("momentum", [Constant(0.0), Constant(0.9), Nesterov()])
@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_nag_in_the_krylov_space_is_nag(momentum: Any, rate: float) -> None:
    """Eqs. 3-4 on the dense matrix, and hf.NAG where μ is constant."""
    A, g = matrix(30)
    krylov = lanczos(lambda v: A @ v, g, 12)
    x, v, expected = torch.zeros_like(g), torch.zeros_like(g), [0.0]
    for t in range(12):
        v = momentum(t) * v - rate * (A @ (x + momentum(t) * v) + g)
        x = x + v
        expected.append(float(0.5 * x @ A @ x + g @ x))
    np.testing.assert_allclose(krylov.nag(rate, momentum), expected, rtol=1e-9)


def test_a_space_that_is_whole_ends_the_process() -> None:
    A, g = matrix(6)
    krylov = lanczos(lambda v: A @ v, g, 20)
    assert len(krylov.diagonal) == 6
    assert krylov.largest == pytest.approx(10.0)
    best = -0.5 * float(g @ torch.linalg.solve(A, g))
    assert krylov.minima()[-1] == pytest.approx(best)
    same = lanczos(lambda v: 3 * v, g, 20)
    assert same.diagonal == pytest.approx([3.0])
    assert same.asked == 20
    with pytest.raises(ValueError, match="gradient: has norm 0"):
        lanczos(lambda v: v, torch.zeros(3), 2)


# ---- the quadratic


def test_the_stored_quadratic_is_that_of_the_next_step(tmp_path: Path) -> None:
    preset = hf.presets.autoencoders["curves"]
    experiment = Experiment(curves(40, 5, seed=1), preset, seed=3)
    run = experiment.training(Method(HF))
    run(tmp_path / "run", Limits(iterations=2))
    fig5.quadratic_of(experiment, run, 2).save(tmp_path / "q.safetensors")
    quadratic = Quadratic.load(tmp_path / "q.safetensors", torch.device("cpu"))
    images = experiment.dataset.train
    batches = FullGradient(images, images, curvature_batches=3, seed=3)(2)
    assert isinstance(batches.curvature, hf.Batch)
    assert torch.equal(quadratic.images, batches.curvature.inputs)
    damping = run.optimizer.param_groups[0]["damping"]
    expected = hf.GaussNewton(
        run.model, preset.loss, quadratic.images, quadratic.images, damping=damping, l2=2e-5
    )
    v = torch.randn(expected.shape[0], generator=torch.Generator().manual_seed(0))
    assert torch.equal(quadratic.operator() @ v, expected @ v)
    s = run.model(images)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(s, images, reduction="sum")
    theta = torch.nn.utils.parameters_to_vector(run.model.parameters())
    objective = loss / len(images) + 0.5 * 2e-5 * theta.square().sum()
    parts = torch.autograd.grad(objective, list(run.model.parameters()))
    gradient = torch.cat([p.reshape(-1) for p in parts])
    torch.testing.assert_close(quadratic.gradient, gradient, rtol=1e-4, atol=1e-5)
    stats = run.optimizer.step(batches)
    assert stats.damping == quadratic.settings.damping


def test_cg_on_the_quadratic_is_run_in_its_arithmetic() -> None:
    """CG as an HF step runs it: φ is that of its iterates, and float32 falls behind float64."""
    experiment = Experiment(curves(60, 5, seed=1), hf.presets.autoencoders["curves"], seed=3)
    model = experiment.training(Method(HF)).model
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    g = 1e-2 * torch.randn(len(theta), generator=torch.Generator().manual_seed(1))
    settings = QuadraticSettings("curves", 2, 1e-6, 2e-5, 3)
    quadratic = Quadratic(settings, theta, g, experiment.dataset.train)
    told: list[int] = []
    single = quadratic.conjugate_gradient(60, report=told.append)
    double = quadratic.to(torch.float64).conjugate_gradient(60)
    assert told == list(range(1, 61))
    exact = lanczos(quadratic.to(torch.float64).operator().matvec, g.double(), 60).minima()
    # Nothing is below the minimum over the space, but for float32's own digits.
    assert (double >= exact * (1 + 1e-9)).all()
    assert (single >= exact * (1 + 1e-4)).all()
    np.testing.assert_allclose(double[:5], exact[:5], rtol=1e-9)
    np.testing.assert_allclose(single[:3], exact[:3], rtol=1e-4)
    assert single[-1] > double[-1] > exact[-1]
    # φ of textbook CG's second iterate.
    A, b = quadratic.to(torch.float64).operator(), -g.double()
    first = (b @ b) / (b @ (A @ b)) * b
    r = b - A @ first
    p = r + (r @ r) / (b @ b) * b
    second = first + (r @ r) / (p @ (A @ p)) * p
    phi = [float(0.5 * x @ (A @ x) - b @ x) for x in (first, second)]
    np.testing.assert_allclose(double[1:3], phi, rtol=1e-10)


@pytest.mark.parametrize("content", [b"", b"not a safetensors file"])
def test_broken_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="holds no quadratic"):
        Quadratic.load(path, torch.device("cpu"))
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="holds no quadratic"):
        Quadratic.load(path, torch.device("cpu"))
    with pytest.raises(CheckpointError, match="holds no Krylov space"):
        Krylov.load(path)


# ---- the command


def test_the_values_are_printed_and_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke(*TINY, "--run-dir", folder)
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "fig5.json").read_text())
    lines = [line for line in result.output.splitlines() if line.startswith("| ")]
    rows = [line.strip("| ").split(" | ") for line in lines]
    assert [row[0] for row in rows[:6]] == ["iterations", "---", "1", "2", "5", "9"]
    assert list(found["cg"]) == ["float32", "float64", "exact"]
    real, exact = found["cg"]["float32"], found["cg"]["exact"]
    for phi in found["cg"].values():
        assert len(phi) == 10
        assert phi[0] == 0.0
        rounding = 1e-6 * abs(phi[-1])
        assert all(b <= a + rounding for a, b in itertools.pairwise(phi))
    for row in rows[2:6]:
        i = int(row[0])
        assert row[1:4] == [number(phi[i]) for phi in found["cg"].values()]
        best = min(trial["phi"][i] for trial in found["nag"])
        assert row[5] == number(best)
        assert best >= exact[i] * (1 + 1e-9)  # the best in the Krylov space
        assert row[6:8] == [f"{100 * best / phi[i]:.1f} %" for phi in (real, exact)]
    assert len(found["nag"]) == len(fig5.MOMENTA) * len(fig5.MULTIPLES)
    assert (folder / "fig5.png").read_bytes().startswith(PNG)
    assert (folder / "fig5.md").read_text().strip() in result.output
    # Resumed, nothing is computed again.
    files = [folder / name for name in ("krylov.safetensors", "cg.safetensors")]
    stored = [file.stat().st_mtime_ns for file in files]
    again = invoke(*TINY, "--run-dir", folder, "--resume")
    assert again.output == result.output
    assert [file.stat().st_mtime_ns for file in files] == stored
    files[1].write_bytes(b"not a safetensors file")
    broken = invoke(*TINY, "--run-dir", folder, "--resume")
    assert broken.exit_code == 1
    assert "cg.safetensors: holds no curves" in broken.output


def test_stopped_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = invoke(*TINY, "--run-dir", tmp_path / "whole")

    def interrupted(line: dict[str, Any]) -> str:
        if line["iteration"] == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return describe(line)

    loud = [a for a in TINY if a != "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(training_module, "describe", interrupted)
        stopped = invoke(*loud, "--run-dir", tmp_path / "run")
    assert stopped.exit_code == 130
    assert f"--run-dir {tmp_path / 'run'} --resume" in stopped.output
    resumed = invoke(*TINY, "--run-dir", tmp_path / "run", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert resumed.output.replace("/run/", "/whole/") == whole.output


def test_other_iterations_in_the_folder(tmp_path: Path) -> None:
    assert invoke(*TINY, "--run-dir", tmp_path / "run").exit_code == 0
    more = invoke(*TINY, "--iterations", "3", "--run-dir", tmp_path / "run", "--resume")
    assert more.exit_code == 1
    assert "is the quadratic after 2 iterations, need 3" in more.output
    assert (
        invoke(*TINY, "--cg-iterations", "4", "--run-dir", tmp_path / "run", "--resume").exit_code
        == 0
    )
    assert "--resume needs --run-dir" in invoke("reproduce", "fig5", "--resume").output
