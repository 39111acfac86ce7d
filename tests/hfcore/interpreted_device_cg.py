"""CG on the device against the host solver; ``test_device_cg.py`` runs it in the interpreter."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from dense_operator import Dense as DenseOperator
from op_recorder import Recorder
from torch import Tensor

import hfcore as hf
from hfcore.bindings import device_conjugate_gradient as bindings
from hfcore.bindings.device_conjugate_gradient import DeviceSolve
from hfcore.kernels.conjugate_gradient import gpu_triton
from hfcore.optimisers.inner_solve import device as hook
from hfcore.solvers import conjugate_gradient as host
from hfcore.solvers import linear
from hfcore.solvers.conjugate_gradient import Solution, StopRule, conjugate_gradient
from hfcore.solvers.device_conjugate_gradient import device_conjugate_gradient, lookback
from oracles.cases.conjugate_gradient import assert_first_to_stop, spd

assert os.environ.get("TRITON_INTERPRET") == "1"

Seen = list[tuple[int, Tensor, float]]


def product(A: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A product that takes the stop flag at its word: out is not written then."""

    def multiply(v: Tensor, out: Tensor, stop: Tensor) -> Tensor:
        return out if int(stop) else torch.mv(A, v, out=out)

    return multiply


def both(
    A: Tensor, b: Tensor, x0: Tensor, rule: StopRule, **options: Any
) -> tuple[Solution, int, Solution]:
    """(device solution, its products, host solution)."""
    solution, products = device_conjugate_gradient(product(A), b, x0, rule=rule, **options)
    want = conjugate_gradient(lambda v, out: torch.mv(A, v, out=out), b, x0, rule=rule)
    return solution, products, want


# ---------------------------------------------------------------------------- the same as the host


@pytest.mark.parametrize("N", [1, 2, 17, 31])
@pytest.mark.parametrize("start", ["zero", "random"])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_equals_host(N: int, start: str, preconditioned: bool) -> None:
    A, b = spd(N)
    x0 = torch.zeros_like(b) if start == "zero" else spd(N, seed=1)[1]
    kept, M = x0.clone(), A.diagonal().clone() if preconditioned else None
    rule = StopRule(max_iterations=min(N, 8), tolerance=0.0, residual=1e-9)
    solution, products = device_conjugate_gradient(product(A), b, x0, rule=rule, preconditioner=M)
    want = conjugate_gradient(
        lambda v, out: torch.mv(A, v, out=out), b, x0, rule=rule, preconditioner=M
    )
    assert (solution.stop, solution.iterations) == (want.stop, want.iterations)
    # Sums are ordered differently; losing orthogonality amplifies that in 8 iterations at condition
    # 100 by less than 1e5.
    torch.testing.assert_close(solution.x, want.x, rtol=1e-11, atol=1e-11)
    assert solution.history == pytest.approx(want.history, rel=1e-11, abs=1e-11)
    assert torch.equal(x0, kept)
    # A zero start costs no product.
    assert products == solution.iterations + (start == "random")


class Dense:
    """M⁻¹ of a dense M, written to ``out`` or given back."""

    def __init__(self, M: Tensor, *, gives: bool) -> None:
        self.inverse, self.gives = torch.linalg.inv(M), gives

    def apply(self, r: Tensor, out: Tensor) -> Tensor | None:
        return self.inverse @ r if self.gives else torch.mv(self.inverse, r, out=out)


@pytest.mark.parametrize("start", ["zero", "random"])
@pytest.mark.parametrize("gives", [False, True])
def test_operator_preconditioner_equals_host(start: str, gives: bool) -> None:
    A, b = spd(21)
    inverse = Dense(spd(21, condition=5.0, seed=4)[0], gives=gives)
    x0 = torch.zeros_like(b) if start == "zero" else spd(21, seed=1)[1]
    rule = StopRule(max_iterations=8, tolerance=0.0, residual=1e-9)
    solution, products = device_conjugate_gradient(
        product(A), b, x0, rule=rule, preconditioner=inverse
    )
    want = conjugate_gradient(
        lambda v, out: torch.mv(A, v, out=out), b, x0, rule=rule, preconditioner=inverse
    )
    assert (solution.stop, solution.iterations) == (want.stop, want.iterations)
    torch.testing.assert_close(solution.x, want.x, rtol=1e-11, atol=1e-11)
    assert solution.history == pytest.approx(want.history, rel=1e-11, abs=1e-11)
    assert products == solution.iterations + (start == "random")


