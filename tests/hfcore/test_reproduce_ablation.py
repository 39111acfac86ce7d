"""``hfcore reproduce ablation``: one part changed, runs shared, tables, resuming, refusals."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

import hfcore as hf
from command_line import invoke, tables_of
from hfcore.cli.tables import number
from hfcore.data import curves
from hfcore.experiments import ablation_runs
from hfcore.experiments.ablation import (
    ABLATIONS,
    MOMENTUM,
    Outcome,
    Settings,
    run_momentum,
    variants_of,
)
from hfcore.experiments.ablation_report import QUESTIONS, marks
from hfcore.experiments.commands import ablation as command_module
from hfcore.presets import AutoencoderPreset
from hfcore.problems import reconstruction
from hfcore.training import read_metrics

PNG = b"\x89PNG\r\n\x1a\n"
TINY = ["reproduce", "ablation", "--quiet", "--threads", "1", "--iterations", "3", "--hidden", "5"]
TINY += ["--batch-size", "4"]
SWEEP = ["--updates", "40", "--test-every", "10"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**hf.presets.martens2010_curves, "cg_max_iter": 5}
    preset = AutoencoderPreset((784, 4, 2), hf.losses.LogisticCrossEntropy(), 3, options)
    monkeypatch.setitem(hf.presets.autoencoders, "curves", preset)
    monkeypatch.setattr(ablation_runs, "load", lambda name: curves(40, 5, seed=1))
    monkeypatch.setattr(
        reconstruction, "_training_images", lambda name, folder: curves(40, 5, seed=1).train
    )


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def rows_of(output: str) -> list[list[str]]:
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("problem", ["curves", "add-20"])
def test_a_comparison_is_of_options_that_differ(ablation: str, problem: str) -> None:
    assert ablation in QUESTIONS
    if problem != "curves" and ablation in ("rho", "scale"):
        with pytest.raises(ValueError, match=r"of: got .* with add-20, need curves"):
            variants_of(ablation, problem)
        return
    variants = variants_of(ablation, problem)
    assert len(variants) >= 2
    assert len({v.folder for v in variants}) == len(variants)
    if ablation in MOMENTUM:
        return
    assert not variants[0].options
    published = hf.presets.martens2010_curves if problem == "curves" else hf.presets.rnn2011
    for variant in variants[1:]:
        assert variant.rho == "gradient" or {**published, **variant.options} != published
        model = hf.RNN(2, 3, 1) if problem != "curves" else hf.MLP([3, 2], ["linear"])
        hf.HessianFree(model, hf.losses.SquaredError(), **{**published, **variant.options})


def test_work_to_a_mark() -> None:
    run = Outcome("x", [0, 1, 2, 3], [9.0, float("nan"), 3.0, 4.0], [0.0, 1.0, 2.5, 4.0], "")
    assert run.best == 3.0
    assert run.work_to(3.5) == 2.5
    assert run.work_to(9.0) == 0.0
    assert run.work_to(2.0) is None
    other = Outcome("y", range(1, 101), [1.0] * 100, range(1, 101), "")
    assert marks([other]) == [20, 40, 60, 80]
    assert marks([other, run]) == [1, 2]  # of both, without the last


def test_variants_differ_in_one_part_and_share_the_published_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*TINY, "--of", "cg-start,rho", "--run-dir", folder]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "ablation.json").read_text())["ablations"]
    assert list(found) == ["cg-start on curves", "rho on curves"]
    assert sorted(p.name for p in (folder / "curves").iterdir()) == [
        "as-published", "from-zero", "rho-on-all-data", "undecayed",
    ]  # fmt: skip
    base = config_of(folder / "curves" / "as-published")
    for name, value in (("from-zero", 0.0), ("undecayed", 1.0)):
        changed = config_of(folder / "curves" / name)
        assert _differing(base, changed) == {"cg_decay": value}
    assert _differing(base, config_of(folder / "curves" / "rho-on-all-data")) == {"rho": "gradient"}
    lines = list(read_metrics(folder / "curves" / "from-zero" / "metrics.jsonl"))
    there = found["cg-start on curves"][1]
    assert there["variant"] == "from zero"
    assert there["errors"] == [line["train_error"] for line in lines]
    assert there["cg"] == lines[-1]["cg_total"]
    assert there["work"][-1] == lines[-1]["minibatches"]
    rows = [row for row in rows_of(result.output) if row[0] == "from zero"]
    assert rows[0][-3:-1] == [number(there["cg"]), number(there["rejected"])]
    assert (folder / "ablation.png").read_bytes().startswith(PNG)
    more = invoke(*arguments, "--resume", "--iterations", "4")
    assert more.exit_code == 0, more.output
    longer = json.loads((folder / "ablation.json").read_text())["ablations"]
    assert longer["cg-start on curves"][1]["errors"][:4] == there["errors"]
    assert len(longer["cg-start on curves"][1]["errors"]) == 5


def _differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What defines run b and is another in a, wherever it stands."""
    found: dict[str, Any] = {}
    for key, value in b.items():
        if key in ("run", "environment"):
            continue
        if isinstance(value, dict):
            found |= _differing(a.get(key, {}), value)
        elif a.get(key) != value:
            found[key] = value
    return found


