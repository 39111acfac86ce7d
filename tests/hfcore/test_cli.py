"""The command line: options, errors, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch

import hfcore as hf
from command_line import invoke
from hfcore import presets
from hfcore.bindings import dispatch
from hfcore.cli import main

TINY = ["train", "addition", "--length", "6", "--hidden", "6", "--batch-size", "16"]
TINY += ["--test-size", "40", "--solved-below", "0", "--minibatches", "0.3"]
NAG = ["train", "addition", "--optimizer", "nag"]


NAG = ["train", "addition", "--optimizer", "nag"]


def iterations(folder: Path) -> int:
    return len((folder / "metrics.jsonl").read_text().splitlines())


def test_version() -> None:
    assert invoke("--version").output == f"hfcore, version {hf.__version__}\n"


def test_info_explains_every_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = invoke("info")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    for op in dispatch.OPS:
        on_each = [text for text in lines if f" {op} " in text]
        for device, line in zip(("cpu", "cuda"), on_each, strict=True):
            implementation, reason = dispatch.explain(op, device)
            assert f" {implementation} " in line
            assert reason.split(",")[0] in line
    assert "instruction set" in result.output
    assert "threads" in result.output
    for fact in ("CUDA kernels", "CUDA device", "cupy", "triton"):
        assert fact in result.output


INFO_MODELS = """
import torch
from torch import nn
import hfcore as hf

LOSS = hf.losses.SquaredError()

class Derived(hf.MLP):
    pass

def fused():
    return hf.StackedRNN(2, [3], 1), LOSS, torch.zeros(2, 2, 2), torch.zeros(2, 2, 1)

def torchs():
    return hf.MLP([2, 1], ["linear"]), nn.MSELoss()

def function():
    return hf.MLP([2, 1], ["linear"]), lambda s, t: (s - t).mean()

def derived():
    return Derived([2, 1], ["linear"]), LOSS

def hooked():
    model = hf.RNN(2, 3, 1)
    model.register_forward_hook(lambda m, a, s: s)
    return model, LOSS

def frozen():
    model = hf.MLP([2, 1], ["linear"])
    model.layers[0].bias.requires_grad_(False)
    return model, LOSS

def plain():
    return nn.Linear(2, 1), LOSS

def alone():
    return nn.Linear(2, 1)

def swapped():
    return LOSS, nn.Linear(2, 1)