def test_exact_inverse_needs_one_iteration() -> None:
    A, b = spd(19, condition=1e4)
    rule = StopRule(max_iterations=50, tolerance=0.0, residual=1e-8)
    solution, _ = device_conjugate_gradient(
        product(A), b, torch.zeros_like(b), rule=rule, preconditioner=Dense(A, gives=False)
    )
    assert (solution.stop, solution.iterations) == (host.RESIDUAL, 1)
    torch.testing.assert_close(solution.x, torch.linalg.solve(A, b), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="need a positive definite M"):
        device_conjugate_gradient(
            product(A), b, torch.zeros_like(b), rule=rule, preconditioner=Dense(-A, gives=True)
        )


@pytest.mark.parametrize("most", [7, pytest.param(23, marks=pytest.mark.slow), 10**12])
def test_bits_do_not_depend_on_the_room(most: int) -> None:
    """Memory grows with the iterations that are done, whatever their maximum."""
    A, b = spd(24, condition=1e3)
    results = []
    for room in (1, 3, 512):
        seen: Seen = []
        solution, products = device_conjugate_gradient(
            product(A),
            b,
            0.1 * b,
            rule=StopRule(max_iterations=most, tolerance=1e-2),
            observer=lambda i, x, phi, seen=seen: bool(seen.append((i, x.clone(), phi))),
            observe_at=range(3, most + 1, 3),
            look_every=5,
            room=room,
        )
        results.append((solution, products, seen))
    solution, products, seen = results[-1]
    assert solution.iterations > 6
    for other, other_products, other_seen in results:
        assert torch.equal(other.x, solution.x)
        assert (other.stop, other.history, other_products) == (
            solution.stop,
            solution.history,
            products,
        )
        assert [i for i, _, _ in other_seen] == [i for i, _, _ in seen]
        for (_, x, phi), (_, y, psi) in zip(seen, other_seen, strict=True):
            assert phi == psi
            assert torch.equal(x, y)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_float32(preconditioned: bool) -> None:
    A, b = spd(40, condition=10)
    rule = StopRule(max_iterations=30, tolerance=0.0, residual=1e-4)
    M = A.diagonal().float() if preconditioned else None
    solution, _ = device_conjugate_gradient(
        product(A.float()), b.float(), torch.zeros(40), rule=rule, preconditioner=M
    )
    assert solution.stop == host.RESIDUAL
    assert solution.x.dtype == torch.float32
    want = torch.linalg.solve(A, b)
    torch.testing.assert_close(solution.x.double(), want, rtol=0, atol=2e-4)


def test_progress_rule_is_the_papers() -> None:
    A, b = spd(40, condition=1e3)
    rule = StopRule(max_iterations=400, tolerance=5e-4)
    solution, _, want = both(A, b, torch.zeros_like(b), rule)
    assert solution.stop == want.stop == host.PROGRESS
    assert_first_to_stop(solution.history, solution.iterations, rule.tolerance)
    assert abs(solution.iterations - want.iterations) <= 2


@pytest.mark.parametrize("rule", [StopRule(), StopRule(min_iterations=57), StopRule(lookback=1),
                                  StopRule(lookback_fraction=0.5)])  # fmt: skip
def test_table_of_the_progress_rule(rule: StopRule) -> None:
    """With a flat history below zero the host stops exactly where the table is not zero."""
    for i in range(1, 250):
        stops = rule.reason([-1.0] * (i + 1), math.inf) == host.PROGRESS
        assert (lookback(rule, i) > 0) == stops
        if stops:
            k = lookback(rule, i)
            # φ_{i−k} is the value that counts, and its neighbours are not.
            for at, other in ((i - k, host.PROGRESS), (i - k - 1, None), (i - k + 1, None)):
                if 0 <= at < i:
                    history = [-1.0 if j != at else 1.0 for j in range(i + 1)]
                    changed = rule.reason(history, math.inf) != host.PROGRESS
                    assert changed == (other is not None)


