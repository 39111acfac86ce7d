"""A.eigsh against dense eigendecompositions."""

from __future__ import annotations

import math

import pytest
import torch
from dense_operator import Dense, generator, normal, with_spectrum
from torch import Tensor

import hfcore as hf
from hfcore.solvers import lanczos

WHICH = ("LA", "SA", "LM")


def wanted(A: Tensor, k: int, which: str) -> Tensor:
    values = torch.linalg.eigvalsh(A.double())
    key = {"LA": -values, "SA": values, "LM": -values.abs()}[which]
    return values[key.argsort(stable=True)][:k]


def check(A: Dense, k: int, which: str, pairs: lanczos.Eigenpairs) -> None:
    """The right values in the right order, with orthonormal eigenvectors."""
    N = A.shape[0]
    values, vectors = pairs
    assert (values.shape, vectors.shape) == ((k,), (N, k))
    assert values.dtype == vectors.dtype == A.dtype
    size = float(torch.linalg.eigvalsh(A.matrix.double()).abs().max())
    eps = torch.finfo(A.dtype).eps
    tolerance = (2 * eps ** (2 / 3) + 20 * N**0.5 * eps) * size
    want = wanted(A.matrix, k, which)
    got = values.double()
    if which == "LM":  # ± of one magnitude come in any order
        torch.testing.assert_close(got.abs(), want.abs(), rtol=0, atol=tolerance)
    else:
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance)
    residuals = (A.matrix @ vectors - vectors * values).norm(dim=0)
    assert float(residuals.max()) <= tolerance
    gram = (vectors.mT @ vectors - torch.eye(k, dtype=A.dtype)).abs().max()
    assert float(gram) <= 1000 * eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (2, 2), (31, 31), (37, 3), (211, 7)])
def test_random_symmetric_matrices(n: int, k: int, which: str, dtype: torch.dtype) -> None:
    M = normal(n, n)
    A = Dense(((M + M.mT) / 2).to(dtype))
    check(A, k, which, A.eigsh(k, which))
    torch.testing.assert_close(A.eigenvalues(k, which=which), A.eigsh(k, which).values)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("copies", [2, 3, 5])
def test_multiple_eigenvalues_are_all_found(copies: int, which: str) -> None:
    """Three leading values at either end, each several times; the bulk is far away."""
    n = 150
    leading = torch.tensor([1.0, 0.9, 0.7]).repeat_interleave(copies)
    bulk = torch.linspace(-0.3, 0.3, n - 2 * len(leading))
    A = Dense(with_spectrum(torch.cat([leading, -leading, bulk])))
    for k in (1, copies, 2 * copies + 1, 3 * copies):
        for seed in range(3):
            check(A, k, which, A.eigsh(k, which, seed=seed))


def test_the_many_equal_smallest_of_a_damped_matrix() -> None:
    """Rank 20 with damping: every Krylov space holds one vector of a space of 180 dimensions."""
    A = Dense(with_spectrum(torch.cat([torch.logspace(0, -2, 20), torch.zeros(180)]) + 1e-3))
    for k in (1, 4, 9):
        check(A, k, "SA", A.eigsh(k, "SA"))
    check(A, 25, "LA", A.eigsh(25))
    check(A, 30, "LM", A.eigsh(30, "LM"))


def test_multiples_of_the_identity_and_zero() -> None:
    for c in (2.0, 0.0, -1.0):
        A = Dense(c * torch.eye(40, dtype=torch.float64))
        for which in WHICH:
            check(A, 3, which, A.eigsh(3, which))


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        (torch.linspace(0, 1, 300) ** 3, ("LA", "LM")),  # near 0 they are 3e-8 apart
        (torch.logspace(0, -12, 300), ("LA", "LM")),
        (torch.cat([torch.linspace(0, 1, 297), torch.ones(3)]), WHICH),
        (torch.linspace(-1, 1, 300).round(decimals=1), WHICH),
    ],
    ids=["crowded", "graded", "triple", "steps"],
)
def test_crowded_and_graded_spectra(values: Tensor, ends: tuple[str, ...]) -> None:
    A = Dense(with_spectrum(values))
    for which in ends:
        check(A, 5, which, A.eigsh(5, which))


def test_products_are_counted_in_those_of_scipy() -> None:
    """The search for copies included, which SciPy does not do."""
    from scipy.sparse.linalg import eigsh

    values = torch.cat([torch.logspace(1, -1, 60), torch.logspace(-1, -4, 940)])
    A = Dense(with_spectrum(values))
    check(A, 10, "LA", A.eigsh(10))
    ours, A.counted = A.counted, 0
    eigsh(A.to_scipy(), k=10, which="LA", v0=normal(1000).numpy())
    assert ours <= 1.5 * A.counted


