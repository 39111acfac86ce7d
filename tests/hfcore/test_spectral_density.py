"""A.spectral_density against the eigenvalues of dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from dense_operator import Dense, generator, normal, with_spectrum
from torch import Tensor

import hfcore as hf


def smoothed(values: Tensor, grid: Tensor, width: float) -> Tensor:
    z = (grid[:, None] - values) / width
    return torch.exp(-0.5 * z.square()).mean(1) / (width * math.sqrt(2 * math.pi))


def test_a_probe_is_exact_for_polynomials_below_twice_the_steps() -> None:
    A = Dense(with_spectrum(torch.linspace(-1, 1, 40)))
    steps, probes = 5, 3
    found = A.spectral_density(probes, steps, generator=generator(7))
    Z = (2 * torch.randint(2, (probes, 40), generator=generator(7)) - 1).double() / 40**0.5
    power = Z.clone()
    for degree in range(2 * steps):
        want = (Z * power).sum(1)
        got = (found.weights * found.nodes**degree).sum(1)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)
        power = power @ A.matrix
    wrong = (found.weights * found.nodes ** (2 * steps)).sum(1)
    assert float((wrong - (Z * power).sum(1)).abs().max()) > 1e-6


@pytest.mark.parametrize("n", [1, 2, 3, 31])
def test_with_all_steps_functions_of_the_matrix_are_exact(n: int) -> None:
    A = Dense(with_spectrum(torch.linspace(0.5, 3, n)))
    found = A.spectral_density(4, 100, generator=generator(1))
    assert found.nodes.shape == found.weights.shape == (4, n)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(4).double())
    Z = (2 * torch.randint(2, (4, n), generator=generator(1)) - 1).double()
    values, U = torch.linalg.eigh(A.matrix)
    logarithm = (U * values.log()) @ U.mT
    samples = (Z * (Z @ logarithm)).sum(1)
    mean, error = found.trace(torch.log)
    assert mean == pytest.approx(float(samples.mean()), rel=1e-10, abs=1e-10)
    assert error == pytest.approx(float(samples.std()) / 2, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_density_lies_within_its_error_bars(dtype: torch.dtype) -> None:
    g = generator(3)
    values = torch.cat([torch.randn(400, generator=g) * 0.3, torch.tensor([2.0, 3.0, -2.5])])
    A = Dense(with_spectrum(values).to(dtype))
    true = torch.linalg.eigvalsh(A.matrix.double())
    found = A.spectral_density(30, 100, width=0.1, generator=g)
    want = smoothed(true, found.grid, 0.1)
    off = (found.density - want).abs()
    assert bool((off <= 5 * found.error + 2e-3 * want.max()).all())
    assert float(found.error.max()) < 0.1 * float(want.max())
    mass = torch.trapezoid(found.density, found.grid)
    assert float(mass) == pytest.approx(1, abs=1e-3)
    mean, error = found.trace(torch.square)
    assert abs(mean - float(true.square().sum())) <= 5 * error
    assert error > 0


def test_error_bars_are_those_of_the_mean_over_probes() -> None:
    """Twenty densities of 8 probes scatter as their error says."""
    A = Dense(with_spectrum(torch.cat([torch.logspace(0, -4, 60), torch.tensor([2.0])])))
    grid = torch.linspace(0, 2.2, 23).double()
    found = [
        A.spectral_density(8, 20, grid=grid, width=0.1, generator=generator(s)) for s in range(40)
    ]
    scatter = torch.stack([f.density for f in found]).std(0)
    error = torch.stack([f.error for f in found]).square().mean(0).sqrt()
    there = error > 1e-3 * error.max()
    ratio = scatter[there] / error[there]
    assert 0.6 < float(ratio.min()) <= float(ratio.max()) < 1.6


def test_invariant_spaces_that_end_early_leave_no_nodes_of_their_own() -> None:
    n = 50
    halves = torch.cat([torch.full((25,), 1.0), torch.full((25,), 4.0)])
    for values in (torch.full((n,), 2.0), halves):
        A = Dense(with_spectrum(values))
        found = A.spectral_density(3, 20, generator=generator(0))
        mean, error = found.trace(torch.log)
        assert math.isfinite(mean)
        assert abs(mean - float(values.double().log().sum())) <= 5 * error + 1e-9
        counted = found.weights > 1e-12
        near = (found.nodes[counted][:, None] - values.unique().double()).abs().min(1).values
        assert float(near.max()) <= 1e-10
    zero = Dense(torch.zeros(4, 4).double())
    assert zero.spectral_density(2, 3).trace(torch.exp)[0] == pytest.approx(4)


def test_probes_share_products_and_repeat_by_generator() -> None:
    A = Dense(with_spectrum(torch.linspace(0, 1, 30)))
    first = A.spectral_density(6, 10, generator=generator(5))
    assert (A.calls, A.counted) == (10, 60)
    again = A.spectral_density(6, 10, generator=generator(5), grid=first.grid)
    assert torch.equal(first.density, again.density)
    assert first.grid.shape == (1000,)
    assert A.spectral_density(2, 10, grid=17).grid.shape == (17,)


def test_of_a_model() -> None:
    model = hf.RNN(2, 5, 2, dtype=torch.float64, generator=generator(1))
    x, y = normal(4, 6, 2), normal(4, 6, 2, seed=1)
    A = hf.Hessian(model, hf.losses.SquaredError(), x, y, damping=0.1)
    true = torch.linalg.eigvalsh(A @ torch.eye(A.shape[0], dtype=torch.float64))
    found = A.spectral_density(40, 50, generator=generator(2))
    off = (found.density - smoothed(true, found.grid, found.width)).abs()
    assert bool((off <= 5 * found.error + 1e-6 * found.density.max()).all())
    mean, error = A.block("W_hh").shifted(2).spectral_density(40).trace(torch.sqrt)
    block = A.block("W_hh") @ torch.eye(25, dtype=torch.float64)
    want = float((torch.linalg.eigvalsh(block) + 2).sqrt().sum())
    assert abs(mean - want) <= 5 * error


def test_bad_arguments_are_named() -> None:
    A = Dense(with_spectrum(torch.linspace(0, 1, 5)))
    bad = Dense(torch.full((5, 5), math.nan, dtype=torch.float64))
    bad.symmetric = True
    found = A.spectral_density(2, 3)
    for call, error, message in (
        (lambda: A.spectral_density(1), ValueError, "probes: got 1, need at least 2"),
        (lambda: A.spectral_density(2, 0), ValueError, "steps: got 0"),
        (lambda: A.spectral_density(2, width=0.0), ValueError, "width: got 0.0"),
        (lambda: A.spectral_density(2, width=math.nan), ValueError, "width: got nan"),
        (lambda: A.spectral_density(2, grid=0), ValueError, "grid: got 0"),
        (
            lambda: A.spectral_density(2, grid=torch.tensor([math.inf])),
            ValueError,
            "grid: holds NaN or Inf",
        ),
        (
            lambda: A.spectral_density(2, grid=torch.ones(3, device="meta")),
            ValueError,
            "grid: holds",
        ),
        (lambda: A.spectral_density(2, grid=torch.arange(3)), TypeError, "grid: got torch.int64"),
        (lambda: bad.spectral_density(2), ValueError, "A: a product is not finite"),
        (lambda: Dense(normal(3, 2)).spectral_density(2), ValueError, "need a square one"),
        (lambda: (A - A.shifted(1)).spectral_density(2).trace(torch.log), ValueError, "not finite"),
        (lambda: found.trace(lambda t: 3.0), ValueError, "function: need a tensor"),
    ):
        with pytest.raises(error, match=message):
            call()
