"""The CG solver against dense algebra, and every reason it stops for."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch
from torch import Tensor

from hfcore.solvers import conjugate_gradient as cg
from hfcore.solvers.conjugate_gradient import StopRule, conjugate_gradient
from oracles.cases.conjugate_gradient import assert_first_to_stop, spd


def product(A: Tensor):
    return lambda v, out: torch.mv(A, v, out=out)


EXACT = StopRule(max_iterations=500, tolerance=0.0, residual=1e-11)


@pytest.mark.parametrize("N", [1, 2, 7, 31])
@pytest.mark.parametrize("start", ["zero", "random"])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_equals_dense_solve(N, start, preconditioned) -> None:
    A, b = spd(N)
    x0 = torch.zeros_like(b) if start == "zero" else torch.randn(N).double()
    kept = x0.clone()
    M = A.diagonal().clone() if preconditioned else None
    solution = conjugate_gradient(product(A), b, x0, rule=EXACT, preconditioner=M)
    torch.testing.assert_close(solution.x, torch.linalg.solve(A, b), rtol=1e-9, atol=1e-10)
    assert solution.stop == cg.RESIDUAL
    assert torch.equal(x0, kept)


def test_history_is_phi_of_every_iterate() -> None:
    A, b = spd(12)
    seen: list[Tensor] = []

    def observe(i: int, x: Tensor, phi: float) -> bool:
        seen.append(x.clone())
        return False

    x0 = torch.randn(12).double()
    solution = conjugate_gradient(product(A), b, x0, rule=EXACT, observer=observe)
    want = [float(0.5 * x @ A @ x - b @ x) for x in [x0, *seen]]
    assert solution.history == pytest.approx(want, rel=1e-9)
    assert all(b <= a + 1e-12 for a, b in zip(solution.history, solution.history[1:], strict=False))
    assert solution.iterations == len(seen)


def test_progress_rule_is_the_papers() -> None:
    """Stop at the first i > k with φ_{i−k} < 0 and (φ_i − φ_{i−k})/φ_i < k·ε."""
    A, b = spd(400, condition=1e6)
    rule = StopRule(max_iterations=1000, tolerance=5e-4)
    solution = conjugate_gradient(product(A), b, torch.zeros_like(b), rule=rule)
    assert solution.stop == cg.PROGRESS
    assert_first_to_stop(solution.history, solution.iterations, rule.tolerance)


def test_maximum_of_iterations() -> None:
    A, b = spd(50, condition=1e4)
    rule = StopRule(max_iterations=5)
    solution = conjugate_gradient(product(A), b, torch.zeros_like(b), rule=rule)
    assert (solution.stop, solution.iterations) == (cg.MAX_ITERATIONS, 5)


def test_no_positive_curvature_keeps_the_iterate_before() -> None:
    A = torch.diag(torch.tensor([3.0, 2.0, -1.0], dtype=torch.float64))
    b = torch.tensor([1.0, 1.0, 1e-3], dtype=torch.float64)
    seen: list[Tensor] = []
    solution = conjugate_gradient(
        product(A),
        b,
        torch.zeros_like(b),
        rule=EXACT,
        observer=lambda i, x, phi: bool(seen.append(x.clone())),
    )
    assert solution.stop == cg.NONPOSITIVE
    assert 0 < solution.iterations < 3
    assert torch.equal(solution.x, seen[-1])


def test_no_positive_curvature_at_once_keeps_the_start() -> None:
    b = torch.ones(4, dtype=torch.float64)
    solution = conjugate_gradient(
        product(-torch.eye(4, dtype=torch.float64)), b, torch.zeros_like(b), rule=EXACT
    )
    assert (solution.stop, solution.iterations) == (cg.NONPOSITIVE, 0)
    assert not solution.x.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_product_that_is_not_finite(bad) -> None:
    b = torch.ones(4, dtype=torch.float64)
    solution = conjugate_gradient(lambda v, out: out.fill_(bad), b, torch.zeros_like(b), rule=EXACT)
    assert solution.stop == cg.NONFINITE
    assert torch.isfinite(solution.x).all()


def test_zero_right_hand_side_is_solved_at_once() -> None:
    A, b = spd(5)
    zero = torch.zeros_like(b)
    solution = conjugate_gradient(product(A), zero, zero, rule=EXACT)
    assert (solution.stop, solution.iterations) == (cg.RESIDUAL, 0)
    assert not solution.x.any()


def test_observer_ends_the_solve() -> None:
    A, b = spd(30)
    solution = conjugate_gradient(
        product(A), b, torch.zeros_like(b), rule=EXACT, observer=lambda i, x, phi: i == 3
    )
    assert (solution.stop, solution.iterations) == (cg.OBSERVER, 3)


def test_starting_at_the_solution_stops_by_residual() -> None:
    A, b = spd(6, condition=10)
    x = torch.linalg.solve(A, b)
    rule = StopRule(max_iterations=50, residual=1e-10)
    solution = conjugate_gradient(product(A), b, x, rule=rule)
    assert solution.stop == cg.RESIDUAL
    torch.testing.assert_close(solution.x, x, rtol=1e-9, atol=1e-10)


def test_impossible_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="cg_max_iter: got 0"):
        StopRule(max_iterations=0)
    with pytest.raises(ValueError, match="cg_tolerance: got -1"):
        StopRule(tolerance=-1)


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("shift", [0.0, 5.0], ids=["positive", "indefinite"])
@pytest.mark.parametrize("radius", [1e-3, 0.3, 1.0])
def test_trust_region_ends_on_its_boundary(preconditioned, shift, radius) -> None:
    A, b = spd(15)
    A = A - shift * torch.eye(15, dtype=A.dtype)
    M = torch.linspace(1, 3, 15, dtype=A.dtype) if preconditioned else None
    solution = conjugate_gradient(
        product(A), b, torch.zeros_like(b), rule=EXACT, preconditioner=M, radius=radius
    )
    assert solution.stop == cg.BOUNDARY
    weights = torch.ones_like(b) if M is None else M
    length = float((weights * solution.x.square()).sum().sqrt())
    assert length == pytest.approx(radius, rel=1e-12)
    assert solution.norms[-1] == radius
    assert len(solution.norms) == len(solution.history)
    phi = [float(0.5 * x @ A @ x - b @ x) for x in (torch.zeros_like(b), solution.x)]
    assert solution.history[-1] == pytest.approx(phi[1], rel=1e-9)
    if M is None:
        # No worse than the Cauchy point: the best of the steepest descent inside the ball.
        alphas = torch.linspace(0, radius / float(b.norm()), 1001, dtype=A.dtype)
        along = 0.5 * alphas**2 * (b @ A @ b) - alphas * (b @ b)
        assert phi[1] <= float(along.min()) + 1e-12


@pytest.mark.parametrize("operator", [False, True])
@pytest.mark.parametrize("radius", [0.02, 0.5, 1.4, 1e3])
def test_trust_region_is_a_ball_in_the_norm_of_the_preconditioner(operator, radius) -> None:
    """With y = M^½ x it is Steihaug's method without one; the Euclidean norm would not do."""
    A, b = spd(20, condition=30)
    M = torch.logspace(-0.5, 0.5, 20, dtype=A.dtype)
    seen: list[Tensor] = []
    solution = conjugate_gradient(
        product(A),
        b,
        torch.zeros_like(b),
        rule=EXACT,
        preconditioner=Dense(torch.diag(M)) if operator else M,
        radius=radius,
        observer=lambda i, x, phi: bool(seen.append(x.clone())),
    )
    root = M.sqrt()
    plain = conjugate_gradient(
        product(A / root / root[:, None]), b / root, torch.zeros_like(b), rule=EXACT, radius=radius
    )
    lengths = [0.0, *(float((root * x).norm()) for x in seen)]
    if radius < 1e3:
        assert solution.stop == plain.stop == cg.BOUNDARY
        assert solution.iterations == plain.iterations
        torch.testing.assert_close(root * solution.x, plain.x, rtol=1e-6, atol=1e-9)
        assert solution.norms[:-1] == pytest.approx(lengths, rel=1e-6)
        assert float((root * solution.x).norm()) == pytest.approx(radius, rel=1e-6)
    else:  # it grows until nothing but rounding is left, while ‖x‖ falls
        assert solution.stop == cg.RESIDUAL
        assert all(b > a for a, b in itertools.pairwise(lengths[:16]))
        euclidean = [float(x.norm()) for x in seen]
        assert any(b < a * (1 - 1e-4) for a, b in itertools.pairwise(euclidean))


