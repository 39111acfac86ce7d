"""FACES: the two forms of the Olivetti file, the transforms, the splits by person."""

from __future__ import annotations

import hashlib
import io
import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
import torch

from command_line import invoke
from hfcore.data import DataFileError, faces, statistics
from hfcore.data.faces import _transformed, olivetti
from hfcore.data.files import DataFile

needs_data = pytest.mark.skipif(
    "HFCORE_DATA" not in os.environ, reason="HFCORE_DATA names no folder with the Olivetti faces"
)


def pretend(name: str, data: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``data`` passes for the Olivetti file ``name`` (MAT or NPZ) and lies in the folder."""
    module = import_module("hfcore.data.faces")
    digest = hashlib.sha256(data).hexdigest()
    file = DataFile("olivetti", f"{name}.data", len(data), digest, "https://example.org")
    monkeypatch.setattr(module, name, file)
    (folder / file.name).write_bytes(data)


def as_mat(images: np.ndarray) -> bytes:
    out = io.BytesIO()
    scipy.io.savemat(out, {"faces": np.stack([i.reshape(-1, order="F") for i in images], axis=1)})
    return out.getvalue()


def as_npz(images: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, images=images)
    return out.getvalue()


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (400, 64, 64), dtype=np.uint8)


def test_both_forms_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise()
    pretend("MAT", as_mat(images), tmp_path, monkeypatch)
    np.testing.assert_array_equal(olivetti(tmp_path), images)
    pretend("NPZ", as_npz(255 - images), tmp_path, monkeypatch)
    monkeypatch.setenv("HFCORE_DATA", str(tmp_path))
    np.testing.assert_array_equal(olivetti(), 255 - images)  # the smaller form goes first


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"olivettifaces\.mat: is not there; put olivettifaces"):
        faces(tmp_path)
    result = invoke("data", "faces", "--folder", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")


def test_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("NPZ", as_npz(noise()), tmp_path, monkeypatch)
    path = tmp_path / "NPZ.data"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataFileError, match="is truncated"):
        faces(tmp_path, transforms=1)


def test_transforms_equal_interpolation_by_scipy() -> None:
    images = noise()[::40]
    made = _transformed(images, 3, seed=7).reshape(10, 3, 25, 25)
    generator = np.random.default_rng(7)
    angle = generator.uniform(-np.pi / 2, np.pi / 2, (10, 3))
    scale = generator.uniform(1.4, 1.8, (10, 3))
    fine = (np.arange(75) - 37) / 3  # three samples a pixel, in output pixels from the middle
    v, u = np.meshgrid(fine, fine)
    for n, k in np.ndindex(10, 3):
        c, s = 2.56 / scale[n, k] * np.array([np.cos(angle[n, k]), np.sin(angle[n, k])])
        at = np.clip([31.5 + c * u + s * v, 31.5 - s * u + c * v], 0, 63)
        sampled = scipy.ndimage.map_coordinates(images[n].astype(float), at, order=1)
        expected = sampled.reshape(25, 3, 25, 3).mean((1, 3))
        np.testing.assert_allclose(made[n, k], expected, rtol=0, atol=1e-3)


def test_persons_do_not_cross_the_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = (np.arange(400) // 10).astype(np.uint8)
    images = np.broadcast_to(grey[:, None, None], (400, 64, 64))
    pretend("NPZ", as_npz(images), tmp_path, monkeypatch)
    dataset = faces(tmp_path, transforms=3)
    assert dataset.validation is not None
    sizes = [len(x) for x in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [25 * 30, 5 * 30, 10 * 30]
    values = torch.cat([dataset.train, dataset.validation, dataset.test])[:, 0].view(40, 30)
    assert (values.max(1).values - values.min(1).values).max() < 1e-5  # one grey a person
    assert (values[1:, 0] > values[:-1, 0]).all()  # in order


def test_training_pixels_have_mean_0_and_average_variance_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("NPZ", as_npz(noise()), tmp_path, monkeypatch)
    train = faces(tmp_path, transforms=4).train.double()
    assert train.mean(0).abs().max() < 1e-5
    assert train.square().mean().item() == pytest.approx(1.0, abs=1e-5)


def test_images_depend_on_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("NPZ", as_npz(noise()), tmp_path, monkeypatch)
    first, again, other = (faces(tmp_path, transforms=2, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.train, again.train)
    assert torch.equal(first.test, again.test)
    assert not torch.equal(first.train, other.train)
    assert first.regenerated
    assert "regenerated" in first.facts


def test_no_transforms() -> None:
    with pytest.raises(ValueError, match="transforms: got 0"):
        faces(transforms=0)


@needs_data
def test_the_published_pca_error() -> None:
    """135, on fewer images than the 414 of each face."""
    assert statistics(faces(transforms=20)).pca_error == pytest.approx(135, abs=2)
