"""The IDX format, and MNIST read from it."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import invoke
from hfcore.data import DataFileError, mnist, statistics
from hfcore.data.files import DataFile
from hfcore.data.mnist import read_idx


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.mark.parametrize("shape", [(1,), (0, 3), (7, 1), (3, 5, 11), (2, 1, 3, 2)], ids=str)
def test_idx_round_trip(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape)
    np.testing.assert_array_equal(read_idx(gzip.compress(idx(values)), "x"), values)


GOOD = idx(np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"", "begins with nothing, need the magic number"),
        (GOOD, "not a whole gzip file"),
        (gzip.compress(GOOD)[:-9], "not a whole gzip file"),
        (gzip.compress(b"\0\0\x0d" + GOOD[3:]), "begins with 00000d02, need the magic number"),
        (gzip.compress(b"\1" + GOOD[1:]), "begins with 01000802, need the magic number"),
        (gzip.compress(GOOD[:7]), "ends within its header, 7 of 12 bytes"),
        (gzip.compress(GOOD[:-1]), r"holds 5 values, need 6 for its shape \[2, 3\]"),
        (gzip.compress(GOOD + b"\0"), r"holds 7 values, need 6 for its shape \[2, 3\]"),
    ],
    ids=["empty", "unpacked", "cut", "floats", "magic", "header", "short", "long"],
)
def test_idx_errors(packed: bytes, message: str) -> None:
    with pytest.raises(DataFileError, match=f"^digits.gz: {message}"):
        read_idx(packed, "digits.gz")


# ---- the data set

needs_data = pytest.mark.skipif(
    "HFCORE_DATA" not in os.environ, reason="HFCORE_DATA names no folder with the MNIST files"
)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Five training and three test images in ``tmp_path`` that pass for MNIST."""
    images = np.random.default_rng(1).integers(0, 256, (8, 28, 28), dtype=np.uint8)
    for name, part in (("TRAIN", images[:5]), ("TEST", images[5:])):
        packed = gzip.compress(idx(part))
        digest = hashlib.sha256(packed).hexdigest()
        file = DataFile("mnist", f"{name}.gz", len(packed), digest, "https://example.org")
        monkeypatch.setattr(import_module("hfcore.data.mnist"), name, file)
        (tmp_path / file.name).write_bytes(packed)
    return images


def test_images_become_rows_in_the_unit_interval(small: np.ndarray, tmp_path: Path) -> None:
    dataset = mnist(tmp_path)
    rows = torch.from_numpy(small).view(8, 784).float() / 255
    assert torch.equal(dataset.train, rows[:5])
    assert torch.equal(dataset.test, rows[5:])
    assert dataset.validation is None
    assert not dataset.regenerated


def test_command_says_what_is_missing(small: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "TEST.gz").unlink()
    result = invoke("data", "mnist", "--folder", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path / 'TEST.gz'}: is not there; put TEST.gz (")
    assert result.stderr.count("\n") == 1


@needs_data
def test_the_real_files() -> None:
    dataset = mnist()
    assert dataset.train.shape == (60_000, 784)
    assert dataset.test.shape == (10_000, 784)
    assert dataset.train.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert dataset.train.std().item() == pytest.approx(0.3081, abs=5e-5)


@needs_data
@pytest.mark.slow
def test_the_published_pca_error() -> None:
    assert statistics(mnist()).pca_error == pytest.approx(13.87, abs=0.005)
