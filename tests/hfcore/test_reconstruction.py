"""Reconstruction problems: draws, measure, test set, and training by both train APIs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hfcore as hf
from hfcore.data import DataFileError
from hfcore.experiments.training import errors
from hfcore.problems import FixedTest, Problem, Reconstruction, ZeroOne, create
from hfcore.sweeps import AutoencoderStart, RnnStart, sweep
from hfcore.sweeps.starts import default_start

IMAGES = 60
TINY = AutoencoderStart((784, 5, 2))


def problem(dataset: str = "curves") -> Reconstruction:
    """The first images alone; those of FACES and MNIST are made up."""
    made = Reconstruction(dataset, images=IMAGES)
    if dataset != "curves":
        values = torch.rand(IMAGES, made.input_size, generator=torch.Generator().manual_seed(5))
        made.__dict__["images"] = values - 0.5 if dataset == "faces" else values
    return made


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture(scope="module")
def curves() -> Reconstruction:
    return problem()


def test_the_object_needs_no_data(tmp_path: Path) -> None:
    task = Reconstruction("mnist", folder=tmp_path)
    assert (task.input_size, task.output_size) == (784, 784)
    with pytest.raises(DataFileError, match="train-images"):
        task.batch(3, generator())


@pytest.mark.parametrize(
    ("name", "sizes", "loss"),
    [
        ("curves", (784, 400, 200, 100, 50, 25, 6), hf.losses.LogisticCrossEntropy),
        ("mnist", (784, 1000, 500, 250, 30), hf.losses.LogisticCrossEntropy),
        ("faces", (625, 2000, 1000, 500, 30), hf.losses.SquaredError),
    ],
)
def test_nets_and_losses_are_the_published_ones(name: str, sizes: Any, loss: type) -> None:
    task = create(name)
    assert isinstance(task, Problem)
    assert isinstance(task, FixedTest)
    assert not isinstance(task, ZeroOne)
    assert isinstance(task.loss, loss)
    assert default_start(task) == AutoencoderStart(sizes)
    assert create(**json.loads(json.dumps(task.config()))).config() == task.config()


def test_a_batch_holds_distinct_images_and_only_the_generator_decides(
    curves: Reconstruction,
) -> None:
    batch = curves.batch(IMAGES, generator(3))
    assert batch.targets is batch.inputs
    assert batch.mask is None
    assert batch.inputs.shape == (IMAGES, 784)
    assert batch.inputs.dtype == torch.float32
    # every image once: a sorted column pair tells them apart
    key = lambda x: sorted(map(tuple, x[:, 200:600].tolist()))  # noqa: E731
    assert key(batch.inputs) == key(curves.images)
    assert torch.equal(batch.inputs, curves.batch(IMAGES, generator(3)).inputs)
    few = curves.batch(9, generator(3)).inputs
    assert not torch.equal(few, curves.batch(9, generator(4)).inputs)
    double = curves.batch(7, generator(9), torch.float64).inputs
    assert double.dtype == torch.float64
    assert torch.equal(double, curves.batch(7, generator(9)).inputs.double())


def test_every_image_is_drawn_equally_often(curves: Reconstruction) -> None:
    first, source, draws = curves.images, generator(1), 2000
    index = {tuple(row): i for i, row in enumerate(first[:, 200:600].tolist())}
    counts = np.zeros(IMAGES)
    for _ in range(draws):
        for row in curves.batch(6, source).inputs[:, 200:600].tolist():
            counts[index[tuple(row)]] += 1
    # binomial: 200 expected, standard deviation 13.4; five of them
    assert abs(counts - draws * 6 / IMAGES).max() < 67


@pytest.mark.parametrize("dataset", ["curves", "faces"])
def test_errors_are_those_of_the_published_runs(dataset: str) -> None:
    task = problem(dataset)
    model = hf.Autoencoder([task.input_size, 4, 2], generator=torch.Generator().manual_seed(1))
    batch = task.batch(IMAGES, generator())
    with torch.no_grad():
        s = model(batch.inputs)
    found = task.errors(s, batch)
    assert found.shape == (IMAGES,)
    assert found.dtype == torch.float64
    # float32 squares summed over at most 784 pixels
    assert float(found.mean()) == pytest.approx(
        errors(model, task.loss, batch.inputs)[0], rel=784 * 2**-24
    )
    double = s.double().sigmoid() if dataset == "curves" else s.double()
    expected = (double - batch.targets.double()).square().sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    group = task.errors(torch.stack([s, s + 1]), batch)
    assert group.shape == (2, IMAGES)
    assert torch.equal(group[0], found)


def test_the_test_set_is_the_training_images(curves: Reconstruction) -> None:
    (everything,) = curves.test_set(10_000)
    assert everything.inputs.shape == (IMAGES, 784)
    assert torch.equal(everything.inputs.sum(0), curves.test_set(IMAGES)[0].inputs.sum(0))
    torch.testing.assert_close(everything.inputs.sum(0), curves.images.sum(0))
    (part,) = curves.test_set(7, torch.float64)
    assert torch.equal(part.inputs, everything.inputs[:7].double())
    assert not torch.equal(part.inputs, curves.images[:7].double())
    many = Reconstruction("curves", images=2100)
    assert [len(b.inputs) for b in many.test_set(2050)] == [1000, 1000, 50]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "digits"}, "dataset: got 'digits'"),
        ({"dataset": "curves", "images": 0}, "images: got 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reconstruction(**options)


def test_bad_draws_are_named(curves: Reconstruction) -> None:
    with pytest.raises(ValueError, match=f"size: got 61, need at most the {IMAGES} images"):
        curves.batch(IMAGES + 1, generator())
    with pytest.raises(ValueError, match="size: got 0"):
        curves.test_set(0)
    with pytest.raises(TypeError, match="dtype"):
        curves.test_set(3, torch.float16)
    with pytest.raises(ValueError, match=r"s: got shape \[2, 784\]"):
        curves.errors(torch.zeros(2, 784), curves.batch(3, generator()))
    with pytest.raises(ValueError, match="images: got 20001"):
        Reconstruction("curves", images=20_001).batch(1, generator())


def test_training_reports_the_mean_error_and_is_never_solved(
    curves: Reconstruction, tmp_path: Path
) -> None:
    model = TINY.build(curves, 0)
    before = errors(model, curves.loss, curves.images)[0]
    result = hf.train(
        model,
        curves,
        torch.optim.SGD(model.parameters(), lr=0.001),
        minibatches=0.6,
        batch_size=20,
        test_every=10,
        solved_below=1.0,
        run_dir=tmp_path / "run",
        progress=False,
    )
    assert (result.reason, result.solved, result.iterations) == ("budget", False, 30)
    after = errors(model, curves.loss, curves.images)[0]
    assert result.test_error == pytest.approx(after, rel=1e-6)
    assert after < before
    assert all(path.stat().st_size > 5000 for path in result.plots)


def test_a_sweep_trains_images_and_resumes(curves: Reconstruction, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "grid": {"learning_rate": [1e-3, 1e-2], "momentum": [0.9], "scale": [0.5, 1.0]},
        "start": TINY,
        "batch_size": 10,
        "test_every": 5,
        "schedule": "increasing",
        "progress": False,
    }
    whole = sweep(curves, updates=20, run_dir=tmp_path / "whole", **settings)
    for index, row in enumerate(whole.rows()):
        model = TINY.build(curves, 0)
        torch.nn.utils.vector_to_parameters(whole.parameters[index], model.parameters())
        error, loss = errors(model, curves.loss, curves.images)
        assert row["error"] == pytest.approx(error, rel=1e-6)
        assert row["test_loss"] == pytest.approx(loss, rel=1e-6)
        assert math.isnan(row["wrong"])
        assert row["outcome"] != "solved"
    sweep(curves, updates=10, run_dir=tmp_path / "cut", **settings)
    again = sweep(curves, updates=20, run_dir=tmp_path / "cut", resume=True, **settings)
    for index, theta in whole.parameters.items():
        assert torch.equal(again.parameters[index], theta)
    assert repr(again.tests) == repr(whole.tests)  # NaN is not equal to itself
    constant = (curves.images - curves.images.mean(0)).square().sum(1).mean()
    assert whole.constant.error == pytest.approx(float(constant), rel=1e-4)


def test_the_esn_start_refuses_images(curves: Reconstruction) -> None:
    with pytest.raises(TypeError, match="esn start needs a problem of sequences, got curves"):
        RnnStart().build(curves, 0)
