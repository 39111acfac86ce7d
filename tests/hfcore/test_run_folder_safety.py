"""Run folders touch only what is theirs, and whatever lies in one ends in one kind of error."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import hfcore as hf
from hfcore.training import CheckpointError, Limits, RunFolderError, read_metrics
from hfcore.training.atomic import TEMPORARY_SUFFIX
from hfcore.training.checkpoint import FORMAT, Checkpoints
from hfcore.training.metrics_log import sealed_line

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcore.training.plots.draw_plots", lambda *a, **options: ())


def run(folder: Path, iterations: int, *, resume: bool = False) -> bytes:
    model = hf.MLP([3, 2], ["linear"], generator=torch.Generator().manual_seed(0))
    hf.train(
        model,
        (X, X[:, :2].clone()),
        hf.NAG(model, lr=0.01, momentum=0.9),
        loss=hf.losses.SquaredError(),
        stop=Limits(iterations=iterations),
        checkpoint_every=1,
        run_dir=folder,
        resume=resume,
        progress=False,
    )
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four iterations."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    run(folder, 4)
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return run(tmp_path_factory.mktemp("whole") / "run", 7)


# ---- foreign files


FOREIGN = (
    "checkpoints/best.safetensors",
    "checkpoints/00000010 (conflicted copy).json",
    "checkpoints/00000010 (conflicted copy).safetensors",
    "checkpoints/0000002.json",
    "checkpoints/00000004.json.bak",
    "checkpoints/notes.tmp",
    "checkpoints/1.safetensors",
    "notes.tmp",
    "thesis.tex",
    "metrics.jsonl.tmp",
)


def test_files_of_others_are_neither_touched_nor_in_the_way(folder: Path, whole: bytes) -> None:
    for name in FOREIGN:
        (folder / name).write_bytes(name.encode())
    (folder / "checkpoints" / "00000012.json.d").mkdir()
    assert run(folder, 7, resume=True) == whole
    for name in FOREIGN:
        assert (folder / name).read_bytes() == name.encode()
    assert (folder / "checkpoints" / "00000012.json.d").is_dir()
    there = {p.name for p in (folder / "checkpoints").iterdir() if p.is_file()}
    assert there - {Path(name).name for name in FOREIGN} == {
        f"0000000{i}.{end}" for i in (6, 7) for end in ("json", "safetensors")
    }


def test_a_file_of_others_with_a_name_of_ours_costs_no_checkpoint(
    folder: Path, whole: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = folder / "checkpoints" / "00000099.json"
    foreign.write_text("{}")
    with caplog.at_level(logging.WARNING, "hfcore"):
        assert run(folder, 7, resume=True) == whole
    assert "00000099.json" in caplog.text
    assert foreign.read_text() == "{}"
    assert (folder / "checkpoints" / "00000006.json").exists()


def test_what_a_kill_left_is_removed(folder: Path) -> None:
    left = [
        folder / f"config.json{TEMPORARY_SUFFIX}",
        folder / "checkpoints" / f"00000005.safetensors{TEMPORARY_SUFFIX}",
        folder / "checkpoints" / "00000005.safetensors",
    ]
    for path in left:
        path.write_bytes(b"half")
    run(folder, 4, resume=True)
    assert not any(path.exists() for path in left)


# ---- hostile folders


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def seal(body: Any) -> bytes:
    text = json.dumps(body, separators=(",", ":"))
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": body}).encode()


def body_of(folder: Path) -> dict[str, Any]:
    path = folder / "checkpoints" / "00000004.json"
    body: dict[str, Any] = json.loads(path.read_bytes())["body"]
    return body


def with_body(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], bytes]:
    """The newest checkpoint's JSON with its body changed, sealed again."""

    def changed(folder: Path) -> bytes:
        body = body_of(folder)
        given = change(body)
        return seal(body if given is None else given)

    return changed


