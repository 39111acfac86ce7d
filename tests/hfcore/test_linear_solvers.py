"""A.solve, hf.cg and hf.minres against dense float64 algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dense_operator import Dense, generator, normal, with_spectrum
from torch import Tensor

import hfcore as hf
from hfcore.solvers.conjugate_gradient import MAX_ITERATIONS, NONFINITE, NONPOSITIVE, RESIDUAL
from hfcore.solvers.linear import ROUNDING
from hfcore.solvers.minres import LEAST_SQUARES

EPS = torch.finfo(torch.float64).eps


def spd(n: int, condition: float = 100.0, seed: int = 0) -> Dense:
    return Dense(with_spectrum(torch.logspace(0, -math.log10(condition), n).double(), seed))


def indefinite(n: int, seed: int = 0) -> Dense:
    values = torch.linspace(-1, 2, n).double()
    return Dense(with_spectrum(values + 0.05 * values.sign(), seed))


def true_norms(A: Dense, x: Tensor, b: Tensor) -> Tensor:
    return (b - A.matrix @ x).norm(dim=0).reshape(-1).double()


def check(A: Dense, x: Tensor, b: Tensor, info: hf.SolveInfo, rtol: float) -> None:
    """Converged, with the residual norms it reports, and as close as they imply."""
    m = 1 if b.ndim == 1 else b.shape[1]
    assert x.shape == b.shape
    assert x.dtype == b.dtype
    assert info.converged
    assert info.stop == (RESIDUAL,) * m
    norms = true_norms(A, x, b)
    assert bool((norms <= rtol * b.norm(dim=0).double() * (1 + 1e-6) + 1e-300).all())
    rounding = 50 * len(A.matrix) * torch.finfo(A.dtype).eps * float(A.matrix.norm() * x.norm())
    torch.testing.assert_close(info.residual_norms, norms, rtol=1e-6, atol=rounding)
    error = (x - torch.linalg.solve(A.matrix, b)).norm(dim=0)
    smallest = float(torch.linalg.eigvalsh(A.matrix).abs().min())
    assert bool((error <= norms / smallest * (1 + 1e-6) + 1e-12).all())


@pytest.mark.parametrize("method", ["auto", "cg", "minres"])
@pytest.mark.parametrize("preconditioner", [None, "jacobi", "nystrom"])
@pytest.mark.parametrize(("n", "m"), [(1, None), (1, 1), (2, 3), (37, None), (37, 1), (101, 7)])
def test_positive_definite(n: int, m: int | None, preconditioner, method) -> None:
    A = spd(n)
    b = normal(n, seed=1) if m is None else normal(n, m, seed=1)
    for rtol in (1e-3, 1e-10):
        x, info = A.solve(b, rtol, preconditioner, method=method)
        check(A, x, b, info, rtol)
        assert max(info.iterations) <= 2 * n


@pytest.mark.parametrize("method", ["auto", "minres"])
@pytest.mark.parametrize("preconditioner", [None, "jacobi"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, None), (37, None), (101, 7)])
def test_indefinite(n: int, m: int | None, preconditioner, method) -> None:
    A = indefinite(n)
    b = normal(n, seed=1) if m is None else normal(n, m, seed=1)
    x, info = A.solve(b, 1e-10, preconditioner, method=method)
    check(A, x, b, info, 1e-10)


def test_cg_says_where_the_matrix_is_not_positive_definite() -> None:
    A = Dense(with_spectrum(torch.tensor([-1.0, 1.0, 2.0, 3.0])))
    b = normal(4, 3)
    x, info = A.solve(b, method="cg")
    assert not info.converged
    assert set(info.stop) == {NONPOSITIVE}
    torch.testing.assert_close(info.residual_norms, true_norms(A, x, b))
    minus = Dense(-torch.eye(3).double())
    x, info = hf.cg(minus, torch.ones(3).double())
    assert info.stop == (NONPOSITIVE,)
    assert info.iterations == (0,)
    assert torch.equal(x, torch.zeros(3).double())
    x, info = minus.solve(torch.ones(3).double())
    assert info.converged
    torch.testing.assert_close(x, -torch.ones(3).double())


def test_iterates_are_those_of_the_textbook() -> None:
    """k iterations minimise ‖x − A⁻¹b‖_A (CG) and ‖b − A x‖ (MINRES) over the Krylov space."""
    n, k = 23, 6
    A, b, x0 = spd(n), normal(n), normal(n, seed=2)
    for start in (None, x0):
        r = b if start is None else b - A.matrix @ start
        powers = [r]
        for _ in range(k - 1):
            powers.append(A.matrix @ powers[-1])
        K = torch.linalg.qr(torch.stack(powers, 1))[0]
        AK = A.matrix @ K
        for method, d in (
            ("cg", K @ torch.linalg.solve(K.mT @ AK, K.mT @ r)),
            ("minres", K @ torch.linalg.lstsq(AK, r[:, None]).solution[:, 0]),
        ):
            x, info = A.solve(b, 1e-14, x0=start, max_iter=k, method=method)
            want = d if start is None else start + d
            assert info.stop == (MAX_ITERATIONS,)
            assert info.iterations == (k,)
            assert not info.converged
            torch.testing.assert_close(x, want, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(info.residual_norms, true_norms(A, x, b))


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_preconditioned_iterates_are_those_of_the_split_system(method: str) -> None:
    """M = LLᵀ: iterates are L⁻ᵀy of the plain method's for L⁻¹AL⁻ᵀ y = L⁻¹b (MINRES: in M⁻¹)."""
    n, k = 23, 5
    A, b = spd(n), normal(n)
    C = with_spectrum(torch.linspace(0.5, 2, n), seed=5)
    L = torch.linalg.cholesky(C)
    split = torch.linalg.solve(L, torch.linalg.solve(L, A.matrix).mT)
    y, _ = Dense((split + split.mT) / 2).solve(
        torch.linalg.solve(L, b), 1e-14, max_iter=k, method=method
    )
    x, info = A.solve(b, 1e-14, Inverse(C), max_iter=k, method=method)
    assert info.iterations == (k,)
    torch.testing.assert_close(x, torch.linalg.solve(L.mT, y), rtol=1e-9, atol=1e-9)