"""

SERVED = {
    "rnn": ("RnnNet", "an unaltered hf.RNN with a loss of hf.losses"),
    "mlp": ("MlpNet", "an unaltered hf.MLP with a loss of hf.losses"),
    "info_models:fused": ("StackedRnnNet", "an unaltered hf.StackedRNN"),
    "info_models:torchs": ("autograd", "MSELoss, is none of hf.losses; hf.losses.from_torch makes"),
    "info_models:function": ("autograd", "the loss, a function, is none of hf.losses"),
    "info_models:derived": ("autograd", "Derived is derived from hf.MLP, and may compute"),
    "info_models:hooked": ("autograd", "it has a forward hook"),
    "info_models:frozen": ("nothing", "some parameters of the MLP are frozen"),
    "info_models:plain": ("autograd", "no net of hf.nets is made for Linear"),
}


def test_info_says_what_serves_a_model_and_why(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "info_models.py").write_text(INFO_MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    result = invoke("info", *SERVED)
    assert result.exit_code == 0, result.output
    for name, (served, why) in SERVED.items():
        (line,) = [text for text in result.output.splitlines() if f" {name} " in text]
        assert f" {served} " in line
        assert why in line
    for name, message in (
        ("info_models:alone", "returned Linear, need (model, loss), or what check-curvature takes"),
        ("info_models:swapped", "the model is a SquaredError, need a torch.nn.Module"),
        ("info_models:LOSS", "is a SquaredError, need a function"),
        ("info_models:none", "has no attribute 'none'"),
        ("cnn", "need rnn, mlp or package.module:function"),
    ):
        result = invoke("info", name)
        assert result.exit_code != 0
        assert message in result.output
    monkeypatch.delitem(sys.modules, "info_models")


def test_train_reports_and_exits_0_when_the_budget_is_spent(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke(*TINY, "--run-dir", str(folder), "--quiet")
    assert result.exit_code == 0, result.output
    for text in (
        "not solved: the budget of minibatches is spent",
        "of the test sequences are wrong",
        "minibatches",
        "objective evaluations",
        "seconds of training",
        str(folder / "plots" / "loss_error.png"),
    ):
        assert text in result.output
    assert str(folder) in result.output
    config = json.loads((folder / "config.json").read_text())
    assert config["optimizer"]["damping"] == "auto"
    assert config["optimizer"]["structural"] == 0.03
    assert config["problem"]["length"] == 6


def test_train_says_solved(tmp_path: Path) -> None:
    arguments = [*TINY, "--solved-below", "1", "--minibatches", "50", "--require-solved"]
    result = invoke(*arguments, "--run-dir", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    assert "result                solved\n" in result.output


def test_require_solved_makes_failure_an_exit_code(tmp_path: Path) -> None:
    arguments = [*TINY, "--require-solved", "--minibatches", "0.1"]
    assert invoke(*arguments, "--run-dir", str(tmp_path / "run")).exit_code == 1


def test_a_new_run_folder_is_chosen_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert invoke(*TINY, "--quiet").exit_code == 0
    names = sorted(p.name for p in Path("runs").iterdir())
    assert names == ["addition-T6-hf-seed0", "addition-T6-hf-seed0-2"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--optimizer", "adam", "--lr", "0.01"],
        ["--optimizer", "sgd", "--lr", "0.1", "--momentum", "0.9", "--nesterov"],
        ["--cg-max-iter", "7", "--l2", "0.001"],
        ["--gradient-batches", "2", "--batch-size", "5"],
        ["--init", "gaussian", "--init-scale", "0.5", "--dtype", "float64"],
        ["--structural", "0", "--damping", "2", "--nonlinearity", "logistic"],
    ],
    ids=" ".join,
)
def test_settings_reach_the_run(tmp_path: Path, arguments: list[str]) -> None:
    folder = tmp_path / "run"
    result = invoke(*TINY, *arguments, "--run-dir", str(folder))
    assert result.exit_code == 0, result.output
    config = json.loads((folder / "config.json").read_text())
    model = {**config["model"], **config["model"]["arguments"]}
    flat = {**model, **config["optimizer"], **config["data"], **config["notes"]}
    for option, value in zip(arguments[::2], [*arguments[1::2], None], strict=False):
        key = option.removeprefix("--").replace("-", "_")
        if key == "optimizer":
            assert str(flat["name"]).lower() == value
        elif key == "dtype":
            assert flat[key] == [value]
        elif value is None:
            assert flat[key] is True
        else:
            assert str(flat[key]) in (value, f"{value}.0")


IMAGES = ["train", "curves", "--images", "30", "--batch-size", "10", "--test-size", "30"]


def test_images_train_with_a_momentum_schedule(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["--optimizer", "nag", "--lr", "1e-4", "--momentum", "0.99", "--updates", "3"]
    arguments += ["--momentum-schedule", "increasing", "--final-updates", "2", "--init-scale", "2"]
    result = invoke(*IMAGES, *arguments, "--run-dir", str(folder), "--quiet")
    assert result.exit_code == 0, result.output
    assert "result                the budget of minibatches is spent" in result.output
    assert "the mean over the test cases" in result.output
    config = json.loads((folder / "config.json").read_text())
    assert config["problem"] == {"name": "curves", "images": 30}
    assert config["optimizer"]["name"] == "NAG"
    schedule = hf.schedules.Final(hf.schedules.Increasing(0.99), 3, updates=2)
    assert config["notes"] == {
        "init": "sparse",
        "init_scale": 2.0,
        "momentum_schedule": repr(schedule),
    }
    assert iterations(folder) == 3
    # The same run by hand.
    task = hf.problems.create("curves", images=30)
    model = hf.Autoencoder(task.encoder_sizes)
    generator = torch.Generator().manual_seed(0)
    hf.init.sparse_(model, generator, scale=2.0, replacement=True)
    expected = hf.train(
        model,
        task,
        hf.NAG(model, lr=1e-4),
        minibatches=0.03,
        batch_size=10,
        test_size=30,
        callbacks=[hf.training.Scheduled(momentum=schedule)],
        progress=False,
    )
    assert f"test error            {expected.test_error:.6g}, the mean" in result.output


@pytest.mark.parametrize(("images", "batch"), [("30", 30), ("230", 200)])
def test_images_have_batches_of_their_own_size(tmp_path: Path, images: str, batch: int) -> None:
    arguments = ["--optimizer", "nag", "--lr", "1e-4", "--updates", "1", "--images", images]
    folder = tmp_path / "run"
    result = invoke("train", "curves", *arguments, "--run-dir", str(folder), "--quiet")
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "config.json").read_text())["data"]["batch_size"] == batch


def test_images_have_the_hessian_free_preset_of_their_net(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["--gradient-batches", "1", "--cg-max-iter", "2", "--minibatches", "0.01"]
    result = invoke(*IMAGES, *arguments, "--run-dir", str(folder), "--quiet")
    assert result.exit_code == 0, result.output
    settings = json.loads((folder / "config.json").read_text())["optimizer"]
    expected = {**presets.martens2010_curves, "cg_max_iter": 2}
    del expected["damping_rule"]
    assert {key: settings[key] for key in expected} == expected


def test_an_option_overrides_the_preset(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*TINY, "--preset", "rnn2011_release", "--cg-max-iter", "7"]
    assert invoke(*arguments, "--run-dir", str(folder)).exit_code == 0
    settings = json.loads((folder / "config.json").read_text())["optimizer"]
    expected = {**presets.rnn2011_release, "cg_max_iter": 7}
    del expected["damping_rule"]  # a name for other options, which are there themselves
    assert {key: settings[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "chess"], "PROBLEM: got 'chess', need one of addition"),
        (["train", "addition", "--length", "1"], "length: got 1, need at least 3"),
        (["train", "addition", "--optimizer", "magic"], "got 'magic', need one of hf, "),
        (["train", "addition", "--optimizer", "nag"], "--lr: was not given, --optimizer nag needs"),
        (["train", "addition", "--lr", "0.1"], "--lr has no meaning with --optimizer hf"),
        (
            ["train", "addition", "--optimizer", "sgd", "--gradient-batches", "2"],
            "--gradient-batches has no meaning with --optimizer sgd",
        ),
        (
            ["train", "addition", "--optimizer", "sgd", "--damping", "1"],
            "--damping has no meaning with --optimizer sgd",
        ),
        (["train", "addition", "--optimizer", "adam", "--momentum", "0.9"], "momentum"),
        (["train", "addition", "--damping", "-1"], "damping: got -1.0"),
        (["train", "addition", "--updates", "5"], "--updates has no meaning with --optimizer hf"),
        (
            ["train", "addition", "--optimizer", "adam", "--momentum-schedule", "delayed"],
            "--momentum-schedule has no meaning with --optimizer adam",
        ),
        (
            [
                *[
                    "train",
                    "addition",
                    "--optimizer",
                    "nag",
                    "--lr",
                    "1",
                    "--updates",
                    "5",
                    "--final-updates",
                    "6",
                ]
            ],
            "--final-updates: updates: got 6, need at most total = 5",
        ),
        (["train", "addition", "--images", "5"], "got option 'images'"),
        (["train", "addition", "--preset", "martens2010"], "has no meaning with addition"),
        (["train", "curves", "--preset", "rnn2011"], "--preset rnn2011 has no meaning with curves"),
        (["train", "curves", "--length", "5"], "got option 'length'"),
        (["train", "curves", "--hidden", "5"], "--hidden has no meaning with curves"),
        (["train", "curves", "--init", "esn"], "--init esn has no meaning with curves"),
        (["train", "addition", "--hidden", "0"], "--hidden"),
        (["train", "addition", "--init-scale", "-1"], "--init-scale: scale: got -1.0"),
        (["train", "addition", "--device", "tpu"], "--device: got 'tpu', need cpu or cuda"),
        (["train", "addition", "--device", "meta"], "--device: got 'meta', need cpu or cuda"),
        (["train", "addition", "--no-such-option"], "No such option"),
        (["train", "addition", "--resume"], "--resume needs --run-dir"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_wrong_usage_is_told_with_code_2(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def every_option(group: click.Group, *words: str) -> Iterator[tuple[list[str], click.Option]]:
    """The options of all commands below ``group``, each with the words that name its command."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from every_option(command, *words, name)
            continue
        for option in command.params:
            if isinstance(option, click.Option):
                yield [*words, name], option