def state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], bytes]:
    return with_body(lambda body: change(body["state"]) and None)


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda folder: b"",
    "not JSON": lambda folder: b"\x00\xff",
    "a list": lambda folder: b"[]",
    "a number": lambda folder: b"3",
    "no body": lambda folder: b'{"sha256": "x"}',
    "nested": lambda folder: f'{{"sha256": "x", "body": {nested(100_000)}}}'.encode(),
    "nested within limits": lambda folder: f'{{"sha256": "x", "body": {nested(900)}}}'.encode(),
    "a body of text": with_body(lambda body: "text"),
    "an empty body": with_body(lambda body: {}),
    "a body of a list": with_body(lambda body: [1]),
    "huge number": lambda folder: b'{"sha256": "x", "body": ' + b"9" * 10_000 + b"}",
    "NaN": lambda folder: b'{"sha256": "x", "body": {"format": NaN}}',
    "another format": with_body(lambda body: body.update(format=FORMAT + 1)),
    "another iteration": with_body(lambda body: body.update(iteration=3)),
    "iteration of text": with_body(lambda body: body.update(iteration="4")),
    "iteration true": with_body(lambda body: body.update(iteration=True)),
    "a negative size": with_body(lambda body: body.update(tensors_bytes=-1)),
    "a wrong size": with_body(lambda body: body.update(tensors_bytes=10**15)),
    "no fingerprint": with_body(lambda body: body.update(config_fingerprint=None)),
    "no state": with_body(lambda body: body.pop("state") and None),
    "a state of a list": with_body(lambda body: body.update(state=[])),
    "tensors of a list": with_body(lambda body: body.update(tensors=["a"])),
    "an unknown tensor": state(lambda s: s.update(model={"$tensor": "nowhere"}) or 1),
    "a tensor named by a list": state(lambda s: s.update(model={"$tensor": [1]}) or 1),
    "a tuple of a number": state(lambda s: s.update(model={"$tuple": 3}) or 1),
    "a float of text": state(lambda s: s.update(model={"$float": "text"}) or 1),
    "odd items": state(lambda s: s.update(model={"$items": [1, 2]}) or 1),
    "keys that are lists": state(lambda s: s.update(model={"$items": [[[1], 2]]}) or 1),
    "no model": state(lambda s: s.pop("model")),
    "no progress": state(lambda s: s.pop("progress")),
    "progress of a list": state(lambda s: s.update(progress=[1]) or 1),
    "progress of texts": state(lambda s: s["progress"].update(iteration="4") or 1),
    "progress of nothing": state(lambda s: s["progress"].update(sequences=None) or 1),
    "progress true": state(lambda s: s["progress"].update(evaluated=True) or 1),
    "progress too much": state(lambda s: s["progress"].update(other=1) or 1),
    "progress of another iteration": state(lambda s: s["progress"].update(iteration=2) or 1),
    "a model of a list": state(lambda s: s.update(model=[1, 2]) or 1),
    "a model of nothing": state(lambda s: s.update(model=None) or 1),
    "an optimiser of a list": state(lambda s: s.update(optimizer=[1]) or 1),
    "an optimiser of text": state(lambda s: s.update(optimizer="text") or 1),
    "no groups": state(lambda s: s["optimizer"].update(param_groups=[]) or 1),
    "groups of numbers": state(lambda s: s["optimizer"].update(param_groups=[1]) or 1),
    "random of text": state(lambda s: s.update(random="text") or 1),
    "random of nothing": state(lambda s: s.update(random={"torch": None, "cuda": None}) or 1),
    "callbacks of a number": state(lambda s: s.update(callbacks=3) or 1),
    "deep state": lambda folder: deep_state(folder),
}


def deep_state(folder: Path) -> bytes:
    """As deep as Python's JSON reads, sealed: what takes it apart must not fall."""
    body = body_of(folder)
    for depth in (900, 700, 500, 300):
        body["state"]["model"] = json.loads(nested(depth))
        try:
            return seal(body)
        except RecursionError:
            continue
    raise AssertionError("nothing could be sealed")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_checkpoints_end_in_one_kind_of_error(folder: Path, name: str) -> None:
    """All checkpoints but the hostile one are gone, so that there is nothing to go back to."""
    (folder / "checkpoints" / "00000003.json").unlink()
    (folder / "checkpoints" / "00000004.json").write_bytes(HOSTILE[name](folder))
    if name == "callbacks of a number":  # no callback has a state: nothing is asked of it
        run(folder, 5, resume=True)
        return
    with pytest.raises(CheckpointError, match=r"00000004\.json|iteration 4|no good checkpoint"):
        run(folder, 5, resume=True)
    with contextlib.suppress(CheckpointError):  # which needs neither progress nor random states
        hf.load_run(folder)


@pytest.mark.parametrize("path", ["/dev/zero", "../../secret.safetensors", "/etc/passwd", ""])
def test_the_path_of_the_tensors_is_not_followed(folder: Path, whole: bytes, path: str) -> None:
    """A JSON cannot lead out of the folder: the tensors beside it are read, or none."""
    secret = {"theft": torch.ones(3)}
    (folder.parent / "secret.safetensors").write_bytes(safetensors.torch.save(secret))
    changed = with_body(lambda body: body.update(tensors=path))(folder)
    (folder / "checkpoints" / "00000004.json").write_bytes(changed)
    assert run(folder, 7, resume=True) == whole


