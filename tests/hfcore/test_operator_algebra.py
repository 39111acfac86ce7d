"""Sums, multiples, chains and blocks of operators against the same algebra of dense matrices."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from dense_operator import Dense, normal, with_spectrum
from torch import Tensor, nn

import hfcore as hf

NAMES = {"encoder.weight": slice(0, 3), "encoder.bias": slice(3, 4), "head": slice(4, 7)}


def symmetric(seed: int, n: int = 7) -> Dense:
    return Dense(with_spectrum(torch.linspace(-1, 3, n), seed), NAMES if n == 7 else None)


def check(A: hf.LinearOperator, want: Tensor) -> None:
    """Every public way to multiply, and what is estimated from products, against a matrix."""
    M, N = want.shape
    eps = torch.finfo(want.dtype).eps * 50 * float(want.norm())
    assert A.shape == (M, N)
    assert A.dtype == want.dtype
    torch.testing.assert_close(A @ torch.eye(N, dtype=want.dtype), want, rtol=0, atol=eps)
    v, u = normal(N, seed=3), normal(M, seed=4)
    out = torch.full((M,), float("nan"), dtype=want.dtype)
    assert A.matvec(v, out=out) is out
    torch.testing.assert_close(out, want @ v, rtol=0, atol=10 * eps)
    torch.testing.assert_close(A @ v, want @ v, rtol=0, atol=10 * eps)
    torch.testing.assert_close(A.mT @ u, want.mT @ u, rtol=0, atol=10 * eps)
    torch.testing.assert_close(A.T.T @ v, want @ v, rtol=0, atol=10 * eps)
    V = normal(2, N, seed=5)
    torch.testing.assert_close(A.products(V), V @ want.mT, rtol=0, atol=10 * eps)
    assert A.products(V[:0]).shape == (0, M)
    sp = A.to_scipy()
    np.testing.assert_allclose(sp.rmatvec(u.numpy()), (want.mT @ u).numpy(), atol=10 * eps)
    np.testing.assert_allclose(sp @ V.numpy().T, (want @ V.mT).numpy(), atol=10 * eps)
    np.testing.assert_allclose(sp @ np.ones(N, int), want.sum(1).numpy(), atol=10 * eps)
    with pytest.raises(TypeError, match=r"v: got complex128, need real numbers"):
        sp @ (1j * v.numpy())
    if M == N:
        assert A.trace() == pytest.approx(float(want.trace()), abs=eps)
        torch.testing.assert_close(A.diagonal(), want.diagonal(), rtol=0, atol=eps)


@pytest.mark.parametrize("n", [1, 2, 7, 31])
def test_the_algebra_is_that_of_matrices(n: int) -> None:
    A, B = symmetric(0, n), symmetric(1, n)
    a, b = A.matrix, B.matrix
    C = Dense(normal(n, n + 2, seed=2))
    c, one = C.matrix, torch.eye(n, dtype=torch.float64)
    for made, want in (
        (A + B, a + b),
        (A - B, a - b),
        (-A, -a),
        (0.5 * A, 0.5 * a),
        (A * 0, 0 * a),
        (A / 4, a / 4),
        (A.shifted(0.3), a + 0.3 * one),
        (A + 0.3 * hf.Identity(A), a + 0.3 * one),
        (hf.Identity(torch.zeros(n, dtype=torch.float64)) - A, one - a),
        (2 * (A + B.shifted(-1)) - 3 * (B - A), 5 * a - b - 2 * one),
        (A @ B, a @ b),
        (A @ B @ A, a @ b @ a),
        (A @ C, a @ c),
        ((A @ C).mT, c.mT @ a),
        (C @ C.mT + A, c @ c.mT + a),
        (2 * C - 3 * C, -c),
        (C @ C.mT @ (A + B), c @ c.mT @ (a + b)),
        (torch.tensor(2.0) * A, 2 * a),
        (np.float32(2.0) * A, 2 * a),
    ):
        check(made, want)


def test_symmetry_and_multiples_of_the_identity_are_known() -> None:
    A, B, C = symmetric(0), symmetric(1), Dense(normal(7, 5))
    for made, known in (
        (A + B, True),
        (A @ B, False),
        (A @ B @ A, True),
        (A @ A, True),
        (C @ C.mT, True),
        (C.mT @ A @ C, True),
        (C.mT @ B @ A @ C, False),
        ((2 * C).mT @ (2 * C), True),
        ((2 * C).mT @ C, False),  # it is, but nobody knows
    ):
        assert made.symmetric is known, made
    assert A.shifted(0.25).identity_part == 0.25
    assert (2 * A.shifted(0.25) + hf.Identity(A)).identity_part == 1.5
    model = nn.Linear(2, 1)
    G = hf.GaussNewton(
        model, hf.losses.SquaredError(), torch.ones(3, 2), torch.ones(3, 1), damping=0.5, l2=0.25
    )
    assert (2 * G).identity_part == 1.5


def test_blocks_are_rows_and_columns_of_named_parameters() -> None:
    A = symmetric(0)
    check(A.block("encoder.*"), A.matrix[:4, :4])
    check(A.block("*bias"), A.matrix[3:4, 3:4])
    rows = torch.tensor([0, 1, 2, 4, 5, 6])
    both = A.block(["head", "*.weight"])  # in the order of the whole
    check(both, A.matrix[rows][:, rows])
    check(both.block("head"), A.matrix[4:, 4:])
    check((A + 2 * A).shifted(1).block("head"), 3 * A.matrix[4:, 4:] + torch.eye(3).double())
    for names, message in (
        ("decoder.*", r"names: 'decoder.\*' fits no parameter, need one of \['encoder.weight'"),
        ([], "names: got no pattern"),
        (["head", "x"], "names: 'x' fits no parameter"),
    ):
        with pytest.raises(ValueError, match=message):
            A.block(names)
    with pytest.raises(TypeError, match="names: got int, need a pattern or several"):
        A.block(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="names: got int, need patterns"):
        A.block([3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="vectors have no parameter names"):
        symmetric(0, 3).block("head")


@pytest.mark.parametrize("name", ["rnn", "mlp", "module"])
@pytest.mark.parametrize("kind", [hf.GaussNewton, hf.Hessian, hf.EmpiricalFisher])
def test_curvatures_of_models_have_blocks_and_algebra(name: str, kind: type) -> None:
    g = torch.Generator().manual_seed(1)
    if name == "rnn":
        model: nn.Module = hf.RNN(2, 3, 2, dtype=torch.float64, generator=g)
        x, y = normal(4, 3, 2), normal(4, 3, 2, seed=1)
    elif name == "mlp":
        model = hf.MLP((4, 3, 2), ("tanh", "linear"), dtype=torch.float64, generator=g)
        x, y = normal(5, 4), normal(5, 2, seed=1)
    else:
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        x, y = normal(5, 4), normal(5, 2, seed=1)
    A = kind(model, hf.losses.SquaredError(), x, y, damping=0.2)
    N = A.shape[0]
    dense = A @ torch.eye(N, dtype=torch.float64)
    pattern = next(iter(dict(model.named_parameters())))
    n = next(model.parameters()).numel()
    check(A.block(pattern), dense[:n, :n])
    check(A.shifted(0.3) - 0.5 * A, 0.5 * dense + 0.3 * torch.eye(N, dtype=torch.float64))


def test_what_does_not_fit_is_named() -> None:
    A, C = symmetric(0), Dense(normal(7, 5))
    single = Dense(torch.eye(7))
    v = normal(7)
    for call, error, message in (
        (lambda: A + C, ValueError, r"A \+ B: got shapes \[7, 7\] and \[7, 5\]"),
        (lambda: C @ C, ValueError, r"A @ B: got shapes \[7, 5\] and \[7, 5\]"),
        (lambda: A + single, TypeError, "got dtypes torch.float64 and torch.float32"),
        (lambda: A @ single, TypeError, "got dtypes torch.float64 and torch.float32"),
        (lambda: float("nan") * A, ValueError, "c: got nan, need a finite number"),
        (lambda: A / 0, ValueError, "c: got 0, need a divisor"),
        (lambda: A.shifted(float("inf")), ValueError, "c: got inf"),
        (lambda: A + 1, TypeError, "unsupported operand"),
        (lambda: A * True, TypeError, "unsupported operand"),
        (lambda: A * A, TypeError, "unsupported operand"),
        (lambda: A @ v[:3], ValueError, r"v: got shape \[3\], need \[7\]"),
        (lambda: A @ v.float(), TypeError, "v: got torch.float32, need torch.float64"),
        (lambda: A @ "v", TypeError, "v: got str, need a torch.Tensor"),
        (lambda: A.products(v), ValueError, r"V: got shape \[7\], need \[m,7\]"),
        (lambda: A.matvec(v, out=v), ValueError, "out: shares memory with v"),
        (lambda: A.matvec(v, out=v[:6]), ValueError, r"out: got shape \[6\], need \[7\]"),
        (lambda: C.trace(), ValueError, r"trace: the operator's shape is \[7,5\]"),
        (lambda: C.diagonal(), ValueError, r"diagonal: the operator's shape is \[7,5\]"),
        (lambda: (A @ symmetric(1)).eigenvalues(1), ValueError, "not known to be symmetric"),
        (lambda: A.shifted(True), TypeError, "c: got True, need a number"),
        (lambda: A.shifted("1"), TypeError, "c: got '1', need a number"),
        (lambda: A.trace(10**9), ValueError, "probes: got more than 100000"),
        (lambda: A.trace(2.5), TypeError, "probes: got float, need an integer"),
        (lambda: A.diagonal(2, 7), TypeError, "generator: got int, need a torch.Generator"),
        (lambda: hf.Identity(C), ValueError, r"like: the operator's shape is \[7,5\]"),
        (lambda: hf.Identity(7), TypeError, "like: got int, need an operator or a vector"),
        (lambda: hf.Identity(v[:0]), ValueError, "N: got 0, need at least 1"),
    ):
        with pytest.raises(error, match=message):
            call()
    half = torch.zeros(14, dtype=torch.float64)
    with pytest.raises(ValueError, match="out: shares memory with v"):
        A.matvec(half[:7], out=half[3:10])


def test_products_do_not_follow_gradients() -> None:
    A = symmetric(0)
    v = normal(7).requires_grad_()
    for made in (A, hf.Identity(A), A.block("head").shifted(1), A @ A):
        w = v[: made.shape[0]]
        assert not (made @ w).requires_grad
        assert not made.products(w[None]).requires_grad


def test_curvlinops_takes_an_operator() -> None:
    pytest.importorskip("curvlinops")
    A, C = symmetric(0), Dense(normal(7, 5))
    V = normal(7, 2)
    exported = A.to_curvlinops()
    assert exported.SELF_ADJOINT
    assert (exported.dtype, exported.device) == (A.dtype, A.device)
    torch.testing.assert_close(exported @ V, A @ V, rtol=0, atol=0)
    torch.testing.assert_close(exported @ V[:, 0], A @ V[:, 0])
    mixed = C.to_curvlinops()
    torch.testing.assert_close(mixed.adjoint() @ V, C.matrix.mT @ V)
    chained = (mixed.adjoint() @ exported @ mixed) @ V[:5]
    torch.testing.assert_close(chained, C.mT @ (A @ (C @ V[:5])))
    with pytest.raises(TypeError, match="v: got complex"):
        A.to_scipy() @ (1j * V[:, 0].numpy())


def test_without_curvlinops_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    monkeypatch.setitem(sys.modules, "curvlinops._torch_base", None)
    with pytest.raises(ImportError, match="to_curvlinops: needs the package curvlinops"):
        symmetric(0).to_curvlinops()