def test_progress_waits_for_phi_below_zero() -> None:
    """φ falls from far above zero by less than the tolerance: no progress stop."""
    b = torch.zeros(3, dtype=torch.float64)
    A = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    x0 = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    rule = StopRule(max_iterations=2, lookback=1, tolerance=10.0)
    solution, _, want = both(A, b, x0, rule)
    assert (solution.stop, solution.iterations) == (want.stop, want.iterations)
    assert solution.stop == host.MAX_ITERATIONS


# ---------------------------------------------------------------------------- the host's looks


@pytest.mark.parametrize("N", [5, pytest.param(3000, marks=pytest.mark.slow)])
def test_bits_do_not_depend_on_the_looks(N: int) -> None:
    A, b = (
        spd(N, condition=1e3) if N < 100 else (torch.diag(torch.linspace(1, 9, N)), torch.ones(N))
    )
    x0 = 0.1 * b
    results = []
    for look_every in (1, 2, 7, 40):
        seen: Seen = []
        solution, products = device_conjugate_gradient(
            product(A),
            b,
            x0,
            rule=StopRule(max_iterations=11, tolerance=0.0),
            observer=lambda i, x, phi, seen=seen: bool(seen.append((i, x.clone(), phi))),
            observe_at=range(3, 300, 3),
            look_every=look_every,
        )
        results.append((solution, products, seen))
    solution, products, seen = results[0]
    for other, other_products, other_seen in results[1:]:
        assert torch.equal(other.x, solution.x)
        assert (other.stop, other.history) == (solution.stop, solution.history)
        assert other_products == products
        assert len(other_seen) == len(seen) > 0
        for (i, x, phi), (j, y, psi) in zip(seen, other_seen, strict=True):
            assert (i, phi) == (j, psi)
            assert torch.equal(x, y)


def test_bits_do_not_depend_on_whether_the_product_obeys_the_flag() -> None:
    A, b = spd(9)
    results = []
    for multiply in (product(A), lambda v, out, stop: torch.mv(A, v, out=out)):
        rule = StopRule(max_iterations=4)
        results.append(device_conjugate_gradient(multiply, b, torch.zeros_like(b), rule=rule))
    assert torch.equal(results[0][0].x, results[1][0].x)
    assert results[0][0].history == results[1][0].history


def test_every_kernel_exits_once_the_flag_is_raised() -> None:
    A, b = spd(9)
    solve = DeviceSolve(b, lookback=[0] * 4, kept=[1, 2, 3], tolerance=0.0, residual=0.0)
    solve.begin(product(A), b, torch.zeros_like(b))
    flags: list[int] = []

    def multiply(v: Tensor, out: Tensor, stop: Tensor) -> Tensor:
        flags.append(int(stop))
        return out.fill_(float("nan")) if int(stop) else torch.mv(A, v, out=out)

    for _ in range(3):
        solve.iterate(multiply)
    before = {k: v.clone() for k, v in vars(solve._w).items() if isinstance(v, Tensor)}
    for _ in range(2):
        solve.iterate(multiply)
    assert flags == [0, 0, 0, gpu_triton.MAX_ITERATIONS, gpu_triton.MAX_ITERATIONS]
    for name, value in before.items():
        if name != "Ap":
            same = torch.equal(vars(solve._w)[name].nan_to_num(), value.nan_to_num())
            assert same, f"{name} was written to"


def test_snapshots_are_the_iterates() -> None:
    A, b = spd(21)
    seen: Seen = []
    device_conjugate_gradient(
        product(A),
        b,
        torch.zeros_like(b),
        rule=StopRule(max_iterations=9, tolerance=0.0),
        observer=lambda i, x, phi: bool(seen.append((i, x.clone(), phi))),
        observe_at=[4, 8, 12],
    )
    assert [i for i, _, _ in seen] == [4, 8]
    for i, x, phi in seen:
        alone, _ = device_conjugate_gradient(
            product(A), b, torch.zeros_like(b), rule=StopRule(max_iterations=i, tolerance=0.0)
        )
        assert torch.equal(alone.x, x)
        assert alone.history[-1] == phi == pytest.approx(float(0.5 * x @ A @ x - b @ x), rel=1e-12)