class Inverse:
    """A dense M as a preconditioner."""

    def __init__(self, M: Tensor) -> None:
        self.inverse = torch.linalg.inv(M)

    def apply(self, r: Tensor, out: Tensor) -> Tensor:
        return torch.mv(self.inverse, r, out=out)


def test_the_inverse_as_preconditioner_needs_one_iteration() -> None:
    A, b = spd(31, 1e4), normal(31, 2)
    x, info = A.solve(b, 1e-8, Inverse(A.matrix))
    check(A, x, b, info, 1e-8)
    assert info.iterations == (1, 1)
    d = torch.linspace(1, 1e6, 31).double()
    D = Dense(torch.diag(d))
    for M in (d, "jacobi"):
        x, info = D.solve(b, 1e-10, M)
        check(D, x, b, info, 1e-10)
        assert info.iterations == (1, 1)


def test_nystrom_takes_the_leading_eigenvalues_out() -> None:
    """A low rank with damping is solved in as many iterations as eigenvalues are left over."""
    n, rank, damping = 200, 20, 1e-6
    values = torch.cat([torch.logspace(0, -3, rank), torch.zeros(n - rank)]).double()
    G = Dense(with_spectrum(values))
    A = G.shifted(damping)
    want = Dense(G.matrix + damping * torch.eye(n).double())
    b = normal(n)
    plain = A.solve(b, 1e-8)[1].iterations[0]
    x, info = A.solve(b, 1e-8, "nystrom")
    check(want, x, b, info, 1e-8)
    assert info.iterations[0] <= 3 < plain
    M = hf.NystromPreconditioner(A, rank=rank + 5)
    P = torch.stack([M.apply(e, torch.empty(n).double()) for e in torch.eye(n).double()])
    torch.testing.assert_close(P, P.mT, rtol=0, atol=1e-10)
    preconditioned = torch.linalg.eigvals(P @ want.matrix).real
    assert float(preconditioned.max() / preconditioned.min()) <= 1.01
    assert float(torch.linalg.eigvalsh(P).min()) > 0
    # Fewer products than eigenvalues: those left over decide.
    few = hf.NystromPreconditioner(A, rank=10)
    assert A.solve(b, 1e-8, few)[1].converged
    assert torch.equal(
        few.apply(b, torch.empty_like(b)),
        hf.NystromPreconditioner(A, rank=10).apply(b, torch.empty_like(b)),
    )
    nothing = Dense(torch.zeros(3, 3).double()).shifted(2.0)
    torch.testing.assert_close(nothing.solve(b[:3], preconditioner="nystrom")[0], b[:3] / 2)
    with pytest.raises(ValueError, match="'nystrom' needs a positive semi-definite A"):
        indefinite(31).solve(b[:31], preconditioner="nystrom")


