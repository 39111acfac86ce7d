"""Spectral radii: against all eigenvalues, matrices of known radius, the fallback, bad input."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from hfcore import spectral
from hfcore.init import esn_recurrence


def fan_in_matrix(H: int, fan_in: int = 15, seed: int = 0) -> Any:
    """Rows of ``fan_in`` normals, as esn_recurrence draws them before scaling."""
    return spectral.rows_to_csr(
        *spectral._fan_in_rows(H, fan_in, torch.Generator().manual_seed(seed))
    )


def by_all_eigenvalues(A: Any) -> float:
    return float(np.abs(np.linalg.eigvals(A.toarray())).max())


def cycle(H: int) -> Any:
    """The cyclic shift: every eigenvalue has modulus 1."""
    return scipy.sparse.csr_array((np.ones(H), (np.arange(H), (np.arange(H) + 1) % H)))


@pytest.mark.parametrize("H", [1, 2, 7, 97, 300], ids=lambda H: f"H{H}")
def test_small_matrices(H: int) -> None:
    A = fan_in_matrix(H, min(15, H))
    assert spectral.spectral_radius(A) == by_all_eigenvalues(A)
    assert spectral.spectral_radius(A.toarray()) == by_all_eigenvalues(A)


@pytest.mark.parametrize(
    ("H", "seed"),
    [(128, 0), (128, 1), (128, 2), (211, 0), (211, 1), (300, 2), (700, 0)],
    ids=lambda value: str(value),
)
def test_arnoldi_finds_the_largest_of_all_eigenvalues(H: int, seed: int) -> None:
    A = fan_in_matrix(H, seed=seed)
    assert spectral.leading_modulus(A) == pytest.approx(by_all_eigenvalues(A), rel=1e-6)


def test_large_matrices_go_by_arnoldi() -> None:
    A = fan_in_matrix(700)
    assert spectral.spectral_radius(A) == spectral.leading_modulus(A)
    assert spectral.spectral_radius(A) == spectral.spectral_radius(A.copy())


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_radius_scales_with_the_matrix(size: float) -> None:
    A = fan_in_matrix(600)
    expected = size * spectral.spectral_radius(A)
    assert spectral.spectral_radius(size * A) == pytest.approx(expected, rel=1e-6)


def test_a_known_complex_pair_far_from_the_rest() -> None:
    """A rotation by 40° times 2 beside a random block of radius below 1, mixed by similarity."""
    angle, n = np.deg2rad(40.0), 600
    block = 0.2 * fan_in_matrix(n - 2).toarray()
    D = np.zeros((n, n))
    D[:2, :2] = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    D[2:, 2:] = block
    u = np.random.default_rng(0).normal(size=n) / n**0.5  # (I + u uᵀ)⁻¹ = I − u uᵀ / (1 + uᵀu)
    mixed = D + np.outer(u, u @ D)
    mixed -= np.outer(mixed @ u, u) / (1 + u @ u)
    assert spectral.spectral_radius(mixed) == pytest.approx(2.0, rel=1e-9)


@pytest.mark.parametrize("H", [5, 600], ids=lambda H: f"H{H}")
def test_a_matrix_without_a_cycle_has_radius_exactly_zero(H: int) -> None:
    order = np.random.default_rng(1).permutation(H)
    upper = scipy.sparse.csr_array(np.triu(np.ones((H, H)), 1)[np.ix_(order, order)])
    assert spectral.spectral_radius(upper) == 0.0
    upper = upper.tolil()
    upper[2, 2] = -0.5
    assert spectral.spectral_radius(upper) == 0.5
    assert spectral.spectral_radius(np.zeros((H, H))) == 0.0


def test_a_reducible_matrix_has_the_radius_of_its_largest_block() -> None:
    """Block-triangular and shuffled: an Arnoldi block, a dense one, a single row, couplings."""
    large, small = fan_in_matrix(520), fan_in_matrix(40, seed=1)
    n = 520 + 40 + 1
    for factor in (0.1, 10.0):
        A = np.zeros((n, n))
        A[:520, :520], A[520:560, 520:560] = large.toarray(), factor * small.toarray()
        A[560, 560] = 1e-3
        A[0, 530] = A[530, 560] = 7.0
        order = np.random.default_rng(2).permutation(n)
        expected = max(by_all_eigenvalues(large), factor * by_all_eigenvalues(small))
        found = spectral.spectral_radius(A[np.ix_(order, order)])
        assert found == pytest.approx(expected, rel=1e-6)


def test_eigenvalues_of_one_modulus_fall_back_to_growth(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectral, "RESTARTS", 5)
    with caplog.at_level(logging.WARNING, "hfcore.spectral"):
        assert spectral.spectral_radius(3.0 * cycle(601)) == pytest.approx(3.0, rel=1e-9)
    assert "ARPACK did not converge" in caplog.text


def test_growth_is_good_to_about_a_percent() -> None:
    A = fan_in_matrix(700)
    assert spectral.growth(A) == pytest.approx(by_all_eigenvalues(A), rel=0.01)
    assert spectral.growth(np.triu(np.ones((9, 9)), 1)) == 0.0


def test_esn_recurrence_of_many_units() -> None:
    A = spectral.rows_to_csr(*esn_recurrence(900, 15, 1.1, torch.Generator().manual_seed(2)))
    assert by_all_eigenvalues(A) == pytest.approx(1.1, rel=1e-6)


@pytest.mark.slow
def test_a_hundred_thousand_units() -> None:
    """The radius of the disc is √15 = 3.873; finite size adds less than a hundredth."""
    A = fan_in_matrix(100_000)
    radius = spectral.spectral_radius(A)
    assert 15**0.5 < radius < 1.01 * 15**0.5
    # A search for ten eigenvalues in a space of 120 (45 seconds) finds none that is larger.
    assert radius == pytest.approx(3.8874566, rel=1e-4)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), r"matrix: got shape \[2, 3\], need a square one"),
        (np.full((2, 2), np.nan), "matrix: holds values that are not finite"),
        (np.ones((0, 0)), "matrix: got shape"),
    ],
)
def test_bad_matrices_are_named(matrix: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral.spectral_radius(matrix)
