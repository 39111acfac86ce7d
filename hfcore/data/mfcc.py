"""The front end of speech: 39 numbers every 10 ms, as recognisers have them.

Davis & Mermelstein (1980) with the usual constants of HTK (Young et al.): 12 mel-frequency cepstral
coefficients and the log energy, their first and their second differences. The front end that
Martens & Sutskever (2011) used is not described but for its 39 dimensions.
"""

from __future__ import annotations

import numpy as np
import scipy  # scipy.fft is slow to import and comes when it is used

from hfcore.arguments import naming_options
from hfcore.bindings.checks import check_positive

WINDOW, HOP = 0.025, 0.010  # seconds
PRE_EMPHASIS = 0.97
FILTERS = 26
CEPSTRA = 12
LIFTER = 22
FLOOR = 1.0  # of energies before the logarithm, for samples of 16 bits
REGRESSION = 2  # frames to either side of a difference


@naming_options
def speech_features(samples: np.ndarray, rate: int) -> np.ndarray:
    """Features float64 ``[frames,39]`` of ``samples [N]`` at ``rate`` per second.

    Columns: cepstra 1 to 12, log energy, the differences of these 13, and theirs. Samples are
    taken in units of 16-bit sound. Raises ValueError for fewer samples than one frame of 25 ms has.
    """
    static = cepstra(samples, rate)
    first = differences(static)
    return np.concatenate([static, first, differences(first)], axis=1)


def cepstra(samples: np.ndarray, rate: int) -> np.ndarray:
    """Cepstra 1 to 12 and the log energy, float64 ``[frames,13]``, of ``samples [N]``.

    Frames of 25 ms begin every 10 ms. The energy is that of a frame as it is. For the cepstra
    x[t] − 0.97 x[t−1] is taken in each frame (its first sample times 0.03), times a Hamming window;
    the power spectrum goes through 26 triangles on the mel scale; a cosine transform of the
    logarithms gives the cepstra c_i, times 1 + 11 sin(πi/22).
    """
    check_positive(rate=rate)
    samples = np.asarray(samples, np.float64)
    width, hop = round(WINDOW * rate), round(HOP * rate)
    if samples.ndim != 1 or len(samples) < width:
        raise ValueError(
            f"samples: got shape {list(samples.shape)}, need [N] with N at least {width}, a frame"
        )
    frames = np.lib.stride_tricks.sliding_window_view(samples, width)[::hop]
    energy = np.log(np.maximum(np.square(frames).sum(1), FLOOR))
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    emphasised = (frames - PRE_EMPHASIS * before) * np.hamming(width)
    points = 2 ** int(np.ceil(np.log2(width)))
    power = np.square(np.abs(scipy.fft.rfft(emphasised, points, axis=1)))
    bands = np.log(np.maximum(power @ mel_filters(rate, points).T, FLOOR))
    c = scipy.fft.dct(bands, type=2, norm="ortho", axis=1)[:, 1 : CEPSTRA + 1]
    lifter = 1 + LIFTER / 2 * np.sin(np.pi * np.arange(1, CEPSTRA + 1) / LIFTER)
    return np.column_stack([c * lifter, energy])


def mel_filters(rate: int, points: int) -> np.ndarray:
    """Weights ``[26, points/2 + 1]`` of the frequencies of a transform of ``points`` samples.

    Triangle j rises from 0 to 1 and falls back between the corners j, j+1, j+2 of 28 that are
    equally spaced on the mel scale from 0 to half the rate.
    """
    mel = _mel(np.arange(points // 2 + 1) * rate / points)
    corners = np.linspace(0.0, _mel(rate / 2), FILTERS + 2)
    low, middle, high = (corners[i : i + FILTERS, None] for i in range(3))
    weights = np.minimum((mel - low) / (middle - low), (high - mel) / (high - middle))
    return np.asarray(np.maximum(weights, 0.0))


def differences(c: np.ndarray) -> np.ndarray:
    """Slopes in time ``[frames,k]`` of ``c [frames,k]``: Σ n (c_{t+n} − c_{t−n}) / 2Σn².

    The sums are over n = 1, 2. Beyond its ends a sequence goes on as it ends.
    """
    padded = np.pad(c, ((REGRESSION, REGRESSION), (0, 0)), mode="edge")
    steps = range(1, REGRESSION + 1)
    at = {n: padded[REGRESSION + n :][: len(c)] for n in steps}
    behind = {n: padded[REGRESSION - n :][: len(c)] for n in steps}
    total = np.sum([n * (at[n] - behind[n]) for n in steps], axis=0)
    return np.asarray(total / (2 * sum(n * n for n in steps)))


def _mel(frequency: np.ndarray | float) -> np.ndarray:
    return np.asarray(2595 * np.log10(1 + np.asarray(frequency) / 700))