@pytest.mark.parametrize("target", ["/dev/zero", "missing", "."])
def test_tensors_that_are_no_file_are_damage(folder: Path, whole: bytes, target: str) -> None:
    tensors = folder / "checkpoints" / "00000004.safetensors"
    tensors.unlink()
    tensors.symlink_to(target)
    assert run(folder, 7, resume=True) == whole  # from iteration 3


def test_a_pipe_is_not_waited_for(folder: Path, whole: bytes) -> None:
    path = folder / "checkpoints" / "00000004.json"
    path.unlink()
    os.mkfifo(path)
    assert run(folder, 7, resume=True) == whole
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(RunFolderError, match=r"config\.json: corrupt"):
        run(folder, 7, resume=True)


def test_tensors_of_other_shapes_do_not_fit(folder: Path) -> None:
    path = folder / "checkpoints" / "00000004.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    changed = {key: value.flatten()[:1].clone() for key, value in tensors.items()}
    data = safetensors.torch.save(changed)
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    sealed = with_body(lambda body: body.update(tensors_sha256=digest, tensors_bytes=len(data)))
    path.with_suffix(".json").write_bytes(sealed(folder))
    with pytest.raises(CheckpointError, match="iteration 4 does not fit"):
        run(folder, 7, resume=True)


@pytest.mark.parametrize(
    "text", [nested(100_000), f'{{"model": {nested(100_000)}}}', "9" * 10_000, '{"format": [2]}']
)
def test_hostile_settings_are_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"config\.json: (corrupt|is of run folder format)"):
        run(folder, 7, resume=True)
    with pytest.raises(RunFolderError):
        hf.load_run(folder)


def test_other_files_are_never_pruned(tmp_path: Path) -> None:
    stored = Checkpoints(tmp_path, "config", keep=1)
    (tmp_path / "00000009x.json").write_text("")
    for iteration in range(3):
        stored.save(iteration, {"a": iteration})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "00000002.json",
        "00000002.safetensors",
        "00000009x.json",
    ]


# ---- metrics.jsonl


DAMAGE: dict[str, Callable[[str], str]] = {
    "torn": lambda line: line[: len(line) // 2] + "\n",
    "a flipped digit": lambda line: line.replace('"minibatches": 0', '"minibatches": 1', 1),
    "a flipped key": lambda line: line.replace('"iteration"', '"iterbtion"', 1),
    "a list": lambda line: "[]\n",
    "a number": lambda line: "3\n",
    "nothing": lambda line: "\n",
    "nested": lambda line: nested(100_000) + "\n",
    "bytes": lambda line: "\x00\x01\n",
    "a second checksum": lambda line: line.replace('"crc32": "', '"crc32": "0', 1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_line_is_counted_and_the_others_stay(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + DAMAGE[name](lines[1]) + "".join(lines[2:]))
    with caplog.at_level(logging.WARNING, "hfcore"):
        found = read_metrics(path)
    assert [line["iteration"] for line in found] == [1, 3, 4]
    assert "1 damaged line left out (line 2)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "hfcore"):
        run(folder, 6, resume=True)
    assert "1 damaged line left out (line 2)" in caplog.text
    assert "the log has 3 lines for 4 iterations" in caplog.text
    assert [line["iteration"] for line in read_metrics(path)] == [1, 3, 4, 5, 6]


def test_lines_that_are_gone_are_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:10])  # as after a power cut
    with caplog.at_level(logging.WARNING, "hfcore"):
        run(folder, 5, resume=True)
    assert "the log has 2 lines for 4 iterations" in caplog.text
    assert [line["iteration"] for line in read_metrics(path)] == [1, 2, 5]


def test_a_log_that_is_no_file_is_refused(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl: .*no regular file"):
        run(folder, 5, resume=True)


def test_numbers_come_back_and_the_checksum_does_not(tmp_path: Path) -> None:
    line = {"iteration": 3, "a": 0.1, "b": "nan", "c": None, "d": {"e": [1, 2.5]}, "f": "λ"}
    (tmp_path / "m").write_text(sealed_line(line))
    (found,) = read_metrics(tmp_path / "m")
    assert math.isnan(found.pop("b"))
    assert found == {k: v for k, v in line.items() if k != "b"}