def test_a_trust_region_needs_a_start_at_zero() -> None:
    A, b = spd(5)
    with pytest.raises(ValueError, match="x0: is not zero, need zero with a radius"):
        conjugate_gradient(product(A), b, torch.ones_like(b), rule=EXACT, radius=1.0)


class Dense:
    """M⁻¹ of a dense M, written to ``out`` or given back."""

    def __init__(self, M: Tensor, *, gives: bool = False) -> None:
        self.inverse, self.gives = torch.linalg.inv(M), gives

    def apply(self, r: Tensor, out: Tensor) -> Tensor | None:
        if self.gives:
            return self.inverse @ r
        torch.mv(self.inverse, r, out=out)
        return None


def preconditioned(A: Tensor, b: Tensor, M: Tensor, iterations: int) -> list[Tensor]:
    """The iterates of textbook preconditioned CG (Nocedal & Wright, algorithm 5.3)."""
    x, r = torch.zeros_like(b), -b
    y = torch.linalg.solve(M, r)
    p, seen = -y, []
    for _ in range(iterations):
        alpha = (r @ y) / (p @ A @ p)
        x = x + alpha * p
        r_new = r + alpha * A @ p
        y_new = torch.linalg.solve(M, r_new)
        p = -y_new + (r_new @ y_new) / (r @ y) * p
        r, y = r_new, y_new
        seen.append(x)
    return seen


