"""Speech features against their definition term by term; spoken digits, their split and order."""

from __future__ import annotations

import hashlib
import io
import math
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
import torch

from hfcore.data import DataFileError, speech_features, spoken_digits
from hfcore.data.files import DataFile
from hfcore.data.mfcc import mel_filters

needs_data = pytest.mark.skipif(
    "HFCORE_DATA" not in os.environ, reason="HFCORE_DATA names no folder with the spoken digits"
)


# ---- the front end


def slow_static(frame: list[float], rate: int, points: int) -> list[float]:
    """13 numbers of one frame, sums written out: no fast transforms, no matrices."""
    N = len(frame)
    energy = math.log(max(sum(s * s for s in frame), 1.0))
    emphasised = [frame[0] - 0.97 * frame[0]]
    emphasised += [frame[t] - 0.97 * frame[t - 1] for t in range(1, N)]
    windowed = [
        s * (0.54 - 0.46 * math.cos(2 * math.pi * t / (N - 1))) for t, s in enumerate(emphasised)
    ]
    times = np.arange(N)
    power = []
    for k in range(points // 2 + 1):
        angle = 2 * np.pi * k * times / points
        power.append(np.dot(windowed, np.cos(angle)) ** 2 + np.dot(windowed, np.sin(angle)) ** 2)
    mel = lambda f: 1127.01048 * math.log(1 + f / 700)  # noqa: E731
    corners = [mel(rate / 2) * j / 27 for j in range(28)]
    logs = []
    for j in range(26):
        total = 0.0
        for k, p in enumerate(power):
            m = mel(k * rate / points)
            if corners[j] < m <= corners[j + 1]:
                total += p * (m - corners[j]) / (corners[j + 1] - corners[j])
            elif corners[j + 1] < m < corners[j + 2]:
                total += p * (corners[j + 2] - m) / (corners[j + 2] - corners[j + 1])
        logs.append(math.log(max(total, 1.0)))
    found = []
    for i in range(1, 13):
        c = math.sqrt(2 / 26) * sum(
            l * math.cos(math.pi * i * (j + 0.5) / 26) for j, l in enumerate(logs)
        )
        found.append(c * (1 + 11 * math.sin(math.pi * i / 22)))
    return [*found, energy]


def slow_differences(c: np.ndarray) -> np.ndarray:
    last = len(c) - 1
    at = lambda t: c[min(max(t, 0), last)]  # noqa: E731
    return np.array(
        [sum(n * (at(t + n) - at(t - n)) for n in (1, 2)) / 10 for t in range(last + 1)]
    )


@pytest.mark.parametrize(("rate", "points"), [(8000, 256), (16000, 512), (11025, 512)])
def test_features_follow_their_definition(rate: int, points: int) -> None:
    generator = np.random.default_rng(rate)
    width, hop = round(0.025 * rate), round(0.01 * rate)
    samples = generator.normal(0, 900, width + 6 * hop + 3).round()
    samples[: width + hop] = 0  # silence: the floor
    found = speech_features(samples, rate)
    assert found.shape == (7, 39)
    frames = [samples[t * hop : t * hop + width].tolist() for t in range(7)]
    static = np.array([slow_static(frame, rate, points) for frame in frames])
    first = slow_differences(static)
    expected = np.concatenate([static, first, slow_differences(first)], axis=1)
    # sums in another order; the scale of mels cancels in the triangles
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_a_tone_is_in_the_filters_around_its_frequency() -> None:
    weights = mel_filters(8000, 256)
    assert weights.shape == (26, 129)
    assert weights.min() == 0
    assert weights.max() <= 1
    assert (weights.sum(1) > 0).all()  # no filter falls between two frequencies
    inside = weights[:, 8:100].sum(0)
    np.testing.assert_allclose(inside, 1, atol=1e-12)  # neighbours share every frequency
    assert (
        weights[:, 32].argmax() == 12
    )  # 1000 Hz: mel 1000 of 2146, corner 12.6 of 27; the peak is at 13


def test_one_frame_and_less() -> None:
    one = speech_features(np.arange(200), 8000)
    assert one.shape == (1, 39)
    assert not one[:, 13:].any()
    with pytest.raises(ValueError, match=r"samples: got shape \[199\], need \[N\] with N at least"):
        speech_features(np.arange(199), 8000)
    with pytest.raises(ValueError, match="rate: got 0"):
        speech_features(np.arange(400), 0)


# ---- the digits


def recordings(**changes: Any) -> dict[str, Any]:
    """Arrays of a tiny file: six speakers, three clips each, a speaker's clips of his loudness."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(400, 900, 18)
    speaker = np.repeat(np.arange(6), 3).astype(np.uint8)
    loud = [
        generator.normal(0, 100.0 * (int(s) + 1), n) for s, n in zip(speaker, lengths, strict=True)
    ]
    return {
        "pcm": np.concatenate(loud).astype(np.int16),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "digit": np.tile([0, 5, 9], 6).astype(np.uint8),
        "speaker": speaker,
        "speaker_names": np.array(["ada", "bob", "cy", "dee", "eve", "fay"]),
        "sample_rate": np.array(8000),
        **changes,
    }


def pretend(arrays: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These arrays pass for the recordings and lie in the folder."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    data = out.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    file = DataFile("fsdd", "said.npz", len(data), digest, "https://example.org", repacked=True)
    monkeypatch.setattr(import_module("hfcore.data.spoken_digits"), "FILE", file)
    (folder / file.name).write_bytes(data)


def test_speakers_do_not_cross_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = recordings()
    pretend(arrays, tmp_path, monkeypatch)
    found = spoken_digits(tmp_path)
    assert [len(found.part(p)) for p in ("train", "validation", "test")] == [4, 1, 1]
    assert found.size == 39
    assert "eve to validate, fay to test" in found.facts
    # frames of all clips of a speaker together
    samples = np.diff(arrays["offsets"]).reshape(6, 3).sum(1)
    frames = [len(p) for part in ("train", "validation", "test") for p in found.part(part)]
    assert frames == ((samples - 200) // 80 + 1).tolist()
    # loudness, column 12, rises from speaker to speaker
    loud = [float(p[:, 12].mean()) for p in (*found.train, *found.validation, *found.test)]
    assert loud == sorted(loud)


def test_training_features_have_mean_0_and_variance_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(recordings(), tmp_path, monkeypatch)
    train = torch.cat([*spoken_digits(tmp_path).train]).double()
    # rounded to float32
    assert train.mean(0).abs().max() < 1e-6
    assert (train.square().mean(0) - 1).abs().max() < 1e-5


def test_fewer_clips_are_the_first_of_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(recordings(), tmp_path, monkeypatch)
    whole, few = spoken_digits(tmp_path), spoken_digits(tmp_path, clips=1)
    assert len(few.test[0]) < len(whole.test[0])
    # standardised by other frames: a difference of two features has the same ratios
    a, b = few.test[0][:4, 0], whole.test[0][:4, 0]
    torch.testing.assert_close((a[1] - a[0]) / (a[2] - a[0]), (b[1] - b[0]) / (b[2] - b[0]))
    with pytest.raises(ValueError, match="clips: got 4, need at most 3"):
        spoken_digits(tmp_path, clips=4)
    with pytest.raises(ValueError, match="clips: got 0"):
        spoken_digits(tmp_path, clips=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digit": np.full(18, 10, np.uint8)}, "18 digit labels from 10 to 10, need one of 0 to 9"),
        ({"speaker": np.full(18, 6, np.uint8)}, "18 speaker labels from 6 to 6, need one of 0 to"),
        ({"digit": np.zeros(17, np.uint8)}, "17 digit labels from 0 to 0, need .* for each of 18"),
        ({"speaker": np.repeat([0, 1, 2, 3, 4, 4], 3)}, "has no clip of fay, need at least 1"),
        ({"speaker_names": np.array(["a", "b"])}, "has 2 speakers, need at least 6"),
        ({"offsets": np.array([0, 5])}, "its offsets go from 0 to 5"),
    ],
    ids=["digit", "speaker", "labels", "empty", "speakers", "offsets"],
)
def test_files_with_other_contents(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(recordings(**changes), tmp_path, monkeypatch)
    with pytest.raises(DataFileError, match=message):
        spoken_digits(tmp_path)


def as_recordings(arrays: dict[str, Any], folder: Path) -> None:
    """One file a clip, as the repository has them."""
    folder.mkdir(parents=True)
    clips = np.split(arrays["pcm"], arrays["offsets"][1:-1])
    for i, (clip, digit, speaker) in enumerate(
        zip(clips, arrays["digit"], arrays["speaker"], strict=True)
    ):
        name = f"{digit}_{arrays['speaker_names'][speaker]}_{i % 3}.wav"
        scipy.io.wavfile.write(folder / name, 8000, clip)


def test_recordings_are_the_repacked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = recordings()
    pretend(arrays, tmp_path, monkeypatch)
    packed = spoken_digits(tmp_path)
    digest = hashlib.sha256(arrays["pcm"].tobytes()).hexdigest()
    monkeypatch.setattr(import_module("hfcore.data.spoken_digits"), "SAMPLES_SHA256", digest)
    for inside in ("recordings", "fsdd/recordings"):
        as_recordings(arrays, tmp_path / "clone" / inside)
        found = spoken_digits(tmp_path / "clone")
        assert found.facts == packed.facts
        for part in ("train", "validation", "test"):
            assert all(map(torch.equal, found.part(part), packed.part(part)))


def test_other_recordings(tmp_path: Path) -> None:
    as_recordings(recordings(), tmp_path / "recordings")
    with pytest.raises(DataFileError, match="recordings: holds 18 recordings with other samples"):
        spoken_digits(tmp_path)
    (tmp_path / "recordings" / "0_ada_0.wav").write_bytes(b"RIFF")
    with pytest.raises(DataFileError, match=r"0_ada_0\.wav: is no recording of a digit"):
        spoken_digits(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    said = r"fsdd_8khz\.npz: is not there; put fsdd_8khz\.npz .*; or put the folder recordings "
    with pytest.raises(DataFileError, match=said):
        spoken_digits(tmp_path)


@needs_data
def test_a_few_real_clips() -> None:
    found = spoken_digits(clips=5)
    assert [len(found.part(p)) for p in ("train", "validation", "test")] == [4, 1, 1]
    frames = [len(p) for p in (*found.train, *found.validation, *found.test)]
    # clips last 0.14 to 2.28 s
    assert 5 * 14 < min(frames) <= max(frames) < 5 * 228
    assert all(bool(p.isfinite().all()) for p in found.train)
