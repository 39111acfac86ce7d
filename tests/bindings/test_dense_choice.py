"""Under "bf16x6" the faster form of a dense op serves: what is timed, when, and what is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hfcore as hf
from hfcore.bindings.forms.dense import measured
from hfcore.bindings.forms.dense.measured import Size

CPU = torch.device("cpu")
SIZE = Size("dense_forward", 128, 5, 7)


class Clock:
    """Stands in for a GPU: says how long either form takes, and counts how often it was asked."""

    def __init__(self) -> None:
        self.takes = {"ieee": 2.0, "bf16x6": 1.0}
        self.timed: list[Size] = []
        self.capturing = False

    def work(self, size: Size, form: str) -> Callable[[], object]:
        def refuse() -> None:
            raise AssertionError("nothing runs but through the clock")

        if form == "ieee":
            self.timed.append(size)
        return refuse

    def seconds(self, device: torch.device, calls: dict[Any, Any]) -> dict[Any, float]:
        assert list(calls) == ["ieee", "bf16x6"]
        return dict(self.takes)

    def chosen(self, size: Size = SIZE, device: torch.device = CPU) -> str:
        return measured.precision(size, device, self.work)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dense" / "a-gpu.txt"


@pytest.fixture
def clock(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = Clock()
    monkeypatch.setattr(measured, "seconds", clock.seconds)
    monkeypatch.setattr(measured, "_file", lambda device: path)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: clock.capturing)
    measured._choices.cache_clear()
    yield clock
    measured._choices.cache_clear()


@pytest.fixture(autouse=True)
def _six_products() -> Any:
    with hf.set_matmul_precision("bf16x6"):
        yield


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32"])
def test_other_policies_decide_by_themselves(clock: Clock, path: Path, precision: Any) -> None:
    with hf.set_matmul_precision(precision):
        assert clock.chosen() == precision
    assert clock.timed == []
    assert not path.exists()


@pytest.mark.parametrize("faster", ["ieee", "bf16x6"])
def test_the_faster_serves_and_is_timed_once_in_all_processes(
    clock: Clock, path: Path, faster: str
) -> None:
    clock.takes[faster] = 0.5
    assert [clock.chosen() for _ in range(3)] == [faster] * 3
    assert clock.timed == [SIZE]
    measured._choices.cache_clear()  # as another process begins
    clock.takes = {"ieee": 3.0, "bf16x6": 3.0}
    assert clock.chosen() == faster
    assert clock.timed == [SIZE]
    assert path.read_text().startswith(f"dense_forward 128 5 7 {faster} ieee=")


def test_sizes_are_chosen_apart(clock: Clock) -> None:
    others = [SIZE._replace(op="dense_backward"), SIZE._replace(n=6), SIZE._replace(cases=256)]
    assert clock.chosen() == "bf16x6"
    clock.takes["bf16x6"] = 9.0
    assert [clock.chosen(other) for other in others] == ["ieee"] * 3
    assert clock.chosen() == "bf16x6"


def test_cases_count_by_powers_of_two() -> None:
    found = [Size.of("dense_forward", B, 5, 7).cases for B in (1, 2, 3, 128, 129, 10**6)]
    assert found == [1, 2, 4, 128, 256, measured.MOST_CASES]


def test_who_wrote_first_decides(clock: Clock, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that timed the same in the meantime: all of them have its choice."""
    path.parent.mkdir()

    def seconds(device: torch.device, calls: Any) -> dict[Any, float]:
        path.write_text("dense_forward 128 5 7 ieee ieee=1s bf16x6=2s\n")
        return {"ieee": 2.0, "bf16x6": 1.0}

    monkeypatch.setattr(measured, "seconds", seconds)
    assert clock.chosen() == "ieee"
    assert len(path.read_text().splitlines()) == 2


def test_nothing_is_timed_while_a_graph_is_recorded(clock: Clock) -> None:
    gpu = torch.device("cuda", 0)
    clock.capturing = True
    assert clock.chosen(device=gpu) == "ieee"
    assert clock.timed == []
    clock.capturing = False
    assert clock.chosen(device=gpu) == "bf16x6"
    clock.capturing = True
    assert clock.chosen(device=gpu) == "bf16x6"


def test_lines_that_are_no_choices_are_passed_over(clock: Clock, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe\ndense_forward 128 5 7 fast\ndense_forward 128 5\n\n")
    assert clock.chosen() == "bf16x6"
    assert measured._read(path) == {SIZE: "bf16x6"}


def test_a_folder_that_cannot_be_written_is_said(
    clock: Clock, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.write_text("no folder")
    with caplog.at_level(logging.WARNING, "hfcore"):
        assert [clock.chosen(), clock.chosen()] == ["bf16x6", "bf16x6"]
    (record,) = caplog.records
    assert "a choice cannot be kept" in record.getMessage()
    assert clock.timed == [SIZE]


def test_without_memory_for_it_nothing_is_chosen_for_others(
    clock: Clock, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measured, "seconds", full)
    assert clock.chosen() == "ieee"
    assert not path.exists()