def test_results_repeat_by_seed_and_start_anywhere() -> None:
    A = Dense(with_spectrum(torch.logspace(0, -4, 80)))
    first, again, other = A.eigsh(4), A.eigsh(4), A.eigsh(4, seed=1)
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, other.vectors)
    torch.testing.assert_close(first.values, other.values, rtol=1e-12, atol=1e-12)


def test_tolerance_is_that_of_the_residual() -> None:
    A = Dense(with_spectrum(torch.linspace(0, 1, 400) ** 2))
    counts = []
    for tolerance in (1e-2, 1e-6, 1e-12):
        A.counted = 0
        pairs = A.eigsh(3, tolerance=tolerance)
        residuals = (A.matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
        assert float(residuals.max()) <= 1.01 * tolerance
        counts.append(A.counted)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_what_does_not_converge_is_said() -> None:
    A = Dense(with_spectrum(torch.cat([torch.linspace(0, 1, 500) ** 0.5, torch.tensor([3.0])])))
    with pytest.raises(hf.EigenpairsNotConverged, match=r"of 6 eigenpairs converged in 60") as info:
        A.eigsh(6, max_products=60)
    values, vectors = info.value.converged
    assert len(values) == vectors.shape[1] < 6
    assert values[0].item() == pytest.approx(3.0)
    residual = (A.matrix @ vectors - vectors * values).norm(dim=0)
    assert float(residual.max()) <= 1e-9


@pytest.mark.parametrize("kind", [hf.GaussNewton, hf.Hessian, hf.EmpiricalFisher])
@pytest.mark.parametrize("name", ["rnn", "mlp"])
def test_curvatures_of_models(name: str, kind: type) -> None:
    if name == "rnn":
        model: torch.nn.Module = hf.RNN(2, 9, 2, dtype=torch.float64, generator=generator(1))
        x, y = normal(5, 6, 2), normal(5, 6, 2, seed=1)
    else:
        sizes, kinds = (4, 15, 2), ("tanh", "linear")
        model = hf.MLP(sizes, kinds, dtype=torch.float64, generator=generator(1))
        x, y = normal(9, 4), normal(9, 2, seed=1)
    A = kind(model, hf.losses.SquaredError(), x, y, damping=0.01)
    dense = A @ torch.eye(A.shape[0], dtype=torch.float64)
    as_dense = Dense((dense + dense.mT) / 2)
    for which in WHICH:
        for k in (1, 3):
            check(as_dense, k, which, A.eigsh(k, which))
    check(as_dense, A.shape[0], "SA", A.eigsh(A.shape[0], "SA"))
    n = next(model.parameters()).numel()
    part = A.block(next(iter(dict(model.named_parameters())))).shifted(-0.5)
    block = dense[:n, :n] - 0.5 * torch.eye(n, dtype=torch.float64)
    check(Dense((block + block.mT) / 2), 2, "LM", part.eigsh(2, "LM"))


def test_bad_arguments_are_named() -> None:
    A = Dense(with_spectrum(torch.linspace(0, 1, 5)))
    bad = Dense(torch.full((5, 5), math.nan, dtype=torch.float64))
    bad.symmetric = True
    half = Dense(torch.eye(5, dtype=torch.bfloat16))
    for call, error, message in (
        (lambda: A.eigsh(0), ValueError, "k: got 0, need at least 1"),
        (lambda: A.eigsh(6), ValueError, "k: got 6, need 1 to 5"),
        (lambda: A.eigsh(2.0), TypeError, "k: got float, need an integer"),
        (lambda: A.eigsh(1, "XX"), ValueError, "which: got 'XX', need one of 'LA'"),
        (lambda: A.eigsh(1, tolerance=-1.0), ValueError, "tolerance: got -1.0"),
        (lambda: A.eigsh(1, tolerance=math.nan), ValueError, "tolerance: got nan"),
        (lambda: A.eigsh(1, max_products=0), ValueError, "max_products: got 0"),
        (lambda: bad.eigsh(1), ValueError, "A: a product is not finite"),
        (lambda: half.eigsh(1), TypeError, "A: products are torch.bfloat16, need"),
        (lambda: Dense(normal(3, 2)).eigsh(1), ValueError, "need a square one"),
        (lambda: Dense(normal(3, 3)).eigsh(1), ValueError, "not known to be symmetric"),
    ):
        with pytest.raises(error, match=message):
            call()