@pytest.mark.parametrize("text", ["nan", "inf"])
def test_no_range_of_floats_holds_what_is_no_finite_number(text: str) -> None:
    found = [(c, o) for c, o in every_option(main) if isinstance(o.type, click.FloatRange)]
    assert len(found) >= 10
    for command, option in found:
        result = invoke(*command, option.opts[0], text)
        assert result.exit_code == 2, (command, result.output)
        assert f"Invalid value for '{option.opts[0]}'" in result.output


def test_seeds_are_those_that_generators_take() -> None:
    found = [(c, o.opts[0]) for c, o in every_option(main) if o.opts[0] in ("--seed", "--seeds")]
    assert len(found) >= 10
    for command, option in found:
        problem = ["addition", "--learning-rate", "1"] if command == ["sweep"] else []
        result = invoke(*command, *problem, option, f"{2**63}" + "," * (option == "--seeds"))
        assert result.exit_code == 2, (command, result.output)
        assert f"Invalid value for '{option}'" in result.output.replace(
            f"for {option}", f"for '{option}'"
        )
    with pytest.raises(ValueError, match=f"seeds: got more than {2**63 - 1}"):
        hf.sweeps.expand({"learning_rate": [1.0]}, [2**63], ())


def test_optimisers_of_sparse_gradients_are_not_offered() -> None:
    result = invoke("train", "addition", "--optimizer", "sparseadam", "--lr", "0.1")
    assert result.exit_code == 2
    assert "got 'sparseadam', need one of hf, " in result.output
    assert "sparseadam" not in result.output.partition("need one of")[2]


