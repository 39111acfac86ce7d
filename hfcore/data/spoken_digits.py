"""Spoken digits: the Free Spoken Digit Dataset as sequences of speech features.

It stands in for TIMIT, on which Martens & Sutskever (2011) predict speech and which is licensed:
six speakers say each digit fifty times, at 8 kHz.

1. A clip has 0.4 s on average, fewer frames than a sequence of the paper (100, one second). The
   clips of a speaker therefore follow one another in a random order, always the same, as one piece.
2. The split is by speaker, as TIMIT's is: four train, the fifth validates, the sixth tests. (The
   set's own split is by recording.)
3. Every feature has mean 0 and variance 1 over the training part.
"""

from __future__ import annotations

import hashlib
import os
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfcore.arguments import count, naming_options, path
from hfcore.data.files import VARIABLE, DataFile, DataFileError, Folder, read_arrays
from hfcore.data.mfcc import speech_features
from hfcore.data.sequences import SequenceSet, pieces_of

COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
FILE = DataFile(
    "fsdd",
    "fsdd_8khz.npz",
    15_404_990,
    "2dce98890d6a5fa85b52bf2911e656301867a0b815b37c188e87afce3b4f2f91",
    f"https://github.com/Jakobovski/free-spoken-digit-dataset/tree/{COMMIT}/recordings",
    repacked=True,
)
RECORDINGS = "recordings"
# Of all samples, int16, by speaker, digit and number.
SAMPLES_SHA256 = "4e0317650d9c876eeda8788b4d4132af747e323d495a3da12c9bce9bc456a45f"
ARRAYS = ("pcm", "offsets", "digit", "speaker", "speaker_names", "sample_rate")
DIGITS = 10
TRAIN_SPEAKERS = 4
ORDER_SEED = 0


@naming_options
def spoken_digits(folder: Folder = None, *, clips: int | None = None) -> SequenceSet:
    """Speech features of spoken digits, one piece float32 ``[frames,39]`` a speaker.

    A frame every 10 ms, see :func:`hfcore.data.speech_features`. ``clips``: only so many of each
    speaker. Read from ``folder``, else HFCORE_DATA, else the cache: a repacked file, or in a named
    folder the repository's folder ``recordings``, whose samples are verified together. Raises
    ValueError for more clips than there are, and :class:`hfcore.data.DataFileError` saying what to
    put where.
    """
    if clips is not None:
        count("clips", clips)
    arrays = _read(folder)
    speakers = _clips_by_speaker(arrays)
    if clips is not None and clips > (least := min(map(len, speakers.values()))):
        raise ValueError(f"clips: got {clips}, need at most {least}, those of a speaker")
    rate = int(arrays["sample_rate"])
    found = {
        name: torch.from_numpy(speech_features(np.concatenate(of[:clips]), rate))
        for name, of in speakers.items()
    }
    return _split(found)


def _read(folder: Folder) -> dict[str, np.ndarray]:
    """The arrays of the repacked file, from it or from the recordings."""
    named = folder if folder is not None else os.environ.get(VARIABLE) or None
    if named is not None and FILE.find(at := path("folder", named)) is None:
        for place in (at / FILE.group / RECORDINGS, at / RECORDINGS):
            if place.is_dir():
                return _recordings(place)
    try:
        packed = FILE.read(folder)
    except DataFileError as error:
        raise DataFileError(f"{error}; or put the folder {RECORDINGS} itself there") from error
    return read_arrays(packed, FILE.name, ARRAYS)


def _recordings(place: Path) -> dict[str, np.ndarray]:
    """The same arrays from the files ``DIGIT_SPEAKER_NUMBER.wav``."""
    found: list[tuple[str, int, int, Any]] = []
    rate = 0
    for file in place.glob("*.wav"):
        try:
            digit, speaker, number = file.stem.split("_")
            with wave.open(str(file)) as sound:
                rate, samples = sound.getframerate(), sound.readframes(sound.getnframes())
            found.append((speaker, int(digit), int(number), np.frombuffer(samples, "<i2")))
        except (OSError, EOFError, ValueError, wave.Error) as error:
            raise DataFileError(f"{file}: is no recording of a digit ({error})") from error
    found.sort(key=lambda clip: clip[:3])
    pcm = np.concatenate([np.zeros(0, "<i2"), *(clip[3] for clip in found)])
    digest = hashlib.sha256(pcm.tobytes()).hexdigest()
    if digest != SAMPLES_SHA256:
        raise DataFileError(
            f"{place}: holds {len(found)} recordings with other samples than those of commit "
            f"{COMMIT[:12]}, their SHA-256 begins {digest[:12]}; check that commit out"
        )
    names = sorted({clip[0] for clip in found})
    return {
        "pcm": pcm,
        "offsets": np.cumsum([0, *(len(clip[3]) for clip in found)]),
        "digit": np.array([clip[1] for clip in found]),
        "speaker": np.array([names.index(clip[0]) for clip in found]),
        "speaker_names": np.array(names),
        "sample_rate": np.array(rate),
    }


def _clips_by_speaker(arrays: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Samples of the clips of every speaker in their random order, by the speaker's name."""
    names = [str(name) for name in arrays["speaker_names"]]
    if len(names) < TRAIN_SPEAKERS + 2:
        raise DataFileError(
            f"{FILE.name}: has {len(names)} speakers, need at least {TRAIN_SPEAKERS + 2} for the "
            "three parts"
        )
    pcm = pieces_of(arrays["pcm"][:, None], arrays["offsets"], FILE.name)
    clips = [piece[:, 0].numpy() for piece in pcm]
    for label, most in (("digit", DIGITS), ("speaker", len(names))):
        values = arrays[label]
        if len(values) != len(clips) or int(values.min()) < 0 or int(values.max()) >= most:
            raise DataFileError(
                f"{FILE.name}: has {len(values)} {label} labels from {values.min()} to "
                f"{values.max()}, need one of 0 to {most - 1} for each of {len(clips)} clips"
            )
    order = np.random.Generator(np.random.PCG64(ORDER_SEED)).permutation(len(clips))
    found = {
        name: [clips[i] for i in order if arrays["speaker"][i] == s] for s, name in enumerate(names)
    }
    for name, of in found.items():
        if not of:
            raise DataFileError(f"{FILE.name}: has no clip of {name}, need at least 1 a speaker")
    return found


def _split(found: dict[str, Tensor]) -> SequenceSet:
    """Parts by speaker, standardised; ``found`` holds float64 ``[frames,39]`` by name."""
    names = list(found)
    together = torch.cat([found[name] for name in names[:TRAIN_SPEAKERS]])
    mean, deviation = together.mean(0), together.std(0, correction=0)
    pieces = [((found[name] - mean) / deviation).float() for name in names]
    rest = names[TRAIN_SPEAKERS:]
    return SequenceSet(
        "spoken_digits",
        train=pieces[:TRAIN_SPEAKERS],
        validation=pieces[TRAIN_SPEAKERS:-1],
        test=pieces[-1:],
        facts=f"Free Spoken Digit Dataset, {len(names)} speakers ({', '.join(rest[:-1])} to "
        f"validate, {rest[-1]} to test), 13 cepstral features with their differences, each of "
        "variance 1; it stands in for TIMIT, which is licensed.",
    )
