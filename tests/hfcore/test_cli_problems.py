"""``hfcore train``: every problem with its options, and every initialisation."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hfcore as hf
from command_line import invoke

TINY = ["--length", "6", "--hidden", "6", "--batch-size", "16", "--test-size", "40", "--quiet"]
TINY += ["--solved-below", "0", "--minibatches", "0.3"]
SGD = ["--optimizer", "sgd", "--lr", "0.01"]
MOMENTUM = [*SGD, "--momentum", "0.9", "--nesterov"]


def config(folder: Path, *arguments: str) -> dict[str, Any]:
    """config.json of a run that ends well."""
    result = invoke("train", *arguments, *TINY, "--run-dir", str(folder))
    assert result.exit_code == 0, result.output
    stored: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return stored


@pytest.mark.parametrize(
    ("problem", "options", "stored"),
    [
        ("addition", ["--target", "sum", "--centre"], {"target": "sum", "centre": True}),
        ("addition", [], {"target": "mean", "centre": False, "tolerance": 0.04}),
        ("multiplication", ["--centre", *MOMENTUM], {"centre": True}),
        ("memorization-5bit", ["--scored", "recall"], {"scored": "recall", "centre": False}),
        ("memorization-20bit", ["--centre", *SGD], {"scored": "all", "centre": True}),
        ("memorization-5bit", ["--layout", "martens2011"], {"layout": "martens2011"}),
        ("temporal-order-2bit", [], {"centre": False, "mixed_lengths": True}),
        ("xor", ["--mixed-lengths", *SGD], {"mixed_lengths": True}),
        ("random-permutation", ["--scored", "all"], {"scored": "all", "symbols": 100}),
    ],
)
def test_options_reach_the_problem(
    tmp_path: Path, problem: str, options: list[str], stored: dict[str, Any]
) -> None:
    found = config(tmp_path / "run", problem, *options)["problem"]
    assert found["name"] == problem
    assert found["length"] == 6
    assert {key: found[key] for key in stored} == stored


@pytest.mark.parametrize("options", [["--one-length"], SGD], ids=["asked for", "first-order"])
def test_one_length_for_all_of_a_batch(tmp_path: Path, options: list[str]) -> None:
    """What is not said in the configuration, so that runs from before there was a choice resume."""
    assert "mixed_lengths" not in config(tmp_path / "run", "xor", *options)["problem"]


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        ([], {"init": "sparse", "init_scale": 1.0}),
        (["--init", "glorot", "--init-scale", "0.5"], {"init": "glorot", "init_scale": 0.5}),
        (["--sparse-inputs"], {"init": "sparse", "init_scale": 1.0, "sparse_inputs": True}),
        (["--init", "esn"], {"init": "esn", "input_scale": 0.1, "spectral_radius": 1.1}),
        (
            ["--init", "esn", "--input-scale", "0.3", "--spectral-radius", "0.9"],
            {"init": "esn", "input_scale": 0.3, "spectral_radius": 0.9},
        ),
    ],
)
def test_the_initialisation_is_noted(
    tmp_path: Path, options: list[str], notes: dict[str, Any]
) -> None:
    assert config(tmp_path / "run", "memorization-5bit", *SGD, *options)["notes"] == notes


def test_the_input_scale_is_the_problems(tmp_path: Path) -> None:
    stored = config(tmp_path / "run", "multiplication", *SGD, "--init", "esn")
    assert stored["notes"]["input_scale"] == 0.001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["multiplication", "--target", "sum"], "got option 'target', need length, tolerance"),
        (["addition", "--scored", "all"], "got option 'scored', need length, target, tolerance"),
        (["memorization-5bit", "--length", "0"], "length: got 0, need at least 1"),
        (["memorization"], "got 'memorization', need one of addition, "),
        (["addition", "--init", "esn", "--init-scale", "2"], "--init-scale has no meaning with --"),
        (["addition", "--input-scale", "2"], "--input-scale has no meaning with --init sparse"),
        (
            ["addition", "--init", "glorot", "--spectral-radius", "1"],
            "--spectral-radius has no meaning with --init glorot",
        ),
        (
            ["addition", "--init", "esn", "--spectral-radius", "-1"],
            "--init esn: spectral_radius: got -1.0",
        ),
        (["addition", "--init", "esn", "--input-scale", "nan"], "--init esn: input_scale: got nan"),
        (["xor", "--init", "esn", "--sparse-inputs"], "--sparse-inputs has no meaning with --init"),
        (["curves", "--sparse-inputs"], "--sparse-inputs has no meaning with curves"),
        (["xor", "--layout", "martens2011"], "got option 'layout', need length, centre"),
        (["memorization-5bit", "--scored", "last"], "scored: got 'last', need one of 'all'"),
        (
            ["memorization-20bit", "--curvature-batches", "1"],
            "--curvature-batches has no meaning with memorization-20bit",
        ),
    ],
)
def test_wrong_usage_is_told_with_code_2(arguments: list[str], message: str) -> None:
    result = invoke("train", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_the_recipe_of_martens_2010_is_an_option(tmp_path: Path) -> None:
    """Gradient on all images, curvature in turns: the same as hf.train with FullGradient."""
    folder = tmp_path / "run"
    arguments = ["train", "curves", "--images", "24", "--curvature-batches", "3", "--seed", "1"]
    arguments += ["--cg-max-iter", "2", "--iterations", "2", "--test-size", "24", "--quiet"]
    result = invoke(*arguments, "--run-dir", str(folder))
    assert result.exit_code == 0, result.output
    assert "the iterations are spent" in result.output
    config = json.loads((folder / "config.json").read_text())
    policy = hf.minibatches.FullGradient(curvature_batches=3, seed=1)
    assert config["data"]["batches"] == policy.config()
    problem = hf.problems.Reconstruction("curves", images=24)
    model = hf.Autoencoder(problem.encoder_sizes)
    hf.init.sparse_(model, torch.Generator().manual_seed(1), replacement=True)
    options = {**hf.presets.autoencoders["curves"].optimiser, "cg_max_iter": 2}
    opt = hf.HessianFree(model, problem.loss, **options)
    stop = hf.training.Limits(iterations=2)
    hf.train(model, problem, opt, batches=policy, stop=stop, test_size=24, progress=False)
    loaded = hf.load_run(folder).model
    for p, q in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["addition", "--curvature-batches", "2"], "--curvature-batches has no meaning with addi"),
        (
            ["curves", "--curvature-batches", "2", "--optimizer", "nag", "--lr", "0.1"],
            "--curvature-batches has no meaning with --optimizer nag",
        ),
        (
            ["curves", "--curvature-batches", "2", "--images", "9", "--batch-size", "3"],
            "--batch-size has no meaning with --curvature-batches",
        ),
        (["curves", "--curvature-batches", "20", "--images", "9"], "curvature_batches: got 20"),
    ],
)
def test_curvature_batches_speak_to_hf_on_images(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    run_dir = ["--run-dir", str(tmp_path / "run"), "--quiet"]
    result = invoke("train", *arguments, *run_dir)
    assert result.exit_code in (1, 2)
    assert message in result.output


def test_five_bits_are_trained_on_all_of_them(tmp_path: Path) -> None:
    """All 32 sequences are the batch of a Hessian-free step, unless another size is asked for."""
    small = ["--length", "6", "--hidden", "4", "--iterations", "1", "--quiet"]
    result = invoke("train", "memorization-5bit", *small, "--run-dir", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert data["batches"] == hf.minibatches.FullGradient(curvature_batches=1).config()
    stats = hf.training.read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert stats["gradients"] == 1
    assert stats["minibatches"] == (1 + stats["products"]) * 32 / 1000
    stored = config(tmp_path / "drawn", "memorization-5bit")["data"]
    assert stored["batch_size"] == 16


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_of_training_ends_with_a_word(number: int) -> None:
    """A command that is not inside a training loop: here `info`, while it runs."""
    program = (
        "import os, hfcore.cli as cli, hfcore.cli.info as info\n"
        f"cli.info_command.callback = lambda *a, **o: os.kill(os.getpid(), {int(number)})\n"
        "cli.main(['info'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
