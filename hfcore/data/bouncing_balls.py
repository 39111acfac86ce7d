"""Bouncing balls: films of balls that bounce in a box, made anew for every batch.

Task of Martens & Sutskever (2011), with the constants of the generator that Sutskever, Hinton &
Taylor (2008) published: a box of 10, radius 1.2, equal masses, first positions uniform on
[2, 8.8]², drawn again while balls overlap, velocities of all balls together normalised to ½ a
frame, two time steps a frame, elastic collisions. A pixel at distance d of a ball has
exp(−(d²/r²)⁴), summed over balls and clipped at 1.

1. Two balls that overlap exchange their normal velocities only while they approach each other; the
   published generator does it in every step of an overlap, which may send them into each other.
2. Terms of a pixel below 2⁻⁵³ are 0, the others within 1e-14 of the formula.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hfcore.arguments import count, naming_options
from hfcore.draws import check_draw, compile_kernel

BOX = 10.0
RADIUS = 1.2
FIRST = 2.0  # least coordinate of a first position
SPEED = 0.5  # norm of all velocities together, a frame
SUBSTEPS = 2
# A ball's term exp(−q) falls below 2⁻⁵³ where q = (d²/r²)⁴ is 53 ln 2.
LEAST = 53 * np.log(2)
REACH = RADIUS * LEAST ** (1 / 8)
FAR = 4.0  # a (d/r)² at which nothing is left of a ball
EXP = tuple((-1 / 64) ** k / math.factorial(k) for k in range(9))  # of exp(−q/64)
VECTORS = 8  # pixels of a row are taken in multiples of so many

# With six balls nearly every draw of positions overlaps.
MOST_BALLS = 5


@naming_options
def bouncing_balls(
    size: int,
    frames: int,
    generator: np.random.Generator,
    *,
    balls: int = 3,
    side: int = 15,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Films ``[frames, size, side²]`` of ``balls`` balls, pixels in [0,1]; both dtypes alike.

    The generator must not be used by another thread meanwhile. Raises TypeError or ValueError
    naming the argument that is wrong.
    """
    real = check_draw(size, generator, dtype)
    count("frames", frames)
    count("balls", balls, most=MOST_BALLS)
    count("side", side, most=1000)
    positions = np.empty((frames, size, balls, 2))
    velocities = np.empty((frames, size, balls, 2))
    _simulate(generator, positions, velocities)
    out = np.empty((frames, size, side * side), real)
    _paint(positions, side, out)
    return torch.from_numpy(out)


@compile_kernel
def _simulate(
    generator: np.random.Generator, positions: np.ndarray, velocities: np.ndarray
) -> None:
    """Fill ``positions`` and ``velocities`` ``[frames,B,balls,2]``, each at every frame."""
    frames, B, n, _ = positions.shape
    x, v = np.empty((n, 2)), np.empty((n, 2))
    for b in range(B):
        overlap = True
        while overlap:
            overlap = False
            for i in range(n):
                for k in range(2):
                    x[i, k] = FIRST + (BOX - RADIUS - FIRST) * generator.random()
                for j in range(i):
                    dx, dy = x[i, 0] - x[j, 0], x[i, 1] - x[j, 1]
                    overlap = overlap or dx * dx + dy * dy < 4 * RADIUS * RADIUS
        square = 0.0
        for i in range(n):
            for k in range(2):
                v[i, k] = generator.standard_normal()
                square += v[i, k] * v[i, k]
        for i in range(n):
            for k in range(2):
                v[i, k] *= SPEED / np.sqrt(square)
        for t in range(frames):
            for i in range(n):
                for k in range(2):
                    positions[t, b, i, k] = x[i, k]
                    velocities[t, b, i, k] = v[i, k]
            for _ in range(SUBSTEPS):
                for i in range(n):
                    for k in range(2):
                        x[i, k] += v[i, k] / SUBSTEPS
                        if x[i, k] < RADIUS:
                            v[i, k] = abs(v[i, k])
                        if x[i, k] > BOX - RADIUS:
                            v[i, k] = -abs(v[i, k])
                for i in range(n):
                    for j in range(i):
                        dx, dy = x[i, 0] - x[j, 0], x[i, 1] - x[j, 1]
                        square = dx * dx + dy * dy
                        if 0.0 < square < 4 * RADIUS * RADIUS:
                            along = dx * (v[i, 0] - v[j, 0]) + dy * (v[i, 1] - v[j, 1])
                            if along < 0.0:  # equal masses: the normal velocities change places
                                v[i, 0] -= along / square * dx
                                v[i, 1] -= along / square * dy
                                v[j, 0] += along / square * dx
                                v[j, 1] += along / square * dy


@compile_kernel
def _paint(positions: np.ndarray, side: int, out: np.ndarray) -> None:
    """Draw balls at ``positions [frames,B,balls,2]`` into ``out [frames,B,side²]``.

    A ball's term exp(−q) is the 64th power of a polynomial in q/64, good to 1e-14, and of a row as
    many pixels are taken as fill whole vectors, to those past the ball's reach or the frame's edge
    nothing being added: so compilers make vectors of it, and its bits do not depend on them.
    """
    frames, B, n, _ = positions.shape
    pixels, of_radius = side / BOX, BOX / (side * RADIUS)  # in a unit of the box; one, in radii
    reach = REACH * pixels
    width = (min(side, int(2 * reach) + 2) + VECTORS - 1) // VECTORS * VECTORS
    across = np.empty(width)
    frame = np.empty(side * side + width, out.dtype)
    for t in range(frames):
        for b in range(B):
            frame[:] = 0.0
            for i in range(n):
                x, y = positions[t, b, i, 0] * pixels - 0.5, positions[t, b, i, 1] * pixels - 0.5
                top = max(0, int(np.ceil(x - reach)))
                bottom = min(side - 1, int(np.floor(x + reach)))
                left = max(0, int(np.ceil(y - reach)))
                for c in range(width):
                    dy = (left + c - y) * of_radius
                    across[c] = dy * dy if left + c < side else FAR
                for r in range(top, bottom + 1):
                    dx = (r - x) * of_radius
                    down = dx * dx
                    near = frame[r * side + left : r * side + left + width]
                    for c in range(width):
                        square = down + across[c]
                        square *= square
                        q = min(square * square, LEAST)
                        e = ((EXP[8] * q + EXP[7]) * q + EXP[6]) * q + EXP[5]
                        e = (((e * q + EXP[4]) * q + EXP[3]) * q + EXP[2]) * q + EXP[1]
                        e = e * q + 1.0
                        e *= e  # the first of six times
                        e *= e
                        e *= e
                        e *= e
                        e *= e
                        e *= e
                        value = near[c] + (e if q < LEAST else 0.0)
                        near[c] = min(value, 1.0)
            film = out[t, b]
            for p in range(side * side):
                film[p] = frame[p]
