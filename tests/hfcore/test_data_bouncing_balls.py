"""Bouncing balls: physics, pixels and first positions, against slow forms of their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hfcore.data import bouncing_balls
from hfcore.data.bouncing_balls import BOX, RADIUS, _paint, _simulate


def simulated(frames: int, size: int, balls: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    positions, velocities = np.empty((2, frames, size, balls, 2))
    _simulate(np.random.default_rng(seed), positions, velocities)
    return positions, velocities


def slow_frame(x: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The next frame by the definition, written as vectors."""
    x, v = x.copy(), v.copy()
    for _ in range(2):
        x += 0.5 * v
        v = np.where(x < 1.2, abs(v), v)
        v = np.where(x > 8.8, -abs(v), v)
        for i in range(len(x)):
            for j in range(i):
                d = x[i] - x[j]
                distance = np.linalg.norm(d)
                n = d / distance
                approach = n @ (v[i] - v[j])
                if distance < 2.4 and approach < 0:
                    v[i], v[j] = v[i] - approach * n, v[j] + approach * n
    return x, v


@pytest.mark.parametrize("balls", [1, 2, 3, 5])
def test_energy_is_conserved(balls: int) -> None:
    _, v = simulated(300, 7, balls)
    energy = np.square(v).sum((2, 3))
    # velocities of all balls together have norm ½; every collision rounds in the last place
    assert abs(energy - 0.25).max() < 1e-9


def test_balls_stay_in_the_box_and_meet() -> None:
    x, v = simulated(400, 5, 3)
    # beyond a wall by a step, a quarter at most, and by one more where another ball pushes
    assert x.min() > RADIUS - 0.5
    assert x.max() < BOX - RADIUS + 0.5
    speeds = np.linalg.norm(v, axis=-1)
    # walls keep the speed of a ball; only meetings change it
    assert (abs(np.diff(speeds, axis=0)) > 1e-3).any((0, 2)).all()


@pytest.mark.parametrize("balls", [1, 3])
def test_frames_follow_the_definition(balls: int) -> None:
    x, v = simulated(60, 4, balls, seed=balls)
    for b in range(4):
        for t in range(59):
            x_next, v_next = slow_frame(x[t, b], v[t, b])
            np.testing.assert_allclose(x[t + 1, b], x_next, rtol=0, atol=1e-12)
            np.testing.assert_allclose(v[t + 1, b], v_next, rtol=0, atol=1e-12)


def test_first_positions_are_uniform_where_nothing_overlaps() -> None:
    x, _ = simulated(1, 4000, 3)
    x = x[0]
    assert x.min() >= 2.0
    assert x.max() <= 8.8
    distances = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)[:, *np.triu_indices(3, 1)]
    assert distances.min() >= 2.4
    # the same by rejection of whole draws, from the square that the generator draws from
    rng = np.random.default_rng(9)
    drawn = 2 + 8 * rng.random((60_000, 3, 2))
    apart = np.linalg.norm(drawn[:, :, None] - drawn[:, None], axis=-1)[:, *np.triu_indices(3, 1)]
    kept = drawn[(drawn < 8.8).all((1, 2)) & (apart >= 2.4).all(1)]
    for found, expected in ((x, kept), (distances, apart[(drawn < 8.8).all((1, 2))])):
        if found is distances:
            expected = expected[(expected >= 2.4).all(1)]
        error = math.hypot(found.std() / 4000**0.5, expected.std() / len(expected) ** 0.5)
        assert abs(found.mean() - expected.mean()) < 5 * error


@pytest.mark.parametrize("side", [1, 7, 15])
def test_pixels_are_clipped_sums_over_all_balls(side: int) -> None:
    x, _ = simulated(9, 3, 5, seed=4)
    x[0, 0, 0] = (0.1, 9.9)  # partly outside
    x[1, 1, 0] = x[1, 1, 1]  # one behind the other
    out = np.full((9, 3, side * side), np.nan)
    _paint(x, side, out)
    centres = (np.arange(side) + 0.5) * 10 / side
    rows, columns = np.meshgrid(centres, centres, indexing="ij")
    for t, b in np.ndindex(9, 3):
        total = np.zeros((side, side))
        for px, py in x[t, b]:
            d2 = (rows - px) ** 2 + (columns - py) ** 2
            total += np.exp(-((d2 / 1.44) ** 4))
        np.testing.assert_allclose(
            out[t, b].reshape(side, side), np.minimum(total, 1), rtol=0, atol=1e-14
        )
    # what is nearly nothing is 0 and no denormal number, on which processors are slow
    assert out[out > 0].min() > 2.0**-54


def test_films_depend_on_the_generator_alone() -> None:
    film = bouncing_balls(6, 11, np.random.default_rng(3))
    assert film.shape == (11, 6, 225)
    assert film.dtype == torch.float32
    assert 0 <= film.min() < 0.01 < 0.99 < film.max() <= 1
    double = bouncing_balls(6, 11, np.random.default_rng(3), dtype=torch.float64)
    torch.testing.assert_close(film.double(), double, rtol=0, atol=3e-7)
    more = bouncing_balls(8, 11, np.random.default_rng(3))
    assert torch.equal(more[:, :6], film)
    assert not torch.equal(film, bouncing_balls(6, 11, np.random.default_rng(4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balls": 0}, "balls: got 0, need at least 1"),
        ({"balls": 6}, "balls: got more than 5"),
        ({"side": 0}, "side: got 0"),
        ({"frames": 0}, "frames: got 0"),
        ({"size": 0}, "size: got 0"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, int], message: str) -> None:
    arguments = {"size": 2, "frames": 3, "generator": np.random.default_rng(0), **options}
    with pytest.raises(ValueError, match=message):
        bouncing_balls(**arguments)  # type: ignore[arg-type]