def test_a_device_that_is_not_there() -> None:
    result = invoke(*TINY, "--device", "cuda")
    assert result.exit_code == 2
    assert "--device: got 'cuda', but torch" in " ".join(result.output.split())


def test_run_folder_errors_are_told_with_code_1(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    assert invoke(*TINY, "--run-dir", folder).exit_code == 0
    again = invoke(*TINY, "--run-dir", folder)
    assert again.exit_code == 1
    assert "already holds a run" in again.output
    other = invoke(*TINY, "--run-dir", folder, "--resume", "--init", "gaussian")
    assert other.exit_code == 1
    assert "notes.init is 'sparse' there and 'gaussian' here" in other.output
    gone = invoke(*TINY, "--run-dir", folder + "x", "--resume")
    assert gone.exit_code == 1
    assert "no run folder to resume" in gone.output


def test_resume_continues(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert invoke(*TINY, "--run-dir", str(folder)).exit_code == 0
    before = iterations(folder)
    arguments = [*TINY, "--run-dir", str(folder), "--resume", "--minibatches", "1"]
    assert invoke(*arguments).exit_code == 0
    assert iterations(folder) > before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_ctrl_c_ends_with_a_checkpoint_and_code_130(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "run"
    arguments = [
        *TINY,
        "--run-dir",
        str(folder),
        "--minibatches",
        "1e6",
        "--checkpoint-every",
        "99999",
    ]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from hfcore.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted: a checkpoint is written" in output
    assert "--resume" in output
    newest = max((folder / "checkpoints").glob("*.json"))
    assert int(newest.stem) == iterations(folder) > 0