@pytest.mark.parametrize("method", ["auto", "cg", "minres"])
def test_singular_but_consistent(method: str) -> None:
    A = Dense(with_spectrum(torch.cat([torch.linspace(0.1, 1, 20), torch.zeros(11)])))
    b = A.matrix @ normal(31, 3)
    x, info = A.solve(b, 1e-9, method=method)
    assert info.converged
    torch.testing.assert_close(A.matrix @ x, b, rtol=0, atol=1e-8)
    least = torch.linalg.pinv(A.matrix, rtol=1e-9) @ b
    torch.testing.assert_close(x, least, rtol=0, atol=1e-6)  # from zero: the shortest


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_inconsistent_systems_end_with_the_least_residual_and_say_so(sign: float) -> None:
    values = torch.cat([torch.linspace(0.1, 1, 20), torch.zeros(11)]).double()
    values[0] *= sign
    A, b = Dense(with_spectrum(values)), normal(31, 2)
    outside = b - A.matrix @ (torch.linalg.pinv(A.matrix, rtol=1e-9) @ b)
    for method in ("minres", "auto"):
        x, info = A.solve(b, 1e-9, method=method, max_iter=500)
        assert not info.converged
        if method == "minres":
            assert info.stop == (LEAST_SQUARES,) * 2
            torch.testing.assert_close(info.residual_norms, outside.norm(dim=0))
        assert bool((info.residual_norms <= b.norm(dim=0)).all())
        torch.testing.assert_close(info.residual_norms, true_norms(A, x, b), rtol=1e-6, atol=1e-9)
    zero = Dense(torch.zeros(3, 3).double())
    x, info = zero.solve(torch.ones(3).double())
    assert info.stop == (LEAST_SQUARES,)
    assert torch.equal(x, torch.zeros(3).double())


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
def test_what_lies_where_an_indefinite_matrix_is_small_is_in_its_range(dtype, least) -> None:
    values = torch.linspace(-1, 1, 30).double()
    values[-3:] = least * torch.tensor([1.0, 2.0, 3.0])
    matrix = torch.linalg.eigh(with_spectrum(values))
    small = matrix.eigenvectors[:, matrix.eigenvalues.abs() < 10 * least]
    A = (matrix.eigenvectors * matrix.eigenvalues) @ matrix.eigenvectors.mT
    b = small.sum(1)
    x, info = hf.minres(lambda v: A.to(dtype) @ v, b.to(dtype), rtol=1e-3, max_iter=500)
    assert info.converged
    want = torch.linalg.solve(A, b)
    assert float((x - want).norm()) <= 1e-3 * float(want.norm())


def test_zero_right_hand_sides_and_exact_starts() -> None:
    A, b = spd(13), normal(13, 3)
    b[:, 1] = 0
    x0 = normal(13, 3, seed=3)
    for method in ("auto", "cg", "minres"):
        x, info = A.solve(b, 1e-10, x0=x0, method=method)
        check(A, x, b, info, 1e-10)
        assert torch.equal(x[:, 1], torch.zeros(13).double())
        assert info.iterations[1] == 0
        A.counted = 0
        again, info = A.solve(b, 1e-9, x0=x, method=method)
        assert torch.equal(again, x)
        assert info.iterations == (0, 0, 0)
        assert info.products == A.counted == 2  # their residuals
    x, info = A.solve(torch.zeros(13).double())
    assert info == (True, (0,), info.residual_norms, (RESIDUAL,), 0)
    x, info = A.solve(b[:, :0])
    assert x.shape == (13, 0)
    assert info.converged
    assert info.iterations == ()


def test_done_right_hand_sides_cost_nothing_and_change_nothing() -> None:
    A = Dense(torch.diag(torch.linspace(1, 9, 9).double()))
    b = torch.zeros(9, 3).double()
    b[0, 0] = 1  # an eigenvector: one iteration
    b[[1, 4], 1] = 1  # two of them
    b[:, 2] = 1  # all nine
    x, info = A.solve(b, 1e-10)
    assert info.iterations == (1, 2, 9)
    # A product an iteration and one for the residual.
    assert info.products == A.counted == 12 + 3
    assert A.calls == 9 + 1
    for j in range(3):
        alone, single = A.solve(b[:, j].contiguous(), 1e-10)
        assert torch.equal(alone, x[:, j])
        assert single.iterations == info.iterations[j : j + 1]


