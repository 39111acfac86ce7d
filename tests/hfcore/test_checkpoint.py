"""Checkpoints: nothing is lost or altered, whatever happens to the process, the disk or a file."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hfcore.training import CheckpointError, RunFolderError
from hfcore.training.atomic import TEMPORARY_SUFFIX
from hfcore.training.checkpoint import Checkpoints
from hfcore.training.state_tree import flatten, unflatten

STATE: dict[str, Any] = {
    "tensors": {"w": torch.arange(6.0).view(2, 3), "none": torch.empty(0), "one": torch.tensor(3)},
    "numbers": [0.1, -0.0, 1e-310, math.inf, -math.inf, 2**127 + 1, True, None, "λ"],
    "odd keys": {0: {"exp_avg": torch.ones(2, dtype=torch.float64)}, "$x": (1, (2.5,))},
}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, "this config")


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a) and str(a) == str(b)


# ---- what is stored comes back


def test_state_comes_back_to_the_bit(checkpoints: Checkpoints) -> None:
    state = {**STATE, "nan": math.nan, "bytes": torch.get_rng_state()}
    checkpoints.save(7, state)
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.iteration == 7
    assert same(loaded.state, state)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8]
)
def test_views_of_one_buffer_are_stored_apart(checkpoints: Checkpoints, dtype: torch.dtype) -> None:
    flat = torch.arange(12).to(dtype)
    checkpoints.save(0, {"a": flat[:6].view(2, 3), "b": flat[6:], "c": flat.view(3, 4).T})
    loaded = checkpoints.load()
    assert loaded is not None
    assert torch.equal(loaded.state["a"], flat[:6].view(2, 3))
    assert torch.equal(loaded.state["b"], flat[6:])
    assert torch.equal(loaded.state["c"], flat.view(3, 4).T)


def test_keys_with_slashes_do_not_collide() -> None:
    tree = {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}}
    tensors: dict[str, torch.Tensor] = {}
    node = flatten(tree, "root", tensors)
    assert same(unflatten(json.loads(json.dumps(node)), tensors), tree)


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.float32, lambda: 0, 1j, b"raw"])
def test_unknown_type_is_refused_by_name(checkpoints: Checkpoints, value: object) -> None:
    with pytest.raises(CheckpointError, match=r"optimizer/state/extra: a .* cannot be stored"):
        checkpoints.save(1, {"optimizer": {"state": {"extra": value}}})
    assert list(checkpoints.folder.iterdir()) == []


def test_the_newest_two_are_kept(checkpoints: Checkpoints) -> None:
    for iteration in (8, 9, 10, 99_999_999, 100_000_000):
        checkpoints.save(iteration, STATE)
    names = sorted(p.name for p in checkpoints.folder.iterdir())
    assert names == [
        f"{i}.{end}" for i in ("100000000", "99999999") for end in ("json", "safetensors")
    ]


def test_an_empty_folder_holds_none(checkpoints: Checkpoints) -> None:
    assert checkpoints.load() is None


def test_a_checkpoint_without_its_json_does_not_count(checkpoints: Checkpoints) -> None:
    checkpoints.save(1, STATE)
    checkpoints.save(2, STATE)
    (checkpoints.folder / "00000002.json").unlink()
    (checkpoints.folder / ("00000003.safetensors" + TEMPORARY_SUFFIX)).write_bytes(b"half")
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.iteration == 1
    checkpoints.clean()
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == [
        "00000001.json",
        "00000001.safetensors",
    ]


# ---- damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b"0.1") + 2 if path.suffix == ".json" else len(data) - 3
    data[place] ^= 1  # in the JSON: 0.1 becomes 0.0, which still parses
    path.write_bytes(bytes(data))


def remove(path: Path) -> None:
    path.unlink()


DAMAGE = [
    ("00000002.json", truncate),
    ("00000002.json", empty),
    ("00000002.json", flip),
    ("00000002.safetensors", truncate),
    ("00000002.safetensors", empty),
    ("00000002.safetensors", flip),
    ("00000002.safetensors", remove),
]


@pytest.mark.parametrize(("name", "harm"), DAMAGE, ids=lambda v: getattr(v, "__name__", v))
def test_damage_falls_back_and_says_so(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture, name: str, harm: Any
) -> None:
    checkpoints.save(1, {**STATE, "lambda": 5.0})
    checkpoints.save(2, {**STATE, "lambda": 4.0})
    harm(checkpoints.folder / name)
    with caplog.at_level(logging.WARNING, "hfcore"):
        loaded = checkpoints.load()
    assert loaded is not None
    assert (loaded.iteration, loaded.state["lambda"]) == (1, 5.0)
    assert name in caplog.text
    assert "going back to iteration 1" in caplog.text


def test_no_good_checkpoint_names_every_file(checkpoints: Checkpoints) -> None:
    checkpoints.save(1, STATE)
    checkpoints.save(2, STATE)
    truncate(checkpoints.folder / "00000001.safetensors")
    truncate(checkpoints.folder / "00000002.json")
    with pytest.raises(CheckpointError, match=r"00000002\.json.*00000001\.safetensors"):
        checkpoints.load()


def test_a_checkpoint_of_another_config_is_an_error(checkpoints: Checkpoints) -> None:
    checkpoints.save(1, STATE)
    other = Checkpoints(checkpoints.folder, "other config")
    with pytest.raises(CheckpointError, match=r"00000001\.json: belongs to a run with another"):
        other.load()


# ---- a full disk


@pytest.mark.parametrize("failing_call", [1, 2, 3, 4])
def test_full_disk_leaves_the_previous_checkpoint(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    """fsync 1 and 3 are of the temporary files, 2 and 4 of the folder after each rename."""
    checkpoints.save(1, STATE)
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"00000002\.\w+: the disk is full"):
        checkpoints.save(2, STATE)
    assert not list(checkpoints.folder.glob("*.tmp"))
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.iteration == (2 if failing_call == 4 else 1)
    assert same(loaded.state, STATE)
    assert (checkpoints.folder / "00000001.json").exists()


# ---- kill -9


class Trainer:
    """A server of killable runs; see kill_server.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("kill_server.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        run_dir: Path,
        *,
        kind: str = "problem",
        kill: tuple[str, int] | None = None,
        delay: float | None = None,
    ) -> bool:
        """Start or resume a run and kill it if asked to; True if it came to its end."""
        resume = run_dir.is_dir()
        request = {"run_dir": str(run_dir), "resume": resume, "kill": kill, "delay": delay}
        request["kind"] = kind
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        assert status in (0, signal.SIGKILL), f"the run failed with wait status {status}"
        return status == 0


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    server = Trainer()
    yield server
    assert server.process.stdin is not None
    server.process.stdin.close()
    server.process.wait(timeout=30)