def test_a_solve_allocates_nothing_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph can capture: views, copies into buffers, launches (left out here)."""

    class Launches(dict[tuple[int], Any]):
        count = 0

        def __getitem__(self, grid: tuple[int]) -> Any:
            Launches.count += 1
            return lambda *a, **k: None

    A, b = spd(20)
    x0 = torch.ones_like(b)
    M = A.diagonal().clone()
    solve = DeviceSolve(
        b, lookback=[0] * 4, kept=[2], tolerance=0.0, residual=0.0, preconditioner=M
    )
    for name in [n for n in vars(gpu_triton) if n.endswith("_kernel")]:
        monkeypatch.setattr(gpu_triton, name, Launches())
    multiply = lambda v, out, stop: torch.mv(A, v, out=out)  # noqa: E731
    with Recorder() as recorder:
        solve.begin(multiply, b, x0)
        for _ in range(3):
            solve.iterate(multiply)
    views = {"aten.slice", "aten.select", "aten.view", "aten.alias", "aten.detach"}
    assert recorder.names - views == {"aten.copy_", "aten.zero_", "aten.mv"}
    assert Launches.count == 4 + 3 * 4


def test_updates_are_marked_for_a_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """In ranges of their own, beside the product's."""
    events: list[str] = []

    @contextmanager
    def annotate(name: str) -> Iterator[None]:
        events.append(f"<{name}")
        yield
        events.append(f"{name}>")

    monkeypatch.setattr(bindings, "annotate", annotate)
    A, b = spd(4)

    def multiply(v: Tensor, out: Tensor, stop: Tensor) -> Tensor:
        events.append("product")
        return torch.mv(A, v, out=out)

    solve = DeviceSolve(b, lookback=[0] * 3, kept=[], tolerance=0.0, residual=0.0)
    solve.begin(multiply, b, torch.ones_like(b))
    update = ["<CG update", "CG update>"]
    assert events == [*update, "product", *update]
    solve.iterate(multiply)
    assert events[5:] == ["product", *update]


# ---------------------------------------------------------------------------- every reason to stop


def test_maximum_of_iterations() -> None:
    A, b = spd(50, condition=1e4)
    solution, products, want = both(A, b, torch.zeros_like(b), StopRule(max_iterations=5))
    assert (solution.stop, solution.iterations, products) == (want.stop, 5, 5)


def test_starting_at_the_solution_stops_by_residual() -> None:
    A, b = spd(6, condition=10)
    x = torch.linalg.solve(A, b)
    solution, _ = device_conjugate_gradient(product(A), b, x, rule=StopRule(max_iterations=50))
    assert solution.stop == host.RESIDUAL
    torch.testing.assert_close(solution.x, x, rtol=1e-9, atol=1e-10)


def test_zero_right_hand_side_is_solved_at_once() -> None:
    A, b = spd(5)
    zero = torch.zeros_like(b)
    solution, products = device_conjugate_gradient(product(A), zero, zero, rule=StopRule())
    assert (solution.stop, solution.iterations, products) == (host.RESIDUAL, 0, 0)
    assert not solution.x.any()


def test_no_positive_curvature_keeps_the_iterate_before() -> None:
    A = torch.diag(torch.tensor([3.0, 2.0, -1.0], dtype=torch.float64))
    b = torch.tensor([1.0, 1.0, 1e-3], dtype=torch.float64)
    seen: Seen = []
    solution, products, want = both(A, b, torch.zeros_like(b), StopRule(tolerance=0.0))
    observed, _ = device_conjugate_gradient(
        product(A),
        b,
        torch.zeros_like(b),
        rule=StopRule(tolerance=0.0),
        observer=lambda i, x, phi: bool(seen.append((i, x.clone(), phi))),
    )
    assert solution.stop == observed.stop == want.stop == host.NONPOSITIVE
    assert 0 < solution.iterations == want.iterations < 3
    torch.testing.assert_close(solution.x, want.x, rtol=1e-12, atol=0)
    p = solution.direction
    assert p is not None
    assert want.direction is not None
    assert float(p @ A @ p) <= 0
    torch.testing.assert_close(p, want.direction, rtol=1e-10, atol=0)
    assert products == solution.iterations + 1
    assert torch.equal(seen[-1][1], solution.x)
    assert [i for i, _, _ in seen] == list(range(1, solution.iterations + 1))