def test_functions_serve_as_products() -> None:
    A = spd(17)
    seen: list[tuple[int, ...]] = []

    def product(v: Tensor) -> Tensor:
        seen.append(tuple(v.shape))
        return A.matrix @ v

    for solver in (hf.cg, hf.minres):
        seen.clear()
        b = normal(17, 2)
        x, info = solver(product, b, rtol=1e-9)
        check(A, x, b, info, 1e-9)
        assert set(seen) <= {(17, 2), (17, 1)}
        seen.clear()
        x, info = solver(product, b[:, 0], rtol=1e-9, preconditioner=A.matrix.diagonal())
        check(A, x, b[:, 0], info, 1e-9)
        assert set(seen) == {(17,)}
        assert info.products == len(seen)


def test_what_rounding_forbids_is_said() -> None:
    """Float32 does not reach 1e-12; what is reported is the residual that it does reach."""
    for method in ("cg", "minres"):
        A = Dense(spd(50, 1e3).matrix.float())
        b = normal(50, 2).float()
        x, info = A.solve(b, 1e-12, method=method)
        assert not info.converged
        assert set(info.stop) == {ROUNDING}
        norms = (b.double() - A.matrix.double() @ x.double()).norm(dim=0)
        assert bool((norms <= 1e-4 * b.double().norm(dim=0)).all())
        torch.testing.assert_close(info.residual_norms, norms, rtol=0.5, atol=1e-5)
        assert A.solve(b, 1e-4, method=method)[1].converged


def test_ill_conditioned_float64_reaches_its_residual_or_says_not() -> None:
    A, b = spd(60, 1e10), normal(60)
    for method in ("cg", "minres"):
        x, info = A.solve(b, 1e-6, method=method)
        norm = float((b - A.matrix @ x).norm())
        assert info.residual_norms.item() == pytest.approx(norm, rel=1e-3)
        assert info.converged == (norm <= 1e-6 * float(b.norm()))
        x, info = A.solve(b, 1e-6, "nystrom", method=method)
        assert info.converged


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_scales_do_not_matter(scale: float) -> None:
    A, b = spd(11), normal(11)
    for solver in (hf.cg, hf.minres):
        x, info = solver(A, scale**0.5 * b, rtol=1e-9)
        assert info.converged
        torch.testing.assert_close(x / scale**0.5, torch.linalg.solve(A.matrix, b))


def test_minres_is_scipys() -> None:
    from scipy.sparse.linalg import minres

    A, b = indefinite(40), normal(40)
    theirs, code = minres(A.matrix.numpy(), b.numpy(), rtol=1e-12)
    assert code == 0
    ours, info = hf.minres(A, b, rtol=1e-11)
    assert info.converged
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-8)