def trajectory(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics without wall-clock fields."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    wall_clock = ("seconds", "training_seconds", "step_seconds", "crc32")
    return [{k: v for k, v in line.items() if k not in wall_clock} for line in lines]


def last_state(run_dir: Path) -> dict[str, Any]:
    """Everything in the last checkpoint apart from the elapsed time."""
    path = max((run_dir / "checkpoints").glob("*.json"))
    body: dict[str, Any] = json.loads(path.read_bytes())["body"]
    best = body["state"]["callbacks"].get("BestModel", {"metrics": {}})["metrics"]
    for counts in (body["state"]["progress"], best):
        for clock in ("seconds", "step_seconds", "training_seconds"):
            counts.pop(clock, None)
    return body


POINTS = ("write", "before fsync", "after fsync", "before replace", "after replace")


def kill_and_compare(
    trainer: Trainer, folder: Path, kills: int, seed: int, kind: str = "problem"
) -> None:
    """Kill a run ``kills`` times, every other time inside a write, and compare what it becomes.

    When a run reaches its end before all kills are spent, it is compared and another begins.
    """
    whole = folder / "whole"
    started = time.perf_counter()
    assert trainer.run(whole, kind=kind)
    duration = time.perf_counter() - started
    expected, expected_state = trajectory(whole), last_state(whole)
    assert len(expected) >= 20
    rng = random.Random(seed)
    done = runs = 0
    while done < kills or runs == 0:
        broken = folder / f"broken-{runs}"
        finished = False
        while not finished:
            kill, delay = None, None
            if done < kills and done % 2:
                kill = (rng.choice(POINTS), rng.randint(1, 24))
            elif done < kills:
                delay = rng.uniform(0.0, duration / 3)
            finished = trainer.run(broken, kind=kind, kill=kill, delay=delay)
            done += not finished
        assert trajectory(broken) == expected
        assert last_state(broken) == expected_state
        assert not list(broken.rglob("*.tmp"))
        runs += 1
    assert done == kills


@pytest.mark.timeout(120)
def test_killed_runs_resume_to_the_same_bits(trainer: Trainer, tmp_path: Path) -> None:
    kill_and_compare(trainer, tmp_path, kills=4, seed=1)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["sequences", "loader"])
def test_killed_runs_on_ones_own_data_resume_to_the_same_bits(
    trainer: Trainer, tmp_path: Path, kind: str
) -> None:
    kill_and_compare(trainer, tmp_path, kills=2, seed=3, kind=kind)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_kills_resume_to_the_same_bits(trainer: Trainer, tmp_path: Path) -> None:
    kill_and_compare(trainer, tmp_path, kills=50, seed=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_every_pass_of_a_write(trainer: Trainer, tmp_path: Path, point: str) -> None:
    """From config.json to the first checkpoints: every single pass, one kill each."""
    whole = tmp_path / "whole"
    assert trainer.run(whole)
    for n in range(1, 10):
        broken = tmp_path / f"broken-{n}"
        assert not trainer.run(broken, kill=(point, n))
        assert trainer.run(broken)
        assert trajectory(broken) == trajectory(whole)
        assert last_state(broken) == last_state(whole)
