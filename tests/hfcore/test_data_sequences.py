"""Sets of sequences: windows, offsets, arrays of files, piano-rolls."""

from __future__ import annotations

import hashlib
import io
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from torch import Tensor

from hfcore.data import DataFileError, SequenceSet, piano_rolls
from hfcore.data.files import DataFile, read_arrays
from hfcore.data.sequences import pieces_of

needs_data = pytest.mark.skipif(
    "HFCORE_DATA" not in os.environ, reason="HFCORE_DATA names no folder with the piano-rolls"
)


def numbered(*lengths: int, size: int = 2) -> list[Tensor]:
    """Pieces whose every number tells the piece, the frame and the column."""
    frames = [torch.arange(length)[:, None] * 10 + torch.arange(size) for length in lengths]
    return [1000.0 * (i + 1) + piece for i, piece in enumerate(frames)]


def some(**parts: list[Tensor]) -> SequenceSet:
    given = {"train": numbered(5), "validation": numbered(4), "test": numbered(3), **parts}
    return SequenceSet("made_up", **given, facts="Made up.")  # type: ignore[arg-type]


# ---- windows


def test_windows_predict_every_frame_but_the_first_once() -> None:
    pieces = numbered(7, 3, 4, 1)
    windows = some(train=pieces).windows("train", 3)
    assert windows.shape == (4, 3, 2)
    assert windows.is_contiguous()
    expected = [pieces[0][0:4], pieces[0][3:7], pieces[2][0:4]]  # three frames make no window
    assert torch.equal(windows, torch.stack(expected, 1))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_windows_leave_out_less_than_one_of_every_piece(length: int) -> None:
    pieces = numbered(11, 2, 6, 17)
    windows = some(train=pieces).windows("train", length)
    predicted = windows[1:].permute(1, 0, 2).reshape(-1, 2)
    expected = [p[1 : 1 + (len(p) - 1) // length * length] for p in pieces]
    assert torch.equal(predicted, torch.cat(expected))


def test_windows_longer_than_every_piece() -> None:
    with pytest.raises(ValueError, match=r"length: got 4, need at most 3: .* made_up's validation"):
        some().windows("validation", 4)
    assert some().windows("validation", 3).shape == (4, 1, 2)
    with pytest.raises(ValueError, match="length: got 0"):
        some().windows("test", 0)
    with pytest.raises(ValueError, match="part: got 'dev', need one of 'train'"):
        some().windows("dev", 1)


def test_an_empty_part() -> None:
    with pytest.raises(ValueError, match="validation: got no pieces, need at least 1"):
        some(validation=[])


def test_pieces_of_another_form() -> None:
    with pytest.raises(ValueError, match=r"test\[1\]: got shape \[4, 3\], need \[frames, 2\]"):
        some(test=[*numbered(3), torch.zeros(4, 3)])


# ---- files


def test_pieces_lie_between_offsets() -> None:
    rows = np.arange(12, dtype=np.int16).reshape(6, 2)
    pieces = pieces_of(rows, np.array([0, 1, 4, 6]), "x")
    assert [len(p) for p in pieces] == [1, 3, 2]
    assert torch.equal(torch.cat(pieces), torch.arange(12.0).view(6, 2))


@pytest.mark.parametrize("offsets", [[0, 3, 3, 6], [1, 6], [0, 7], [0, 5], [0, 4, 2, 6]], ids=str)
def test_offsets_that_do_not_rise_to_the_end(offsets: list[int]) -> None:
    with pytest.raises(DataFileError, match=r"x: its offsets go from . to ., need them to rise"):
        pieces_of(np.zeros((6, 2)), np.array(offsets), "x")


def test_no_offsets() -> None:
    with pytest.raises(DataFileError, match="x: has no pieces, need at least 1"):
        pieces_of(np.zeros((0, 2)), np.array([0]), "x")


def packed(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def test_arrays_of_a_file() -> None:
    found = read_arrays(packed(a=[1, 2], b=3), "x.npz", ["b"])
    assert list(found) == ["b"]
    with pytest.raises(DataFileError, match=r"x\.npz: has no array c, d"):
        read_arrays(packed(a=1), "x.npz", ["c", "a", "d"])
    objects = packed(a=np.array([{}]))  # unpickling would run what the file says
    for damaged in (b"", b"no zip at all", objects, packed(a=np.zeros(99))[:-40]):
        with pytest.raises(DataFileError, match=r"x\.npz: is no \.npz file of plain arrays"):
            read_arrays(damaged, "x.npz", ["a"])


def test_a_repacked_file_is_never_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def urlopen(*arguments: object, **options: object) -> None:
        raise AssertionError("a request")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.delenv("HFCORE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = b"repacked"
    digest = hashlib.sha256(data).hexdigest()
    file = DataFile("set", "x.npz", len(data), digest, "https://example.org/set", repacked=True)
    with pytest.raises(DataFileError, match=r"x\.npz: is not there, or damaged; put x\.npz .* made "
                       r"from https://example\.org/set\) into a folder"):  # fmt: skip
        file.read()
    (tmp_path / "hfcore" / "set").mkdir(parents=True)
    (tmp_path / "hfcore" / "set" / "x.npz").write_bytes(data)
    assert file.read() == data


# ---- piano-rolls


def rolls(**changes: Any) -> dict[str, Any]:
    """Arrays of a tiny file, three pieces a part."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for stored in ("train", "valid", "test"):
        arrays[f"{stored}_roll"] = (generator.random((9, 88)) < 0.1).astype(np.uint8)
        arrays[f"{stored}_offsets"] = np.array([0, 2, 3, 9])
    return {**arrays, **changes}


def as_mat(arrays: dict[str, Any]) -> bytes:
    """The same pieces as the MATLAB file has them."""
    cells = {}
    for stored in ("train", "valid", "test"):
        pieces = np.split(arrays[f"{stored}_roll"], arrays[f"{stored}_offsets"][1:-1])
        cells[f"{stored}data"] = np.empty((1, len(pieces)), object)
        cells[f"{stored}data"][0] = pieces
    out = io.BytesIO()
    scipy.io.savemat(out, cells)
    return out.getvalue()


def pretend(
    arrays: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, form: str = "NPZ"
) -> None:
    """These arrays pass for the chorales and lie in the folder, in one form of the file."""
    data = packed(**arrays) if form == "NPZ" else as_mat(arrays)
    digest = hashlib.sha256(data).hexdigest()
    file = DataFile("pianoroll", f"jsb.{form}", len(data), digest, "https://example.org")
    module = import_module("hfcore.data.piano_rolls")
    monkeypatch.setitem(getattr(module, form), "jsb_chorales", file)
    (folder / file.name).write_bytes(data)


@pytest.mark.parametrize("form", ["NPZ", "MAT"])
def test_rolls_are_read_in_their_parts(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = rolls()
    pretend(arrays, tmp_path, monkeypatch, form)
    found = piano_rolls("jsb_chorales", tmp_path)
    for part, stored in (("train", "train"), ("validation", "valid"), ("test", "test")):
        assert [len(p) for p in found.part(part)] == [2, 1, 6]
        assert torch.cat([*found.part(part)]).tolist() == arrays[f"{stored}_roll"].tolist()
    wide = piano_rolls("jsb_chorales", tmp_path, midi_keys=True).train[2]
    assert wide.shape == (6, 128)
    assert torch.equal(wide[:, 21:109], found.train[2])
    assert wide.sum() == found.train[2].sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"valid_roll": np.full((9, 88), 2, np.uint8)},
            "jsb_chorales: validation: its roll holds a 2",
        ),
        ({"test_roll": np.zeros((9, 87), np.uint8)}, r"test: its roll has shape \[9, 87\], need"),
        ({"train_offsets": np.array([0, 2, 8])}, "train: its offsets go from 0 to 8"),
        ({"test_offsets": np.array([0])}, "test: has no pieces"),
    ],
    ids=["not_binary", "keys", "offsets", "empty"],
)
def test_files_with_other_contents(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(rolls(**changes), tmp_path, monkeypatch)
    with pytest.raises(DataFileError, match=message):
        piano_rolls("jsb_chorales", tmp_path)


def test_missing_and_damaged_rolls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataFileError, match=r"Piano_midi\.mat: is not there; put Piano_midi\.mat"):
        piano_rolls(folder=tmp_path)
    pretend(rolls(), tmp_path, monkeypatch)
    path = tmp_path / "jsb.NPZ"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataFileError, match="is truncated"):
        piano_rolls("jsb_chorales", tmp_path)
    with pytest.raises(ValueError, match="name: got 'bach', need one of 'piano_midi'"):
        piano_rolls("bach")


@needs_data
def test_the_smallest_set_is_the_published_one() -> None:
    found = piano_rolls("jsb_chorales")
    parts = [found.part(name) for name in ("train", "validation", "test")]
    assert [len(p) for p in parts] == [229, 76, 77]
    assert [sum(map(len, p)) for p in parts] == [13807, 4602, 4725]
    sounding = torch.cat([*found.train]).sum(1)
    assert sounding.max() == 4  # voices of a chorale
    keys = torch.cat([*found.train]).sum(0).nonzero().ravel() + 21
    assert (int(keys[0]), int(keys[-1])) == (43, 96)