def test_products_that_are_not_finite_end_the_solve() -> None:
    calls = 0

    def product(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return v * torch.linspace(1, 2, 7).double() if calls < 3 else v * math.nan

    for solver in (hf.cg, hf.minres):
        calls = 0
        x, info = solver(product, torch.ones(7).double(), rtol=1e-9)
        assert not info.converged
        assert info.stop == (NONFINITE,)
        assert bool(torch.isfinite(x).all())
        assert math.isfinite(info.residual_norms.item())


@pytest.mark.parametrize("kind", [hf.GaussNewton, hf.Hessian, hf.EmpiricalFisher])
@pytest.mark.parametrize("name", ["rnn", "mlp", "module"])
def test_curvatures_of_models_are_solved_with(name: str, kind: type) -> None:
    if name == "rnn":
        model = hf.RNN(2, 4, 2, dtype=torch.float64, generator=generator(1))
        x, y = normal(5, 6, 2), normal(5, 6, 2, seed=1)
    elif name == "mlp":
        sizes, kinds = (4, 5, 2), ("tanh", "linear")
        model = hf.MLP(sizes, kinds, dtype=torch.float64, generator=generator(1))
        x, y = normal(9, 4), normal(9, 2, seed=1)
    else:
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
        model = model.double()
        x, y = normal(9, 4), normal(9, 2, seed=1)
    A = kind(model, hf.losses.SquaredError(), x, y, damping=0.1)
    dense = A @ torch.eye(A.shape[0], dtype=torch.float64)
    b = normal(A.shape[0], 3)
    options = [None, "jacobi"] if kind is hf.Hessian else [None, "jacobi", "nystrom"]
    for preconditioner in options:
        solution, info = A.solve(b, 1e-9, preconditioner)
        check(Dense((dense + dense.mT) / 2), solution, b, info, 1e-9 * (1 + 1e-3))
    part = next(iter(dict(model.named_parameters())))
    block = A.block(part).shifted(0.5)
    n = block.shape[0]
    solution, info = block.solve(b[:n], 1e-9)
    want = torch.linalg.solve(dense[:n, :n] + 0.5 * torch.eye(n, dtype=torch.float64), b[:n])
    assert info.converged
    torch.testing.assert_close(solution, want, rtol=1e-6, atol=1e-6)


def test_bad_arguments_are_named() -> None:
    A, b = spd(5), normal(5)
    nan = b.clone()
    nan[2] = math.nan
    C = Dense(normal(5, 3))

    class Nothing:
        def apply(self, r: Tensor, out: Tensor) -> Tensor:
            return out.zero_()

    class Short:
        def apply(self, r: Tensor, out: Tensor) -> Tensor:
            return r[:2]

    for call, error, message in (
        (lambda: A.solve(nan), ValueError, "b: holds NaN or Inf, need finite values"),
        (lambda: A.solve(b, x0=nan), ValueError, "x0: holds NaN or Inf"),
        (lambda: A.solve(b[:3]), ValueError, r"b: got shape \[3\], need \[5\]"),
        (lambda: A.solve(b[None, None]), ValueError, r"b: got shape \[1, 1, 5\], need \[5,m\]"),
        (lambda: A.solve(b.float()), TypeError, "b: got torch.float32, need torch.float64"),
        (lambda: A.solve(b.long()), TypeError, "b: got torch.int64, need torch.float32 or"),
        (lambda: A.solve([1.0] * 5), TypeError, "b: got list, need a torch.Tensor"),
        (lambda: A.solve(b, x0=b[:, None]), ValueError, r"x0: got shape \[5, 1\], need \[5\]"),
        (lambda: A.solve(b, 0.0), ValueError, "rtol: got 0.0, need a number between 0 and 1"),
        (lambda: A.solve(b, math.nan), ValueError, "rtol: got nan"),
        (lambda: A.solve(b, True), TypeError, "rtol: got True"),
        (lambda: A.solve(b, max_iter=0), ValueError, "max_iter: got 0, need at least 1"),
        (lambda: A.solve(b, max_iter=2.5), TypeError, "max_iter: got float, need an integer"),
        (lambda: A.solve(b, method="qr"), ValueError, "method: got 'qr', need one of 'auto'"),
        (lambda: A.solve(b, preconditioner="ilu"), ValueError, "preconditioner: got 'ilu'"),
        (lambda: A.solve(b, preconditioner=3), TypeError, "preconditioner: got int, need None"),
        (lambda: A.solve(b, preconditioner=torch.nn.Identity()), TypeError, "got Identity, need"),
        (lambda: hf.cg(lambda v: v, b.to("meta")), ValueError, "b: is on meta"),
        (lambda: A.solve(b, preconditioner=b[:2].abs()), ValueError, r"preconditioner: got shape"),
        (lambda: A.solve(b, preconditioner=-b.abs()), ValueError, "preconditioner: holds values"),
        (
            lambda: A.solve(b, preconditioner=Nothing()),
            ValueError,
            "preconditioner.apply: rᵀM⁻¹r is 0",
        ),
        (lambda: A.solve(b, preconditioner=Short()), ValueError, "preconditioner.apply: gave"),
        (
            lambda: A.solve(b, preconditioner=hf.NystromPreconditioner(spd(3))),
            ValueError,
            r"r: got shape \[5\], need \[3\]",
        ),
        (lambda: hf.NystromPreconditioner(A, rank=0), ValueError, "rank: got 0"),
        (lambda: C.solve(b), ValueError, r"solve: the operator's shape is \[5,3\]"),
        (lambda: (A @ spd(5, seed=1)).solve(b), ValueError, "not known to be symmetric"),
        (lambda: hf.cg(C, b[:3]), ValueError, "product: Dense.* is not known to be symmetric"),
        (lambda: hf.cg(3, b), TypeError, "product: got int, need an operator or a function"),
        (lambda: hf.cg(lambda v: v[:2], b), ValueError, "product's result: got shape"),
        (lambda: hf.cg(lambda v: None, b), TypeError, "product's result: got NoneType"),
        (lambda: hf.cg(lambda v: v.float(), b), TypeError, "product's result: got torch.float32"),
        (lambda: hf.cg(lambda v: v, b[:0]), ValueError, "b: got shape"),
    ):
        with pytest.raises(error, match=message):
            call()
