"""Next-step problems: windows as batches, errors in the paper's units, training and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hfcore as hf
from command_line import invoke
from hfcore.data import DataFileError, SequenceSet
from hfcore.problems import (
    PROBLEMS,
    BouncingBalls,
    FiniteProblem,
    FixedTest,
    NextStep,
    PianoRolls,
    Problem,
    SpokenDigits,
    ZeroOne,
    create,
)
from hfcore.training.run_folder import RunFolder

KINDS: list[type[Any]] = [BouncingBalls, PianoRolls, SpokenDigits]
SMALL: dict[str, Any] = {"length": 4}


def pieces(size: int, binary: bool) -> SequenceSet:
    generator = torch.Generator().manual_seed(size)
    parts = {}
    for part, lengths in (("train", (14, 9, 30)), ("validation", (13,)), ("test", (6, 21))):
        drawn = [torch.rand(length, size, generator=generator) for length in lengths]
        waves = [
            torch.sin(torch.arange(length)[:, None] * 0.3 + 6 * p[:1])
            for length, p in zip(lengths, drawn, strict=True)
        ]
        parts[part] = [(p < 0.2).float() for p in drawn] if binary else waves
    return SequenceSet("made_up", **parts, facts="Made up.")  # type: ignore[arg-type]


def problem(kind: type[Any], **options: Any) -> Any:
    """Of four steps, its pieces made up: 12 windows to train, 3 to validate, 6 to test."""
    if kind is BouncingBalls:
        return kind(**{**SMALL, "side": 5, **options})
    made = kind(**{**SMALL, **options})
    made.__dict__["pieces"] = pieces(made.input_size, kind is PianoRolls)
    return made


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_what_they_are(kind: type[Any]) -> None:
    task = problem(kind)
    assert isinstance(task, Problem)
    assert isinstance(task, FixedTest)
    assert isinstance(task, NextStep)
    assert not isinstance(task, ZeroOne)
    assert isinstance(task, FiniteProblem) == (kind is not BouncingBalls)
    assert PROBLEMS[kind.name] is kind
    again = create(**json.loads(json.dumps(task.config())))
    assert again.config() == task.config()
    assert repr(again) == repr(task)


def test_published_sizes() -> None:
    assert (BouncingBalls().length, BouncingBalls().input_size) == (30, 225)
    assert (PianoRolls().length, PianoRolls().input_size) == (200, 88)
    assert PianoRolls(midi_keys=True).input_size == 128
    assert (SpokenDigits().length, SpokenDigits().input_size) == (100, 39)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_targets_are_the_next_inputs(kind: type[Any], dtype: torch.dtype) -> None:
    task = problem(kind)
    batches = [task.batch(5, rng(1), dtype), task.part("validation", 2, dtype)]
    batches += task.test_set(3, dtype)
    for x, y, mask in batches:
        assert x.shape == y.shape
        assert x.shape[0] == 4
        assert x.shape[2] == task.input_size
        assert x.dtype == y.dtype == dtype
        assert mask is None
        assert x.is_contiguous()
        assert y.is_contiguous()
        assert torch.equal(y[:-1], x[1:])
        assert not torch.equal(y[-1], x[-1])


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_both_dtypes_get_the_same_draw_and_only_the_generator_decides(kind: type[Any]) -> None:
    task = problem(kind)
    single = task.batch(5, rng(1))
    double = task.batch(5, rng(1), torch.float64)
    torch.testing.assert_close(single.inputs.double(), double.inputs, rtol=0, atol=3e-7)
    assert torch.equal(single.targets, task.batch(5, rng(1)).targets)
    assert not torch.equal(single.targets, task.batch(5, rng(2)).targets)


@pytest.mark.parametrize("kind", [PianoRolls, SpokenDigits], ids=lambda k: k.name)
def test_a_batch_holds_distinct_windows(kind: type[Any]) -> None:
    task = problem(kind)
    everything = task.all_cases()
    assert everything.inputs.shape[1] == 12
    drawn = task.batch(12, rng(3))
    key = lambda b: sorted(map(tuple, b.inputs.permute(1, 0, 2).flatten(1).tolist()))  # noqa: E731
    assert key(drawn) == key(everything)
    few = task.batch(3, rng(3)).inputs
    assert not torch.equal(few, everything.inputs[:, :3])
    assert len(few.flatten(2).unique(dim=1)[0]) == 3
    with pytest.raises(ValueError, match="size: got 13, need at most the 12 sequences"):
        task.batch(13, rng())


def test_windows_are_those_of_the_pieces() -> None:
    task = problem(PianoRolls)
    cut = task.pieces.windows("train", 4)
    assert torch.equal(task.all_cases().inputs, cut[:-1])
    assert torch.equal(task.all_cases().targets, cut[1:])
    few = problem(PianoRolls, sequences=5)
    assert torch.equal(few.all_cases(torch.float64).inputs, cut[:-1, :5].double())
    assert few.part("test", 100).inputs.shape[1] == 6  # the other parts are whole
    with pytest.raises(ValueError, match="sequences: got 13, need at most 12"):
        problem(PianoRolls, sequences=13).all_cases()


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_parts_are_fixed_and_apart(kind: type[Any]) -> None:
    task, again = problem(kind), problem(kind)
    (test,) = task.test_set(3)
    assert torch.equal(test.inputs, again.test_set(3)[0].inputs)
    assert torch.equal(test.inputs[:, :2], task.part("test", 2).inputs)
    validation = task.part("validation", 3)
    assert validation.inputs.shape == test.inputs.shape
    assert not torch.equal(validation.inputs, test.inputs)
    with pytest.raises(ValueError, match="name: got 'train', need one of 'validation', 'test'"):
        task.part("train", 1)


def test_large_test_sets_come_in_batches() -> None:
    sizes = [b.inputs.shape[1] for b in problem(BouncingBalls).test_set(2003)]
    assert sizes == [1000, 1000, 3]


# ---- errors


def outputs(batch: hf.Batch, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch.targets.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_errors_of_rolls_are_negative_log_likelihoods() -> None:
    task = problem(PianoRolls)
    batch = task.batch(7, rng(), torch.float64)
    s = outputs(batch)
    p = torch.sigmoid(s)
    expected = -torch.where(batch.targets == 1, p, 1 - p).log().sum((0, 2))
    torch.testing.assert_close(task.errors(s, batch), expected, rtol=1e-12, atol=0)


def test_errors_of_balls_are_divergences() -> None:
    task = problem(BouncingBalls)
    batch = task.batch(7, rng(), torch.float64)
    s, y = outputs(batch), batch.targets
    p = torch.sigmoid(s)
    bernoulli = torch.distributions.Bernoulli
    expected = torch.distributions.kl_divergence(bernoulli(y), bernoulli(p)).sum((0, 2))
    torch.testing.assert_close(task.errors(s, batch), expected, rtol=1e-9, atol=1e-9)
    # outputs that are the targets leave nothing; logits of 0 and 1 end at 36
    exact = torch.logit(y.clamp(1e-16, 1 - 1e-16))
    assert task.errors(exact, batch).abs().max() < 1e-9


def test_errors_of_speech_are_squares_of_a_frame() -> None:
    task = problem(SpokenDigits)
    batch = task.batch(7, rng(), torch.float64)
    s = outputs(batch)
    expected = (s - batch.targets).square().sum(2).mean(0)
    torch.testing.assert_close(task.errors(s, batch), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_errors_take_a_group_and_float32(kind: type[Any]) -> None:
    task = problem(kind)
    batch = task.batch(3, rng())
    s = outputs(batch, torch.float32)
    found = task.errors(torch.stack([s, 2 * s]), batch)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    assert torch.equal(found[0], task.errors(s, batch))
    assert torch.equal(found[1], task.errors(2 * s, batch))
    with pytest.raises(ValueError, match=r"s: got shape \[3, 3, \d+\], need \[4, 3, \d+\] like"):
        task.errors(s[1:], batch)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_errors_are_the_loss_up_to_a_constant(kind: type[Any]) -> None:
    """Its mean is what training minimises, times 2/T for speech, less what no output moves."""
    task = problem(kind)
    batch = task.batch(6, rng(), torch.float64)
    s, other = outputs(batch), outputs(batch).flip(0)
    factor = 2 / 4 if kind is SpokenDigits else 1
    gap = task.errors(s, batch).mean() - task.errors(other, batch).mean()
    losses = [task.loss.value(o, batch.targets, scale=1 / 6) for o in (s, other)]
    assert float(gap) == pytest.approx(factor * (losses[0] - losses[1]), rel=1e-9)


# ---- training


def trained(task: Any, iterations: int) -> tuple[hf.RNN, hf.TrainResult]:
    """A small net after some Hessian-free iterations, on the batches that the task goes with."""
    model = hf.RNN(task.input_size, 6, task.output_size, dtype=torch.float32)
    hf.init.sparse_(model, torch.Generator().manual_seed(0))
    if iterations == 0:
        return model, None  # type: ignore[return-value]
    opt = hf.HessianFree(model, task.loss, **{**hf.presets.rnn2011, "cg_max_iter": 10})
    batches: dict[str, Any] = {"batch_size": 5, "gradient_batches": 2}
    if isinstance(task, FiniteProblem):
        batches = {"batches": hf.minibatches.FullGradient(curvature_batches=2)}
    x, y, _ = task.part("validation", 3)
    stop = hf.training.Limits(iterations)
    result = hf.train(
        model, task, opt, **batches, validation=(x, y), test_size=6, stop=stop, progress=False
    )
    return model, result


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_hessian_free_lowers_the_error(kind: type[Any]) -> None:
    task = problem(kind)
    batch = task.batch(12, rng(5))
    (first, _), (last, result) = trained(task, 0), trained(task, 4)
    with torch.no_grad():
        errors = [float(task.errors(m(batch.inputs), batch).mean()) for m in (first, last)]
        (test,) = task.test_set(6)
        expected = float(task.errors(last(test.inputs), test).mean())
    assert errors[1] < 0.9 * errors[0]
    assert result.test_error == pytest.approx(expected, rel=1e-12)
    assert result.validation_error is not None


def test_the_command_trains_and_evaluates_films(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # plots are drawn in other tests, and take longer than this run
    monkeypatch.setattr(RunFolder, "draw", lambda self, *, solved_below: ())
    folder = tmp_path / "run"
    result = invoke(
        "train", "bouncing-balls", "--length", "3", "--hidden", "4", "--batch-size", "10",
        "--gradient-batches", "2", "--iterations", "1", "--test-size", "20", "--run-dir", folder,
        "--cg-max-iter", "5", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    error = result.output.split("test error")[1].split("\n")[0].strip()
    assert error.endswith("the mean over the test cases")
    evaluated = invoke("evaluate", folder)
    assert evaluated.exit_code == 0, evaluated.output
    assert error in evaluated.output


# ---- refusals


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (BouncingBalls, {"length": 0}, "length: got 0"),
        (BouncingBalls, {"balls": 6}, "balls: got more than 5"),
        (BouncingBalls, {"side": 0}, "side: got 0"),
        (PianoRolls, {"dataset": "bach"}, "dataset: got 'bach', need one of 'piano_midi'"),
        (PianoRolls, {"sequences": 0}, "sequences: got 0"),
        (SpokenDigits, {"length": -1}, "length: got -1"),
        (SpokenDigits, {"clips": 0}, "clips: got 0"),
    ],
    ids=str,
)
def test_bad_options(kind: type[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_bad_types() -> None:
    with pytest.raises(TypeError, match="midi_keys: got int, need True or False"):
        PianoRolls(midi_keys=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="length: got float, need an integer"):
        BouncingBalls(3.5)  # type: ignore[arg-type]
    for kind in KINDS:
        with pytest.raises(TypeError, match="dtype"):
            problem(kind).part("test", 1, torch.float16)


@pytest.mark.parametrize("kind", [PianoRolls, SpokenDigits], ids=lambda k: k.name)
def test_windows_longer_than_the_pieces_of_a_part(kind: type[Any]) -> None:
    task = problem(kind, length=13)
    assert task.all_cases().inputs.shape[1] == 3  # of 14 and 30 frames
    with pytest.raises(ValueError, match=r"length: got 13, need at most 12: .* validation part"):
        task.part("validation", 1)


@pytest.mark.parametrize("kind", [PianoRolls, SpokenDigits], ids=lambda k: k.name)
def test_the_object_needs_no_data(kind: type[Any], tmp_path: Path) -> None:
    task = kind(folder=tmp_path)
    with pytest.raises(DataFileError, match=r"\.(npz|mat): is not there; put "):
        task.batch(3, rng())
