"""The parts of bench-gpu that need no GPU, on made-up measurements; and its refusal without one."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from python_process import forked

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def result() -> dict[str, Any]:
    """A forward pass three times as fast as its graphed reference, and a copy-bound update."""
    from bench.gpu.measurements import EAGER, GRAPHED, OURS, Aim, Ceilings, Op, Work, as_json

    ceilings = Ceilings(copy=4e12, float32=50e12, tf32=400e12)
    forward = Op(
        "rnn_forward",
        "B1000-T200-H100",
        Work(bytes=8e7, flops=4e9, steps=200),
        {OURS: [1e-4, 3e-4, 2e-4], EAGER: [8e-3, 6e-3], GRAPHED: [6e-4]},
        (
            Aim("\u00b5s a step", 0.8),
            Aim(f"times faster than {EAGER}", 20, at_least=True),
            Aim(f"times faster than {GRAPHED}", 5, at_least=True),
        ),
        {"JAX": "not installed"},
    )
    update = Op("cg_update", "N1", Work(84e6, 0.0), {OURS: [24e-6]}, (Aim("times the floor", 1.2),))
    made: dict[str, Any] = as_json([forward, update], ceilings, {"gpu": "Made-up GPU"})
    return made


def test_statistics(result: dict[str, Any]) -> None:
    forward, update = result["ops"]
    ours, eager, graphed = forward["rows"]
    assert ours["median_ms"] == pytest.approx(0.2)
    assert (ours["low_ms"], ours["high_ms"]) == pytest.approx((0.15, 0.25))
    assert ours["us_per_step"] == pytest.approx(1.0)
    # floor: max(8e7 B / 4e12 B/s, 4e9 / 50e12) = 80 microseconds, of the GEMM
    assert forward["floor_ms"] == pytest.approx(0.08)
    assert forward["bound_by"] == "float32 GEMM"
    assert ours["share_of_roofline"] == pytest.approx(0.4)
    assert eager["times_ours"] == pytest.approx(35.0)
    assert graphed["times_ours"] == pytest.approx(3.0)
    assert [aim["met"] for aim in forward["aims"]] == [False, True, False]
    assert [aim["measured"] for aim in forward["aims"]] == pytest.approx([1.0, 35.0, 3.0])
    assert update["bound_by"] == "copy"
    assert update["aims"][0]["measured"] == pytest.approx(24e-6 / 21e-6)
    assert update["aims"][0]["met"] is True
    assert update["rows"][0]["us_per_step"] is None


def test_table_shows_every_contestant_and_aim(result: dict[str, Any]) -> None:
    from bench.gpu.measurements import table

    text = table(result)
    assert text.startswith("Made-up GPU; measured in this run: copy 4.00 TB/s, GEMM 50.0 TFLOP/s")
    assert (
        "| rnn_forward | B1000-T200-H100 | hfcore | 0.2000 | 0.1500-0.2500 | 1.00 | 40 % | 1.00 |"
        in text
    )
    assert "| JAX | not run: not installed |" in text
    assert "times faster than reference, eager \u2265 20 | 35 | yes |" in text
    assert "\u00b5s a step \u2264 0.8 | 1 | NO |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| rnn_forward")}
    assert widths == {9, 6}


def test_aim_of_an_absent_contestant_is_not_judged() -> None:
    from bench.gpu.measurements import EAGER, OURS, Aim, Ceilings, Op, Work

    op = Op("x", "y", Work(1.0, 1.0), {OURS: [1.0]}, (Aim(f"times faster than {EAGER}", 2, True),))
    (verdict,) = op.verdicts(Ceilings(1.0, 1.0, 1.0))
    assert (verdict["measured"], verdict["met"]) == (None, None)


def test_json_and_picture(result: dict[str, Any], tmp_path: Path) -> None:
    from bench.gpu.plot import draw_roofline

    again = json.loads(json.dumps(result, allow_nan=False))
    assert again["ops"][0]["seconds"]["hfcore"] == [1e-4, 3e-4, 2e-4]
    assert statistics.median(again["ops"][0]["seconds"]["hfcore"]) == 2e-4
    path = draw_roofline(again, tmp_path / "new" / "roofline.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 10_000


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_refuses_in_one_sentence_without_a_gpu() -> None:
    script = "import runpy, sys\nsys.argv = {}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    programs = [
        script.format(["bench/gpu/run.py"]),
        script.format(["bench/profile/work.py", "fused"]),
        "import pytest\nraise SystemExit(pytest.main(['-q', '-m', 'gpu', 'tests/gpu']))",
    ]
    for done in forked("import torch, hfcore", programs, cwd=ROOT):
        said = (done.stdout + done.stderr).strip().splitlines()
        assert done.returncode == 2, said
        assert sum("needs a CUDA device: torch" in line for line in said) == 1
        assert "Traceback" not in "".join(said)


def test_table_of_kernels(result: dict[str, Any]) -> None:
    from bench.gpu.run import kernel_table

    result["kernels_of_a_product"] = {
        "B1000": {
            "rnn_tangent": {"launches": 1, "median_us": 230.0, "steps": 200, "aim_us_a_step": 1.2},
            "linear_scan": {"launches": 1, "median_us": 180.0, "steps": 200, "aim_us_a_step": 0.8},
            "outer_partials": {"launches": 2, "median_us": 100.0, "steps": 200},
        }
    }
    assert kernel_table(result).splitlines()[2:] == [
        "| B1000 | `rnn_tangent` | 1 | 230.0 | 1.15 | 1.2 met |",
        "| B1000 | `linear_scan` | 1 | 180.0 | 0.90 | 0.8 missed |",
        "| B1000 | `outer_partials` | 2 | 100.0 | 0.50 |  |",
    ]


def test_sweeps_are_projected_from_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import sweeps
    from hfcore.problems import reconstruction

    images = torch.rand(300, 784, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(reconstruction, "_training_images", lambda *_: images)
    small = {name: {**options, "length": 5} for name, options in sweeps.TABLE5.items()}
    monkeypatch.setattr(sweeps, "TABLE5", small)
    monkeypatch.setattr(sweeps, "RATES", [1e-3])
    grid = [{"learning_rate": [1e-3]}, {"learning_rate": [1e-3], "method": ["sgd"]}]
    monkeypatch.setattr(sweeps, "TABLE5_GRID", grid)
    found = sweeps.projections(2, seeds=2, device="cpu")
    sent = [*small, "curves"]
    assert [p.name for p in found] == [*sent, *(f"{name}, on_device" for name in sent)]
    assert [p.runs for p in found] == [4, 4, 4, 4, 1] * 2
    for p in found:
        total = 750_000 if p.name.startswith("curves") else 50_000
        assert p.projected == pytest.approx(p.seconds * total / 2)
        assert p.seconds > 0
    assert "| curves | 1 | 2 |" in sweeps.projection_table(found)


def test_the_table_is_448_runs() -> None:
    from bench.gpu import sweeps
    from hfcore.sweeps.grid import expand

    assert len(sweeps.TABLE5) * len(expand(sweeps.TABLE5_GRID, 4, ())) == 448


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gated_layers_agree_with_their_plain_form(cell: str) -> None:
    """What every contestant is held against, on the CPU."""
    from bench.gpu.gated import Layer, gated_ops
    from bench.gpu.measurements import EAGER, OURS

    benches = gated_ops(Layer(cell, 3, 4, 5, device="cpu"), compiled=False)
    assert [b.name for b in benches] == [
        f"{cell}_{op}" for op in ("forward", "tangent", "backward")
    ]
    for bench in benches:
        assert bench.work.steps == 4
        bench.make[OURS]()()
        bench.make[EAGER]()()