def test_no_positive_curvature_at_once_keeps_the_start() -> None:
    b = torch.ones(4, dtype=torch.float64)
    A = -torch.eye(4, dtype=torch.float64)
    solution, _ = device_conjugate_gradient(product(A), b, torch.zeros_like(b), rule=StopRule())
    assert (solution.stop, solution.iterations) == (host.NONPOSITIVE, 0)
    assert not solution.x.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 2])
def test_product_that_is_not_finite(bad: float, at: int) -> None:
    """NaN and infinities end the solve at the iterate before, which the observer still sees."""
    A, b = spd(6)

    def make() -> Callable[..., Tensor]:
        calls = iter(range(10**6))

        def multiply(v: Tensor, out: Tensor, *stop: Tensor) -> Tensor:
            if stop and int(stop[0]):
                return out
            return torch.mv(A, v, out=out) if next(calls) != at else out.fill_(bad)

        return multiply

    seen: list[int] = []
    zero, rule = torch.zeros_like(b), StopRule(tolerance=0.0)
    solution, _ = device_conjugate_gradient(
        make(), b, zero, rule=rule, observer=lambda i, x, phi: bool(seen.append(i))
    )
    want = conjugate_gradient(make(), b, zero, rule=rule)
    # A product of ±∞ alone gives pᵀAp of ±∞ or NaN: never a finite number.
    assert solution.stop == want.stop == host.NONFINITE
    assert solution.iterations == want.iterations == at
    assert torch.isfinite(solution.x).all()
    assert seen == list(range(1, at + 1))


def test_right_hand_side_that_is_not_finite() -> None:
    A, b = spd(4)
    b[2] = math.nan
    zero = torch.zeros_like(b)
    solution, products = device_conjugate_gradient(product(A), b, zero, rule=StopRule())
    assert (solution.stop, solution.iterations, products) == (host.NONFINITE, 0, 0)
    assert not solution.x.any()


def test_iterate_that_overflows_is_not_observed() -> None:
    """The product is finite, but α p is not in float32."""
    A, b = 1e-30 * torch.eye(3), 1e30 * torch.ones(3)
    seen: list[int] = []
    solution, _, want = both(
        A,
        b,
        torch.zeros(3),
        StopRule(),
        observer=lambda i, x, phi: bool(seen.append(i)),
    )
    assert solution.stop == want.stop == host.NONFINITE
    assert solution.iterations == want.iterations == 1
    assert not seen


def ended_at_6(A: Tensor, b: Tensor, rule: StopRule, **options: Any) -> Solution:
    """A solve from zero that its observer, who sees every third iterate, ends at the sixth."""
    solution, _ = device_conjugate_gradient(
        *(product(A), b, torch.zeros_like(b)),
        rule=rule,
        observer=lambda i, x, phi: i == 6,
        observe_at=range(3, 300, 3),
        **options,
    )
    assert solution.stop == host.OBSERVER
    return solution


@pytest.mark.parametrize("look_every", [1, 4, 30])
def test_observer_ends_the_solve(look_every: int) -> None:
    A, b = spd(30)
    solution = ended_at_6(A, b, StopRule(tolerance=0.0), look_every=look_every)
    want = conjugate_gradient(
        lambda v, out: torch.mv(A, v, out=out),
        b,
        torch.zeros_like(b),
        rule=StopRule(tolerance=0.0),
        observer=lambda i, x, phi: i == 6,
    )
    assert (solution.stop, solution.iterations) == (want.stop, want.iterations)
    assert len(solution.history) == 7
    torch.testing.assert_close(solution.x, want.x, rtol=1e-11, atol=1e-12)


def test_observer_comes_before_the_rule_at_the_last_iterate() -> None:
    A, b = spd(30)
    ended_at_6(A, b, StopRule(max_iterations=6))


