"""Bouncing balls: films of balls that bounce in a box, made anew for every batch.

Task of Martens & Sutskever (2011), with the constants of the generator that Sutskever, Hinton &
Taylor (2008) published: a box of 10, radius 1.2, equal masses, first positions uniform on
[2, 8.8]², drawn again while balls overlap, velocities of all balls together normalised to ½ a
frame, two time steps a frame, elastic collisions. A pixel at distance d of a ball has
exp(−(d²/r²)⁴), summed over balls and clipped at 1.

1. Two balls that overlap exchange their normal velocities only while they approach each other; the
   published generator does it in every step of an overlap, which may send them into each other.
2. Terms of a pixel below 2⁻⁵³ are left out.
"""

from __future__ import annotations

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
# Where a ball's term falls below 2⁻⁵³: (d²/r²)⁴ = 53 ln 2.
REACH = RADIUS * (53 * np.log(2)) ** (1 / 8)

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
    out = np.zeros((frames, size, side * side), real)
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
    """Add balls at ``positions [frames,B,balls,2]`` to ``out [frames,B,side²]`` of zeros."""
    frames, B, n, _ = positions.shape
    pixel, shrink = BOX / side, 1.0 / (RADIUS * RADIUS)
    across = np.empty(side)
    for t in range(frames):
        for b in range(B):
            for i in range(n):
                x, y = positions[t, b, i, 0], positions[t, b, i, 1]
                top = max(0, int(np.ceil((x - REACH) / pixel - 0.5)))
                bottom = min(side - 1, int(np.floor((x + REACH) / pixel - 0.5)))
                left = max(0, int(np.ceil((y - REACH) / pixel - 0.5)))
                right = min(side - 1, int(np.floor((y + REACH) / pixel - 0.5)))
                for c in range(left, right + 1):
                    dy = (c + 0.5) * pixel - y
                    across[c] = dy * dy
                for r in range(top, bottom + 1):
                    dx = (r + 0.5) * pixel - x
                    for c in range(left, right + 1):
                        u = (dx * dx + across[c]) * shrink
                        square = u * u
                        value = out[t, b, r * side + c] + np.exp(-square * square)
                        out[t, b, r * side + c] = min(value, 1.0)