@pytest.mark.parametrize("gives", [False, True])
def test_operator_preconditioner_is_textbook_cg(gives) -> None:
    A, b = spd(23, condition=1e3)
    M, _ = spd(23, condition=5.0, seed=4)
    seen: list[Tensor] = []
    solution = conjugate_gradient(
        product(A),
        b,
        torch.zeros_like(b),
        rule=StopRule(max_iterations=8, tolerance=0.0),
        observer=lambda i, x, phi: bool(seen.append(x.clone())),
        preconditioner=Dense(M, gives=gives),
    )
    for got, want in zip(seen, preconditioned(A, b, M, 8), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    phi = [float(0.5 * x @ A @ x - b @ x) for x in seen]
    assert solution.history[1:] == pytest.approx(phi, rel=1e-10)
    exact = conjugate_gradient(
        product(A), b, torch.ones_like(b), rule=EXACT, preconditioner=Dense(M, gives=gives)
    )
    torch.testing.assert_close(exact.x, torch.linalg.solve(A, b), rtol=1e-9, atol=1e-10)


def test_operator_and_diagonal_are_one_thing() -> None:
    A, b = spd(17, condition=1e3)
    M = A.diagonal().clone()
    rule = StopRule(max_iterations=9, tolerance=0.0)
    diagonal, operator = (
        conjugate_gradient(product(A), b, torch.zeros_like(b), rule=rule, preconditioner=P)
        for P in (M, Dense(torch.diag(M)))
    )
    torch.testing.assert_close(diagonal.x, operator.x, rtol=1e-11, atol=1e-13)
    assert diagonal.history == pytest.approx(operator.history, rel=1e-12)


def test_exact_inverse_needs_one_iteration() -> None:
    A, b = spd(19, condition=1e4)
    rule = StopRule(max_iterations=50, tolerance=0.0, residual=1e-8)
    for start in (torch.zeros_like(b), torch.ones_like(b)):
        solution = conjugate_gradient(product(A), b, start, rule=rule, preconditioner=Dense(A))
        assert (solution.stop, solution.iterations) == (cg.RESIDUAL, 1)
        torch.testing.assert_close(solution.x, torch.linalg.solve(A, b), rtol=1e-10, atol=1e-10)


def test_operators_that_are_no_preconditioner_are_named() -> None:
    A, b = spd(6)

    class Wrong:
        def __init__(self, give):
            self.apply = lambda r, out: give(r)

    for give, message in (
        (lambda r: -r, "need a positive definite M"),
        (lambda r: r[:2], r"preconditioner.apply: gave a torch.float64 of shape \[2\]"),
        (lambda r: r.float(), "preconditioner.apply: gave a torch.float32"),
        (lambda r: 3.0, "preconditioner.apply: gave float"),
    ):
        with pytest.raises(ValueError, match=message):
            conjugate_gradient(
                product(A), b, torch.zeros_like(b), rule=EXACT, preconditioner=Wrong(give)
            )
    solution = conjugate_gradient(
        product(A), b, torch.zeros_like(b), rule=EXACT, preconditioner=Wrong(lambda r: r * math.nan)
    )
    assert (solution.stop, solution.iterations) == (cg.NONFINITE, 0)


def test_a_huge_maximum_takes_no_memory_for_it() -> None:
    A, b = spd(12)
    rule = StopRule(max_iterations=sys.maxsize, residual=1e-10, tolerance=0.0)
    solution = conjugate_gradient(product(A), b, torch.zeros_like(b), rule=rule)
    assert solution.stop == cg.RESIDUAL
    assert len(solution.history) == solution.iterations + 1


def test_wide_trust_region_changes_nothing() -> None:
    A, b = spd(9)
    free = conjugate_gradient(product(A), b, torch.zeros_like(b), rule=EXACT)
    held = conjugate_gradient(product(A), b, torch.zeros_like(b), rule=EXACT, radius=1e6)
    assert torch.equal(free.x, held.x)
    assert free.stop == held.stop
