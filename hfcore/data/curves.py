"""CURVES: 28×28 images of random smooth curves, regenerated.

The papers' file (``digs3pts_1.mat``) is in no public place, so the images are made anew, and the
free numbers are calibrated until what is published about the original fits (``PUBLISHED``, printed
by ``hfcore data curves``). Two constructions:

``"bezier"`` (default)  quadratic Bézier curve controlled by three points sorted by x; one pass of
    the ink kernel with a = 1; pixel 1 − exp(−2.98·ink). Fits PCA-18, the mean predictor and the
    entropy of the pixels at once.
``"spline"``  natural cubic spline y(x) through the points, the construction as it is remembered;
    three passes with a = ½, ink times 1.77, clipped at 1. Fits PCA-18 only: a sensitivity check.

Ink is one unit per pixel of arc length, shared bilinearly among four pixels, then spread by the
3×3 kernel [[a/12, a/6, a/12], [a/6, 1 − a, a/6], [a/12, a/6, a/12]] of Hinton's ink model, as Lake,
Salakhutdinov & Tenenbaum (2015) give it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hfcore.arguments import naming_options
from hfcore.bindings.checks import check_choice, check_positive
from hfcore.data.dataset import Dataset
from hfcore.draws import compile_kernel

Construction = Literal["bezier", "spline"]

SIDE = 28
POINTS = 400  # deposits on a curve, denser than eight a pixel
CHUNK = 1000


@dataclass(frozen=True)
class Recipe:
    """The calibrated numbers of one construction, lengths in pixels."""

    width: float  # both coordinates are uniform on a square this wide in the middle of the image
    gap: float  # least distance in x from one point to the next
    passes: int  # of the ink kernel
    a: float
    gain: float
    saturating: bool  # 1 − exp(−ink), else ink clipped at 1


# Remembered are coordinates in [2, 26] and gaps of 2; these put PCA-18 at the published figure.
RECIPES: dict[str, Recipe] = {
    "bezier": Recipe(width=24.25, gap=1.75, passes=1, a=1.0, gain=2.98, saturating=True),
    "spline": Recipe(width=25.0, gap=2.0, passes=3, a=0.5, gain=1.77, saturating=False),
}


@naming_options
def curves(
    train: int = 20_000,
    test: int = 10_000,
    *,
    seed: int = 0,
    construction: Construction = "bezier",
) -> Dataset:
    """CURVES, regenerated: float32 images in [0,1], ``train`` and ``test`` of them, drawn apart.

    The same seed gives the same images on every machine, but for the last bit of ``exp``, and the
    first ones of a larger set are those of a smaller. Raises ValueError naming the bad argument.
    """
    check_positive(train=train, test=test)
    check_choice("construction", construction, get_args(Construction))
    if seed < 0:
        raise ValueError(f"seed: got {seed}, need at least 0")
    recipe, draw = RECIPES[construction], {"bezier": _bezier, "spline": _spline}[construction]
    for_train, for_test = np.random.SeedSequence(seed).spawn(2)
    return Dataset(
        name="curves",
        train=_images(train, for_train, recipe, draw),
        test=_images(test, for_test, recipe, draw),
        validation=None,
        image_shape=(SIDE, SIDE),
        code=6,
        facts="CURVES is regenerated and calibrated to the published statistics of the original "
        f"({construction} construction, seed {seed}).",
        regenerated=True,
    )


def _images(
    count: int, seed: np.random.SeedSequence, recipe: Recipe, draw: Callable[..., None]
) -> Tensor:
    """``[count, 784]``; rows do not depend on ``count``. Curves leaving the image are dropped."""
    generator = np.random.Generator(np.random.PCG64(seed))
    out = np.empty((count, SIDE * SIDE), np.float32)
    done = 0
    while done < count:
        points = _points(generator, recipe)
        path = np.empty((CHUNK, POINTS, 3))
        draw(points, path)
        inside = path[(path[:, :, :2] >= 0).all((1, 2)) & (path[:, :, :2] <= SIDE - 1).all((1, 2))]
        part = out[done : done + len(inside)]
        _ink(inside[: len(part)], recipe.passes, recipe.a, recipe.gain, recipe.saturating, part)
        done += len(part)
    return torch.from_numpy(out)


def _points(generator: np.random.Generator, recipe: Recipe) -> np.ndarray:
    """Three points ``[CHUNK, 3, 2]`` (x, y), uniform given that x grows by at least the gap."""
    unit = generator.random((CHUNK, 2, 3))
    first = (SIDE - 1 - recipe.width) / 2  # pixel centres are at 0 .. 27
    x = np.sort(unit[:, 0] * (recipe.width - 2 * recipe.gap), axis=1) + recipe.gap * np.arange(3)
    y = unit[:, 1] * recipe.width
    return np.stack([x, y], axis=2) + first


@compile_kernel
def _bezier(points: np.ndarray, path: np.ndarray) -> None:
    """Fill ``path [n,POINTS,3]``: x, y and the length of curve that the point stands for."""
    steps = path.shape[1]
    for n in range(path.shape[0]):
        p = points[n]
        for i in range(steps):
            t = (i + 0.5) / steps
            for k in range(2):
                start, end = p[1, k] - p[0, k], p[2, k] - p[1, k]
                path[n, i, k] = p[0, k] + 2 * t * start + t * t * (end - start)
            dx = 2 * ((1 - t) * (p[1, 0] - p[0, 0]) + t * (p[2, 0] - p[1, 0]))
            dy = 2 * ((1 - t) * (p[1, 1] - p[0, 1]) + t * (p[2, 1] - p[1, 1]))
            path[n, i, 2] = np.sqrt(dx * dx + dy * dy) / steps


@compile_kernel
def _spline(points: np.ndarray, path: np.ndarray) -> None:
    """The same for the natural cubic spline y(x), points equally spaced in x."""
    steps = path.shape[1]
    for n in range(path.shape[0]):
        p = points[n]
        left, right = p[1, 0] - p[0, 0], p[2, 0] - p[1, 0]
        rise, fall = (p[1, 1] - p[0, 1]) / left, (p[2, 1] - p[1, 1]) / right
        bend = 3 * (fall - rise) / (left + right)  # y'' at the middle point, 0 at the ends
        step = (left + right) / steps
        for i in range(steps):
            x = p[0, 0] + (i + 0.5) * step
            if x < p[1, 0]:
                h, slope, base = left, rise, p[0, 1]
                u = x - p[0, 0]
                y = base + slope * u + bend / (6 * h) * u * (u * u - h * h)
                dy = slope + bend / (6 * h) * (3 * u * u - h * h)
            else:
                h, slope, base = right, fall, p[2, 1]
                u = p[2, 0] - x
                y = base - slope * u + bend / (6 * h) * u * (u * u - h * h)
                dy = slope - bend / (6 * h) * (3 * u * u - h * h)
            path[n, i, 0], path[n, i, 1] = x, y
            path[n, i, 2] = step * np.sqrt(1 + dy * dy)


@compile_kernel
def _ink(
    path: np.ndarray, passes: int, a: float, gain: float, saturating: bool, out: np.ndarray
) -> None:
    """Images ``out [n,784]`` of the paths."""
    ink = np.zeros((SIDE + 2, SIDE + 2))  # one pixel of margin, whose ink is lost
    spread = np.zeros((SIDE + 2, SIDE + 2))
    for n in range(path.shape[0]):
        ink[:] = 0.0
        for i in range(path.shape[1]):
            x, y, length = path[n, i, 0], path[n, i, 1], path[n, i, 2]
            column, row = min(int(x), SIDE - 2), min(int(y), SIDE - 2)
            fx, fy = x - column, y - row
            ink[row + 1, column + 1] += length * (1 - fy) * (1 - fx)
            ink[row + 1, column + 2] += length * (1 - fy) * fx
            ink[row + 2, column + 1] += length * fy * (1 - fx)
            ink[row + 2, column + 2] += length * fy * fx
        for _ in range(passes):
            for r in range(1, SIDE + 1):
                for c in range(1, SIDE + 1):
                    sides = ink[r - 1, c] + ink[r + 1, c] + ink[r, c - 1] + ink[r, c + 1]
                    corners = ink[r - 1, c - 1] + ink[r - 1, c + 1]
                    corners += ink[r + 1, c - 1] + ink[r + 1, c + 1]
                    spread[r, c] = (1 - a) * ink[r, c] + a / 6 * sides + a / 12 * corners
            ink[:] = spread
        for r in range(SIDE):
            for c in range(SIDE):
                value = gain * ink[r + 1, c + 1]
                out[n, r * SIDE + c] = 1 - np.exp(-value) if saturating else min(value, 1.0)
