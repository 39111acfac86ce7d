"""Batches that are counted out and made where the data lie: hf.minibatches.DeviceBatches, and
``on_device`` of a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupts import interrupted_sweeps
from torch import Tensor

import hfcore as hf
from hfcore.counted_batches import CountedBatches
from hfcore.sweeps import AutoencoderStart, SweepResult, cohort
from hfcore.training import ConfigMismatchError, Limits

SIZES = (6, 4, 2)


class Few:
    """A problem with 23 cases."""

    name, input_size, output_size = "few", 6, 6
    loss = hf.losses.LogisticCrossEntropy()

    def all_cases(self, dtype: torch.dtype = torch.float32) -> hf.Batch:
        x = torch.rand(23, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
        return hf.Batch(x, x)

    def batch(
        self, size: int, generator: np.random.Generator, dtype: torch.dtype = torch.float32
    ) -> hf.Batch:
        x = self.all_cases(dtype).inputs[torch.from_numpy(generator.integers(23, size=size))]
        return hf.Batch(x, x)

    def errors(self, s: Tensor, batch: hf.Batch) -> Tensor:
        return (s.sigmoid() - batch.targets).square().sum(-1, dtype=torch.float64)

    def config(self) -> dict[str, Any]:
        return {"name": self.name}


def model() -> hf.Autoencoder:
    return AutoencoderStart(SIZES).build(Few(), 0)  # type: ignore[arg-type]


def flat(net: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


# ---------------------------------------------------------------------------- which cases


def test_passes_have_every_case_but_a_rest() -> None:
    batches = CountedBatches(23, 5, seed=7, device=torch.device("cpu"))
    assert batches.per_pass == 4
    passes = batches(0, 12).view(3, 20)
    for order in passes.tolist():
        assert len(set(order)) == 20
        assert set(order) <= set(range(23))
    assert len({tuple(order) for order in passes.tolist()}) == 3


@pytest.mark.parametrize("first", [0, 3, 4, 7, 1_000_003])
def test_a_batch_depends_on_its_number_alone(first: int) -> None:
    """Alone, among others, across the ends of passes, after batches of other passes."""
    device = torch.device("cpu")
    one = CountedBatches(23, 5, 7, device)
    row = one(first, 9)
    assert row.shape == (9, 5)
    for i in range(9):
        assert torch.equal(CountedBatches(23, 5, 7, device)(first + i, 1)[0], row[i])
        assert torch.equal(one(first + i, 1)[0], row[i])
    assert not torch.equal(CountedBatches(23, 5, 8, device)(first, 9), row)


def test_the_policy_gives_them_on_its_data() -> None:
    x = torch.arange(23.0).unsqueeze(1)
    policy = hf.minibatches.DeviceBatches(x, 10 * x, size=5, updates=3, seed=7)
    index = CountedBatches(23, 5, 7, x.device)(6, 3)
    row = policy(2)
    assert len(row) == 3
    for i, roles in enumerate(row):
        assert roles.gradient is roles.curvature
        assert roles.gradient.inputs.flatten().tolist() == index[i].tolist()
        assert torch.equal(roles.gradient.targets, 10 * roles.gradient.inputs)
    assert policy.config() == {"name": "DeviceBatches", "size": 5, "updates": 3, "seed": 7}
    assert row[1:].chosen.tolist() == index[1:].tolist()


def test_bad_sizes_are_named() -> None:
    x = torch.zeros(23, 6)
    for options, message in (
        ({"size": 24}, "size: got 24, need 1 to 23 cases"),
        ({"size": 0}, "size: got 0, need"),
        ({"size": 5, "updates": 0}, "updates: got 0, need"),
        ({"size": 5, "updates": 1001}, "updates: got more than 1000, need 1 to 1000"),
        ({"size": 5, "seed": -1}, "seed: got -1, need"),
    ):
        with pytest.raises(ValueError, match=message):
            hf.minibatches.DeviceBatches(x, x, **options)
    sequences = [(torch.zeros(t, 2), torch.zeros(t, 1)) for t in (3, 4)]
    policy = hf.minibatches.DeviceBatches(size=1)
    net = hf.RNN(2, 3, 1)
    with pytest.raises(TypeError, match="DeviceBatches takes arrays, got sequences of unequal"):
        hf.train(net, sequences, hf.NAG(net, 0.1), loss=hf.losses.SquaredError(), batches=policy)
    with pytest.raises(TypeError, match="on_device: temporal-order-2bit draws new cases"):
        hf.sweep("temporal-order-2bit", {"learning_rate": [0.1]}, on_device=True, updates=1)
    with pytest.raises(ValueError, match="batch_size: got 24, need 1 to 23"):
        swept(batch_size=24)


# ---------------------------------------------------------------------------- hf.train


def trained(
    optimizer: str = "NAG", updates: int = 1, iterations: int = 12, **options: Any
) -> tuple[Tensor, hf.TrainResult]:
    net = model()
    settings: dict[str, Any] = {"momentum": 0.9} if optimizer != "SGD" else {}
    if optimizer == "Adam":
        opt: Any = torch.optim.Adam(net.parameters(), 0.01)
    else:
        opt = getattr(hf, optimizer)(net, 0.05, weight_decay=0.01, **settings)
    batches = hf.minibatches.DeviceBatches(size=5, updates=updates, seed=3)
    stop = Limits(iterations=iterations)
    result = hf.train(
        net, Few(), opt, batches=batches, stop=stop, test_size=9, progress=False, **options
    )
    return flat(net), result


@pytest.mark.parametrize("optimizer", ["SGD", "ClassicalMomentum", "NAG", "Adam"])
def test_updates_in_a_row_are_those_one_by_one(optimizer: str) -> None:
    want, alone = trained(optimizer, 1, 12)
    got, row = trained(optimizer, 4, 3)
    assert torch.equal(got, want)
    assert (row.iterations, alone.iterations) == (3, 12)
    assert row.minibatches == alone.minibatches


def test_a_row_is_one_step_whose_line_has_the_mean_loss(tmp_path: Path) -> None:
    lines = []
    for name, updates, iterations in (("one", 1, 4), ("row", 4, 1)):
        trained("NAG", updates, iterations, run_dir=tmp_path / name)
        text = (tmp_path / name / "metrics.jsonl").read_text()
        lines.append([json.loads(line) for line in text.splitlines()])
    one, (row,) = lines
    assert row["loss"] == sum(line["loss"] for line in one) / 4
    assert row["updates"] == 4


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    want, _ = trained("NAG", 4, 6)
    trained("NAG", 4, 2, run_dir=tmp_path / "run")
    got, _ = trained("NAG", 4, 6, run_dir=tmp_path / "run", resume=True)
    assert torch.equal(got, want)


def test_a_row_that_diverges_stops_where_it_did() -> None:
    """Nothing moves after a loss that is not finite."""
    net = model()
    opt = hf.NAG(net, 3e38)
    batches = hf.minibatches.DeviceBatches(size=5, updates=8)
    result = hf.train(
        net, Few(), opt, batches=batches, stop=Limits(iterations=9), test_size=9, progress=False
    )
    assert result.reason == "diverged"
    assert result.iterations == 1


def test_sequences_of_one_length_are_drawn_along_their_axis() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(5, 9, 2, generator=draw), torch.rand(5, 9, 1, generator=draw)
    mask = torch.zeros(5, 9, dtype=torch.bool)
    mask[-2:] = True

    def run(updates: int, mask: Tensor) -> Tensor:
        net = hf.RNN(2, 4, 1, generator=torch.Generator().manual_seed(1))
        batches = hf.minibatches.DeviceBatches(size=4, updates=updates)
        hf.train(
            net, (x, y, mask), hf.NAG(net, 0.05), loss=hf.losses.SquaredError(), batches=batches,
            stop=Limits(iterations=6 // updates), progress=False,
        )  # fmt: skip
        return flat(net)

    assert torch.equal(run(3, mask), run(1, mask))
    mask = mask.clone()
    mask[-1, 3] = False  # the cases differ in what counts: one update after the other
    assert torch.equal(run(3, mask), run(1, mask))


# ---------------------------------------------------------------------------- hf.sweep

GRID = {"learning_rate": [0.05, 0.01], "momentum": [0.9], "method": ["nag", "cm"]}


def swept(grid: Any = GRID, **options: Any) -> SweepResult:
    settings: dict[str, Any] = {
        "updates": 150, "batch_size": 5, "test_every": 67, "test_size": 20, "progress": False,
        "start": AutoencoderStart(SIZES), "on_device": True, "falling_updates": 30,
    }  # fmt: skip
    return hf.sweep(Few(), grid, **{**settings, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole() -> SweepResult:
    return swept(seeds=2)


def test_rows_of_updates_are_updates_one_by_one(
    whole: SweepResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "AT_ONCE", 1)
    alone = swept(seeds=2)
    assert repr(alone.tests) == repr(whole.tests)  # a NaN is another than itself
    assert all(torch.equal(alone.parameters[i], p) for i, p in whole.parameters.items())


def test_a_run_is_what_it_is_alone_and_in_training(whole: SweepResult) -> None:
    grid = {"learning_rate": [0.05], "momentum": [0.9], "method": ["nag"]}
    steady = {"schedule": "constant", "falling_updates": 0, "updates": 12}
    alone = swept({**grid}, **steady)
    beside = swept({**GRID, "learning_rate": [0.05, 0.02]}, **steady)
    (at,) = [i for i, run in enumerate(beside.runs) if run == alone.runs[0]]
    assert torch.equal(beside.parameters[at], alone.parameters[0])
    net = model()
    batches = hf.minibatches.DeviceBatches(size=5, updates=6, seed=0)
    opt = hf.NAG(net, 0.05, 0.9)
    hf.train(net, Few(), opt, batches=batches, stop=Limits(iterations=2), test_size=9,
             progress=False)  # fmt: skip
    assert torch.equal(flat(net), alone.parameters[0])


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_stopped_and_resumed_sweep_has_the_same_bits(
    whole: SweepResult, tmp_path: Path, after: int
) -> None:
    """Stopped within a row of updates as well: it goes on with other rows."""
    with interrupted_sweeps(after):
        stopped = swept(seeds=2, run_dir=tmp_path / "sweep")
    assert stopped.reason == "interrupted"
    resumed = swept(seeds=2, run_dir=tmp_path / "sweep", resume=True)
    assert repr(resumed.tests) == repr(whole.tests)
    assert all(torch.equal(resumed.parameters[i], p) for i, p in whole.parameters.items())


def test_a_sweep_of_other_draws_is_refused(tmp_path: Path) -> None:
    swept(updates=3, falling_updates=0, run_dir=tmp_path / "sweep")
    with pytest.raises(ConfigMismatchError, match="on_device"):
        swept(updates=3, falling_updates=0, run_dir=tmp_path / "sweep", resume=True,
              on_device=False)  # fmt: skip


def test_runs_that_diverge_are_left_alone() -> None:
    grid = {"learning_rate": [0.05, 3e38], "momentum": [0.9], "method": ["nag"]}
    result = swept(grid, falling_updates=0)
    assert list(result.diverged_at) == [1]
    calm = swept({**grid, "learning_rate": [0.05]}, falling_updates=0)
    assert torch.equal(result.parameters[0], calm.parameters[0])
