"""Commands that train, killed at any of their writes, go on where they were."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import hfcore as hf
from command_line import invoke
from hfcore.data import curves
from hfcore.experiments.commands import autoencoders, fig5
from hfcore.presets import AutoencoderPreset
from hfcore.training import atomic

TABLE5 = ["reproduce", "table5", "--quiet", "--threads", "1", "--hidden", "5", "--updates", "4"]
TABLE5 += ["--test-every", "4", "--seeds", "2", "--batch-size", "3", "--columns", "0.9N"]
TABLE5 += ["--problems", "add-3", "--rates", "0.1,0.01"]
FIG5 = ["reproduce", "fig5", "--iterations", "1", "--cg-iterations", "3", "--quiet"]
LOG = ["reproduce", "curves-log", "--iterations", "1", "--quiet"]
SWEEP = ["sweep", "addition", "--length", "3", "--hidden", "5", "--updates", "4", "--quiet"]
SWEEP += ["--test-every", "2", "--batch-size", "3", "--test-size", "9", "--learning-rate", "0.1"]
TRAIN = ["train", "addition", "--length", "3", "--hidden", "5", "--optimizer", "nag", "--quiet"]
TRAIN += ["--lr", "0.1", "--updates", "4", "--batch-size", "3", "--test-size", "9"]
TRAIN += ["--checkpoint-every", "2"]
COMMANDS = {"table5": TABLE5, "fig5": FIG5, "curves-log": LOG, "sweep": SWEEP, "train": TRAIN}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Killed(BaseException):
    """Stands for a kill at that moment; nothing catches it."""


class Writes:
    """Counts what the main thread changes in a folder, and kills it there and ever after."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.count, self.kill_at = 0, 0

    @contextmanager
    def watched(self, folder: Path, kill_at: int = sys.maxsize) -> Iterator[None]:
        self.folder, self.count, self.kill_at = folder, 0, kill_at
        try:
            yield
        finally:
            self.folder = None

    def one(self) -> None:
        self.count += 1
        if self.count >= self.kill_at:
            raise Killed

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: it is told before the system call is made."""
        if self.folder is None or threading.current_thread() is not threading.main_thread():
            return
        if event == "open":
            changes = isinstance(arguments[2], int) and bool(arguments[2] & WRITING)
        else:
            changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
        if changes and str(arguments[0]).startswith(str(self.folder)):
            self.one()

    def half(self, file: BinaryIO, data: bytes) -> None:
        """A write of two halves, which a kill may come between."""
        file.write(data[: len(data) // 2])
        if self.folder is not None:
            file.flush()
            self.one()
        file.write(data[len(data) // 2 :])


WRITES = Writes()
sys.addaudithook(WRITES.hook)  # hooks cannot be taken away: it does nothing unless it watches


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**hf.presets.martens2010_curves, "cg_max_iter": 3}
    preset = AutoencoderPreset((784, 3, 2), hf.losses.LogisticCrossEntropy(), 3, options)
    monkeypatch.setitem(hf.presets.autoencoders, "curves", preset)
    for module in (autoencoders, fig5):
        monkeypatch.setattr(module, "load", lambda name, folder=None: curves(20, 5, seed=1))
    monkeypatch.setattr(atomic, "write_all", WRITES.half)
    # Plots take most of the time of so short a run.
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, to, **_: to.write(b"PNG"))


def call(arguments: list[str], folder: Path, *more: str) -> str:
    result = invoke(*arguments, "--run-dir", folder, *more)
    assert result.exit_code == 0, result.output
    return result.output.replace(str(folder), "RUN")


def results_of(text: str) -> list[str]:
    """The lines that do not differ from call to call."""
    return [line for line in text.splitlines() if line.startswith(("| ", "test error", "iter"))]


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_a_write_and_resumed(command: str, stride: int, tmp_path: Path) -> None:
    arguments = COMMANDS[command]
    with WRITES.watched(tmp_path / "whole"):
        whole = results_of(call(arguments, tmp_path / "whole"))
    points = WRITES.count
    assert whole
    assert points > 20
    for point in range(1, points + 1, stride):
        folder = tmp_path / f"at-{point}"
        with pytest.raises(Killed), WRITES.watched(folder, point):
            call(arguments, folder)
        more = ["--resume"] if folder.is_dir() else []
        assert results_of(call(arguments, folder, *more)) == whole, point
