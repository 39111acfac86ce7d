"""CURVES: drawn as described, the same every time, and with the published statistics."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.interpolate
import scipy.ndimage
import torch

from command_line import invoke
from hfcore.data import PUBLISHED, Dataset, curves, statistics
from hfcore.data.curves import RECIPES, _bezier, _ink, _points, _spline
from hfcore.data.statistics import pca_errors

SIDE = 28


def points(construction: str, seed: int = 0) -> np.ndarray:
    return _points(np.random.default_rng(seed), RECIPES[construction])


def path_of(draw: str, corners: np.ndarray) -> np.ndarray:
    path = np.empty((len(corners), 400, 3))
    {"bezier": _bezier, "spline": _spline}[draw](corners, path)
    return path


@pytest.mark.parametrize("construction", ["bezier", "spline"])
def test_points_are_sorted_apart_and_within_the_square(construction: str) -> None:
    recipe, p = RECIPES[construction], points(construction)
    low = (SIDE - 1 - recipe.width) / 2
    assert (np.diff(p[:, :, 0], axis=1) >= recipe.gap - 1e-12).all()
    assert (p >= low).all()
    assert (p <= SIDE - 1 - low).all()
    # uniform: the first of three sorted uniforms has mean 1/4 of its range, y has 1/2
    assert p[:, 0, 0].mean() == pytest.approx(low + (recipe.width - 2 * recipe.gap) / 4, abs=0.4)
    assert p[:, :, 1].mean() == pytest.approx((SIDE - 1) / 2, abs=0.4)


def test_bezier_is_the_curve_of_its_control_points() -> None:
    corners = points("bezier")[:20]
    for p, path in zip(corners, path_of("bezier", corners), strict=True):
        t = (np.arange(400) + 0.5)[:, None] / 400
        expected = (1 - t) ** 2 * p[0] + 2 * t * (1 - t) * p[1] + t**2 * p[2]
        np.testing.assert_allclose(path[:, :2], expected, rtol=0, atol=1e-12)

        def speed(s: float, p: np.ndarray = p) -> float:
            return float(np.linalg.norm(2 * (1 - s) * (p[1] - p[0]) + 2 * s * (p[2] - p[1])))

        length = scipy.integrate.quad(speed, 0, 1, limit=200)[0]
        assert path[:, 2].sum() == pytest.approx(length, rel=1e-4)


def test_spline_is_the_natural_cubic_spline() -> None:
    corners = points("spline")[:20]
    for p, path in zip(corners, path_of("spline", corners), strict=True):
        spline = scipy.interpolate.CubicSpline(p[:, 0], p[:, 1], bc_type="natural")
        np.testing.assert_allclose(path[:, 1], spline(path[:, 0]), rtol=0, atol=1e-9)
        step = (p[2, 0] - p[0, 0]) / 400
        np.testing.assert_allclose(path[:, 2], step * np.hypot(1, spline(path[:, 0], 1)))


@pytest.mark.parametrize("passes", [0, 1, 3])
@pytest.mark.parametrize("a", [0.5, 1.0])
def test_ink_is_deposited_bilinearly_and_spread(a: float, passes: int) -> None:
    path = path_of("bezier", points("bezier")[:5])
    path[0, 0] = (SIDE - 1, 0, 2.0)  # at a corner of the image
    out = np.empty((5, SIDE * SIDE), np.float32)
    _ink(path, passes, a, 0.01, False, out)
    kernel = a / 12 * np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]])
    kernel[1, 1] = 1 - a
    for image, (x, y, length) in zip(out, path.transpose(0, 2, 1), strict=True):
        ink = np.zeros((SIDE, SIDE))
        for r in range(SIDE):
            for c in range(SIDE):
                near = np.maximum(0, 1 - abs(y - r)) * np.maximum(0, 1 - abs(x - c))
                ink[r, c] = (length * near).sum()
        for _ in range(passes):
            ink = scipy.ndimage.convolve(ink, kernel, mode="constant")
        np.testing.assert_allclose(image, 0.01 * ink.reshape(-1), rtol=0, atol=1e-7)


def test_no_ink_is_lost() -> None:
    """Inverting 1 − exp(−gain·ink), an image holds the length of its curve."""
    recipe, corners = RECIPES["bezier"], points("bezier")[:200]
    path, out = path_of("bezier", corners), np.empty((200, SIDE * SIDE), np.float64)
    _ink(path, recipe.passes, recipe.a, recipe.gain, recipe.saturating, out)
    ink = -np.log1p(-out).sum(1) / recipe.gain
    np.testing.assert_allclose(ink, path[:, :, 2].sum(1), rtol=1e-6)


@pytest.mark.parametrize("construction", ["bezier", "spline"])
def test_images_depend_on_the_seed_alone(construction: str) -> None:
    small, large = (curves(n, 3, seed=5, construction=construction) for n in (11, 1301))  # type: ignore[arg-type]
    assert torch.equal(small.train, large.train[:11])
    assert torch.equal(small.test, large.test)
    assert not torch.equal(small.train[:3], small.test)
    assert not torch.equal(small.train, curves(11, 3, seed=6).train)
    assert small.train.dtype == torch.float32
    assert 0 <= large.train.min() <= large.train.max() <= 1
    assert large.train.amax(1).min() > 0.5  # no empty image
    assert small.regenerated
    assert "regenerated" in small.facts


def test_the_published_statistics() -> None:
    """With fewer images than the original has, so the tolerances hold the chance of the draw."""
    here, there = statistics(curves(6000, 2000)), PUBLISHED["curves"]
    assert here.components == 18
    assert here.pca_error == pytest.approx(there.pca_error, rel=0.03)
    assert here.mean_error == pytest.approx(there.mean_error, rel=0.02)
    assert here.cross_entropy_floor == pytest.approx(there.cross_entropy_floor, rel=0.02)
    # 134 where the original has about 125: the construction is not the original's
    assert here.mean_cross_entropy == pytest.approx(134.8, rel=0.02)


@pytest.mark.slow
def test_the_published_statistics_at_full_size() -> None:
    here, there = statistics(curves()), PUBLISHED["curves"]
    assert here.pca_error == pytest.approx(there.pca_error, abs=0.05)
    assert here.mean_error == pytest.approx(there.mean_error, abs=0.1)
    assert here.cross_entropy_floor == pytest.approx(there.cross_entropy_floor, abs=0.5)


def test_the_spline_construction_fits_pca_alone() -> None:
    here = statistics(curves(6000, 2000, construction="spline"))
    assert here.pca_error == pytest.approx(5.9, rel=0.03)
    assert here.cross_entropy_floor == pytest.approx(74, rel=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, "train: got 0"),
        ({"test": -1}, "test: got -1"),
        ({"seed": -1}, "seed: got -1"),
        ({"construction": "circle"}, "construction: got 'circle', need one of 'bezier', 'spline'"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curves(**options)  # type: ignore[arg-type]


# ---- statistics and the Dataset itself


def dataset(train: torch.Tensor, test: torch.Tensor) -> Dataset:
    return Dataset("curves", train, test, None, (3, 5), 2, "made up")


@pytest.mark.parametrize("components", [0, 1, 4, 15])
def test_statistics_equal_dense_algebra(components: int) -> None:
    generator = torch.Generator().manual_seed(components)
    train, test = torch.rand(37, 15, generator=generator), torch.rand(11, 15, generator=generator)
    train[:, 3] = 0.0  # an empty pixel: 0 log 0 is 0
    x, y = train.double().numpy(), test.double().numpy()
    mean = x.mean(0)
    basis = np.linalg.svd(x - mean)[2][:components]
    here = statistics(dataset(train, test), components)
    centred = y - mean
    residual = centred - centred @ basis.T @ basis
    of_train = (x - mean) - (x - mean) @ basis.T @ basis
    assert pca_errors(dataset(train, test), components)[0] == pytest.approx(
        (of_train**2).sum(1).mean(), abs=1e-10
    )
    assert here.pca_error == pytest.approx((residual**2).sum(1).mean(), abs=1e-10)
    assert here.mean_error == pytest.approx(((x - mean) ** 2).sum(1).mean())
    used = np.arange(15) != 3
    x, p = x[:, used], mean[used]
    cross = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum(1).mean()
    floor = -(x * np.log(x) + (1 - x) * np.log(1 - x)).sum(1).mean()
    assert here.mean_cross_entropy == pytest.approx(cross)
    assert here.cross_entropy_floor == pytest.approx(floor)


def test_no_cross_entropy_outside_the_unit_interval() -> None:
    x = torch.randn(8, 15, generator=torch.Generator().manual_seed(0))
    here = statistics(dataset(x, x), 3)
    assert here.mean_cross_entropy is None
    assert here.cross_entropy_floor is None


def test_more_components_than_pixels() -> None:
    x = torch.zeros(8, 15)
    with pytest.raises(ValueError, match="components: got 16, need 0 to 15"):
        statistics(dataset(x, x), 16)


def test_a_dataset_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"test: got shape \[8, 14\], need \[N, 15\]"):
        dataset(torch.zeros(8, 15), torch.zeros(8, 14))


def test_command_prints_both_columns() -> None:
    result = invoke("data", "curves", "--train", "300", "--test", "50")
    assert result.exit_code == 0, result.output
    assert "CURVES is regenerated" in result.output
    assert "300 train, 50 test images of 28x28" in result.output
    line = next(s for s in result.output.splitlines() if "PCA-18" in s)
    expected = statistics(curves(300, 50)).pca_error
    assert f"{expected:.4g} │       5.9 │" in line