def test_refuses_by_name() -> None:
    A, b = spd(4)
    zero = torch.zeros_like(b)
    for options, text in (
        ({"look_every": 0}, "look_every: got 0"),
        ({"observe_at": [0, 3], "observer": lambda i, x, phi: False}, "observe_at: got"),
        ({"preconditioner": torch.ones(5)}, "preconditioner: got shape"),
    ):
        with pytest.raises(ValueError, match=text):
            device_conjugate_gradient(product(A), b, zero, rule=StopRule(), **options)
    with pytest.raises(TypeError, match=r"b: got torch\.float16"):
        device_conjugate_gradient(product(A), b.half(), zero.half(), rule=StopRule())


# ---------------------------------------------------------------------------- within an optimiser


@pytest.mark.parametrize("backtracking", ["best", "walk"])
@pytest.mark.parametrize("increase_after", [None, 2])
def test_hessian_free_takes_the_same_steps(
    backtracking: str, increase_after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps (the second warm-started and decayed) through the hook equal the host's."""

    def run(on_device: bool) -> tuple[list[hf.StepStats], Tensor]:
        monkeypatch.setattr(hook, "serves", lambda b: on_device)
        g = torch.Generator().manual_seed(0)
        model = hf.RNN(2, 5, 1, dtype=torch.float64, generator=g)
        x = torch.randn(4, 8, 2, generator=g, dtype=torch.float64)
        y = torch.tanh(x.sum(-1, keepdim=True).cumsum(0))
        opt = hf.HessianFree(
            model,
            hf.losses.SquaredError(),
            damping=0.5,
            structural=0.03,
            cg_max_iter=12,
            cg_evaluate_every=4,
            cg_backtracking=backtracking,
            cg_loss_increase_after=increase_after,
        )
        stats = [opt.step((x, y)) for _ in range(2)]
        return stats, torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    (host_stats, host_theta), (stats, theta) = run(False), run(True)
    # 12 iterations on 51 unknowns amplify the different order of sums by up to 1e8.
    torch.testing.assert_close(theta, host_theta, rtol=1e-6, atol=1e-7)
    for ours, theirs in zip(stats, host_stats, strict=True):
        for name in ("cg_iterations", "cg_stop", "cg_kept", "alpha", "accepted"):
            assert getattr(ours, name) == getattr(theirs, name)
        for name in ("loss", "loss_after", "rho", "damping_next"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-7)
        assert ours.products >= theirs.products
        if increase_after is None:
            assert ours.products == theirs.products
            assert ours.objective_evaluations == theirs.objective_evaluations


# ---------------------------------------------------------------------------- public linear solves


@pytest.mark.parametrize("preconditioner", [None, "diagonal", "operator"])
@pytest.mark.parametrize("N", [2, 11, pytest.param(31, marks=pytest.mark.slow)])
def test_a_linear_solve_runs_on_the_device(monkeypatch, N: int, preconditioner) -> None:
    A, b = spd(N)
    A = (A + A.T) / 2
    M = {
        None: None,
        "diagonal": A.diagonal().clone(),
        "operator": hf.NystromPreconditioner(DenseOperator(A), rank=3),
    }[preconditioner]
    want, known = hf.cg(DenseOperator(A), b, rtol=1e-10, preconditioner=M)
    monkeypatch.setattr(linear, "serves", lambda v: True)
    x, info = hf.cg(DenseOperator(A), b, rtol=1e-10, preconditioner=M)
    assert info.converged
    # Dots are added in another order, so that the last iteration may be another one.
    assert abs(info.iterations[0] - known.iterations[0]) <= 1
    torch.testing.assert_close(x, want, rtol=0, atol=2e-10 * float(b.norm()))
    indefinite = DenseOperator(A - 1.5 * torch.eye(N, dtype=torch.float64))
    x, info = indefinite.solve(b, 1e-10)
    assert info.converged
    torch.testing.assert_close(indefinite @ x, b, rtol=0, atol=1e-9 * float(b.norm()))
    for limit in (1, 3):
        x, info = hf.cg(DenseOperator(A), b, rtol=1e-12, max_iter=limit)
        if limit < N:
            assert info.iterations == (limit,)
            assert info.stop == (host.MAX_ITERATIONS,)
    single, right = DenseOperator(A.float()), b.float()
    assert single.solve(right, 1e-4)[1].converged
    assert not single.solve(right, 1e-14, max_iter=2 * N)[1].converged or N <= 2
