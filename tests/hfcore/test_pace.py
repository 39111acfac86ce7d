"""How long the runs of a command take: before the first one, while they run, as they end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hfcore as hf
from command_line import invoke
from hfcore.experiments import pace as pace_module
from hfcore.experiments.commands import autoencoders, fig5
from hfcore.experiments.pace import (
    Pace,
    autoencoder_parameters,
    gradients,
    recurrent_parameters,
    roughly,
)

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(operations: dict[str, float], **options: object) -> tuple[Pace, Clock, list[str]]:
    clock, said = Clock(), list[str]()
    pace = Pace(dict(operations), CPU, tell=said.append, now=clock, **options)  # type: ignore[arg-type]
    return pace, clock, said


def test_what_ends_corrects_the_rest() -> None:
    pace, clock, said = watched({"a": 1.0, "b": 2.0, "c": 4.0})
    pace.begin("a")
    assert pace.left is None
    clock.now = 10.0
    pace.end("a")
    assert said == ["1 of 3 runs done, at this pace 1 min 0 s more"]
    pace.begin("b")
    clock.now = 50.0  # twice as long as "a" would have it
    pace.end("b")
    assert said[-1] == "2 of 3 runs done, at this pace 1 min 7 s more"
    pace.begin("c")
    clock.now = 60.0
    pace.end("c")
    assert len(said) == 2  # nothing is left


def test_what_was_there_already_says_nothing_of_the_pace() -> None:
    pace, clock, said = watched({"a": 5.0, "b": 1.0, "c": 1.0})
    pace.begin("a")
    clock.now = 0.1
    pace.end("a")
    pace.begin("b")
    clock.now = 8.1
    pace.end("b")
    assert said == ["1 of 2 runs done, at this pace 8 s more"]


def test_a_run_that_goes_on_counts_what_it_does_here() -> None:
    pace, clock, _ = watched({"a": 100.0})
    pace.begin("a", 0.5)
    clock.now = 10.0
    pace.within("a", 0.6)
    assert pace.left == pytest.approx(40.0)


def test_within_a_run_lines_are_rare() -> None:
    pace, clock, said = watched({"a": 1.0, "b": 1.0}, at_most=True)
    pace.begin("a")
    for second in range(1, 101):
        clock.now = float(second)
        pace.within("a", second / 200)
    assert said[0] == "0 of 2 runs done, at this pace at most 6 min 20 s more"
    assert len(said) == 2  # after 20 s and 40 s more; the next would be 80 s later


def test_workers_share_what_is_left_and_what_they_are_at() -> None:
    pace, clock, said = watched({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, workers=2)
    pace.begin("a")
    pace.begin("b")
    clock.now = 10.0
    pace.end("a")  # "b" is about to end too
    assert said == ["1 of 4 runs done, at this pace 10 s more"]


def test_a_limit_of_seconds_bounds_a_run() -> None:
    pace, clock, _ = watched({"a": 1.0, "b": 100.0}, limits={"b": 30.0})
    pace.begin("a")
    clock.now = 10.0
    pace.end("a")
    assert pace.left == 30.0
    pace.begin("b")
    clock.now = 25.0
    assert pace.left == 15.0


@pytest.mark.parametrize("operations", [{}, {"another": 1.0}])
def test_runs_that_nobody_expected_are_passed_over(operations: dict[str, float]) -> None:
    pace, _, said = watched(operations)
    pace.begin("a")
    pace.within("a", 0.5)
    pace.end("a")
    assert said == []


def test_orders_of_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "operations_a_second", lambda device: 2.0)
    for operations, text in ((20.0, "some seconds"), (1e4, "about an hour"), (1e9, "weeks")):
        pace, _, said = watched({"a": operations})
        pace.expect()
        assert said == [f"1 run, which by its size takes {text}"]
    pace, _, said = watched({"a": 1e9, "b": 1e9}, limits={"a": 30.0, "b": 3.0}, at_most=True)
    pace.expect()
    assert said == [
        "2 runs, which by their size take about a minute at most; one that is solved ends sooner"
    ]
    assert [roughly(x) for x in (0.0, 60.0, 300.0, 2e4)] == [
        "some seconds", "about a minute", "some minutes", "some hours",
    ]  # fmt: skip


def test_operations_are_those_of_the_nets() -> None:
    """Parameters as torch counts them; a product and a gradient are six operations for each."""
    task = hf.problems.Addition(20)
    rnn = hf.RNN(task.input_size, 7, task.output_size)
    assert recurrent_parameters(task, 7) == sum(p.numel() for p in rnn.parameters())
    net = hf.Autoencoder([9, 4, 2])
    assert autoencoder_parameters([9, 4, 2]) == sum(p.numel() for p in net.parameters())
    assert gradients(10, 5, 2) == 600


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (
            "table5 --problems add-80,mem-5-200 --columns 0,0.9N",
            "2 sweeps, which by their size take",
        ),
        (
            "table5 --problems add-5 --rates 1e-2 --search-updates 9",
            "1 sweep, which by its size takes",
        ),
        ("fig3 --problems xor,mem-5 --lengths 30 --seeds 1", "4 runs, which by their size take"),
        ("ablation --of stop,cg-start --problem add-20", "5 runs, which by their size take"),
        ("table1-2011 --task balls --test-size 3", "2 runs, which by their size take"),
        ("martens2010-table2 --dataset curves --columns pt-ncg,rand-hf", "3 runs, which"),
        ("curves-log", "1 run, which by its size takes"),
        ("fig2", "4 runs, which by their size take"),
        ("fig5", "3 runs, which by their size take"),
    ],
)
def test_commands_say_how_long_they_take(
    arguments: str, runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line comes before the first run, which is interrupted here."""

    def interrupted(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    dataset = hf.data.curves(40, 5, seed=1)
    for module in (autoencoders, fig5):
        monkeypatch.setattr(module, "load", lambda *a: dataset)
    for owner, name in ((hf, "train"), (hf, "pretrain"), (hf.sweeps, "sweep_in_rounds")):
        monkeypatch.setattr(owner, name, interrupted)
    result = invoke("reproduce", *arguments.split(), "--run-dir", tmp_path / "run")
    assert result.exit_code == 130, result.output
    assert runs in result.output
    if arguments == "curves-log":
        quiet = invoke("reproduce", arguments, "--quiet", "--run-dir", tmp_path / "quiet")
        assert "by its size" not in quiet.output