def test_momentum_is_lowered_for_a_share_of_the_updates(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke(*TINY, *SWEEP, "--of", "momentum", "--run-dir", folder)
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "ablation.json").read_text())["ablations"]
    lowered = [o["variant"] for o in found["momentum on curves"]]
    assert lowered == ["never lowered", "last twentieth", "last half", "from the start"]
    assert [o["at"] for o in found["momentum on curves"]] == [[10, 20, 30, 40]] * 4
    configs = [config_of(folder / "curves" / name.replace(" ", "-")) for name in lowered]
    assert [c["training"].get("final_updates", 0) for c in configs] == [0, 2, 20, 40]
    assert all(c["sweep"]["0"]["method"] == "nag" for c in configs)


def test_starts_are_scaled(tmp_path: Path) -> None:
    problem = hf.problems.Reconstruction("curves")
    settings = Settings(updates=4, learning_rate=1e-6)
    errors = [
        run_momentum(
            variant, problem, settings, tmp_path / variant.folder, resume=False, progress=False
        ).errors[-1]
        for variant in (ABLATIONS["scale"][0], ABLATIONS["scale"][2])
    ]
    for scale, error in zip((1.0, 5.0), errors, strict=True):
        net = hf.AutoencoderStart((784, 400, 200, 100, 50, 25, 6)).build(problem, 0, scale=scale)
        s = net(problem.images).detach()
        at_start = float(problem.errors(s, problem.all_cases()).mean())
        assert error == pytest.approx(at_start, rel=0.02)  # ε is as good as none


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--of", "warmth"], "got 'warmth', need some of curvature"),
        (["--of", "stop,stop"], "need different names"),
        (["--of", "stop", "--problem", "add"], "problem: got 'add', need add-T"),
        (["--of", "scale", "--problem", "add-5"], "of: got 'scale' with add-5, need curves"),
        ([], "Missing option '--of'"),
    ],
)
def test_refusals(arguments: list[str], message: str) -> None:
    result = invoke(*TINY, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_ctrl_c_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = ["--of", "curvature", "--problem", "add-5"]
    whole = invoke(*TINY, *compared, "--run-dir", tmp_path / "whole")
    loud = [a for a in TINY if a != "--quiet"]
    arguments = [*compared, "--run-dir", tmp_path / "run"]

    def interrupting(line: dict[str, Any]) -> None:
        if line["iteration"] == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(command_module, "_tell", interrupting)
        stopped = invoke(*loud, *arguments)
    assert stopped.exit_code == 130
    assert f"--run-dir {tmp_path / 'run'} --resume" in stopped.output
    resumed = invoke(*TINY, *arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert tables_of(resumed.output) == tables_of(whole.output)
    found = json.loads((tmp_path / "run/ablation.json").read_text())["ablations"]
    stored = json.loads((tmp_path / "run/add-5/Fisher/config.json").read_text())
    assert stored["problem"]["mixed_lengths"] is True
    lines = list(read_metrics(tmp_path / "run/add-5/Fisher/metrics.jsonl"))
    assert found["curvature on add-5"][2]["errors"] == [line["loss"] for line in lines]
