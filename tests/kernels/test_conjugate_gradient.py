"""CG vector updates on every backend against float64 algebra and CG's own identities."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hfcore.bindings.conjugate_gradient import cg_direction, cg_update, dot
from hfcore.bindings.dispatch import native, use_backend
from oracles.cases.conjugate_gradient import Vectors

# Ones, vector widths ± 1, primes, a block ± 1, and enough for several threads.
SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 1009, 4095, 4096, 4097, 40_009)


def make_vectors(N: int, dtype: torch.dtype, seed: int = 0) -> tuple[Vectors, Tensor]:
    """Vectors with pᵀAp > 0, z poisoned, and a preconditioner."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(N, generator=generator, dtype=torch.float64).to(dtype)

    M = 0.5 + torch.rand(N, generator=generator, dtype=torch.float64).to(dtype)
    p = normal()
    z = torch.full((N,), float("nan"), dtype=dtype)
    return Vectors(normal(), normal(), z, p, M * p, normal()), M


def assert_within(got: Tensor, want: Tensor, bound: Tensor) -> None:
    excess = (got.double() - want).abs() - bound
    assert not bool((excess > 0).any() | excess.isnan().any()), f"worst by {excess.max()}"


def dot_bound(N: int, a: Tensor, b: Tensor) -> float:
    """Error of a float64 dot: products, chains of at most 1024 additions a block, the blocks."""
    chain = min(N, 1024) + N // 4096 + 8
    return chain * torch.finfo(torch.float64).eps * float((a * b).abs().sum())


@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("N", SIZES)
def test_update(N: int, preconditioned: bool, dtype: torch.dtype, backend: str) -> None:
    old, M = make_vectors(N, dtype)
    new = old.copy()
    rz = 0.37
    preconditioner = M if preconditioned else None
    pAp, new_rz, phi = cg_update(*new, rz, preconditioner)
    p, Ap = old.p.double(), old.Ap.double()
    assert pAp == pytest.approx(float(p @ Ap), abs=dot_bound(N, p, Ap))
    alpha = rz / pAp
    eps = torch.finfo(dtype).eps
    # α, the product and the sum are rounded to the vectors' type once each, by eps/2; in float64
    # the oracle rounds as often.
    for after, before, direction in ((new.x, old.x, alpha * p), (new.r, old.r, -alpha * Ap)):
        want = before.double() + direction
        assert_within(after, want, eps * (1.5 * direction.abs() + 1.01 * want.abs()))
    want_z = new.r.double() / M.double() if preconditioned else new.r.double()
    assert_within(new.z, want_z, 1.01 * eps * want_z.abs())
    # The scalars belong to the vectors as they now stand.
    x, r, z, b = new.x.double(), new.r.double(), new.z.double(), new.b.double()
    assert new_rz == pytest.approx(float(r @ z), abs=dot_bound(N, r, z))
    bound = dot_bound(N, x, r) + dot_bound(N, x, b)
    assert phi == pytest.approx(-0.5 * float(x @ (r + b)), abs=bound)
    for name in ("p", "Ap", "b"):
        assert torch.equal(getattr(new, name), getattr(old, name)), name


@pytest.mark.parametrize("N", SIZES)
def test_direction(N: int, dtype: torch.dtype, backend: str) -> None:
    v, _ = make_vectors(N, dtype)
    p, z = v.p.clone(), v.r.clone()
    cg_direction(p, z, 0.7)
    step = 0.7 * v.p.double()
    want = z.double() + step
    # β, the product and the sum are rounded once each; in float64 the oracle rounds as often.
    assert_within(p, want, torch.finfo(dtype).eps * (1.5 * step.abs() + 1.01 * want.abs()))
    assert torch.equal(z, v.r)


@pytest.mark.parametrize("N", [1, 17, 40_009])
def test_z_may_be_r(N: int, dtype: torch.dtype, backend: str) -> None:
    apart, _ = make_vectors(N, dtype)
    together = apart.copy()
    together = together._replace(z=together.r)
    assert cg_update(*together, 0.37) == cg_update(*apart, 0.37)
    assert torch.equal(together.r, apart.r)
    assert torch.equal(together.x, apart.x)


@pytest.mark.parametrize("what", ["zero", "negative", "nan", "infinite"])
@pytest.mark.parametrize("N", [1, 17, 4097])
def test_breakdown_changes_nothing(N: int, what: str, dtype: torch.dtype, backend: str) -> None:
    v, M = make_vectors(N, dtype)
    Ap = {
        "zero": torch.zeros_like(v.p),
        "negative": -v.Ap,
        "nan": v.Ap.clone(),
        "infinite": torch.copysign(torch.full_like(v.p, float("inf")), v.p),
    }[what]
    if what == "nan":
        Ap[N // 2] = float("nan")
    assert_untouched(v._replace(Ap=Ap, z=v.r.clone()), M)


def test_overflow_of_pAp_changes_nothing(backend: str) -> None:
    v, M = make_vectors(17, torch.float64)
    assert_untouched(v._replace(p=1e200 * v.p, Ap=1e200 * v.Ap, z=v.r.clone()), M)


def assert_untouched(v: Vectors, M: Tensor) -> None:
    for preconditioner in (None, M):
        after = v.copy()
        pAp, rz, phi = cg_update(*after, 0.37, preconditioner)
        assert not 0.0 < pAp < math.inf
        assert rz == 0.37
        assert math.isnan(phi)
        pairs = zip(after, v, strict=True)
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def test_nan_in_a_vector_shows_in_the_scalars(dtype: torch.dtype, backend: str) -> None:
    v, M = make_vectors(100, dtype)
    v.r[99] = float("nan")
    pAp, rz, phi = cg_update(*v, 0.37, M)
    assert pAp > 0
    assert math.isnan(rz)
    assert math.isnan(phi)


class Solve(NamedTuple):
    A: Tensor
    b: Tensor
    x: Tensor
    iterates: list[Tensor]
    residuals: list[Tensor]
    directions: list[Tensor]
    phis: list[float]
    rzs: list[float]


def solve(N: int, preconditioned: bool, iterations: int) -> Solve:
    """CG on a random SPD system with condition number about 100, in float64."""
    generator = torch.Generator().manual_seed(7)
    Q, _ = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))
    A = Q @ torch.diag(torch.logspace(0, 2, N, dtype=torch.float64)) @ Q.T
    A = 0.5 * (A + A.T)
    b = torch.randn(N, generator=generator, dtype=torch.float64)
    M = A.diagonal().clone() if preconditioned else None
    x, r = torch.zeros_like(b), b.clone()
    z = r if M is None else r / M
    p, rz = z.clone(), float(r @ z)
    trace = Solve(A, b, x, [], [], [], [], [])
    for _ in range(iterations):
        trace.directions.append(p.clone())
        _, new_rz, phi = cg_update(x, r, z, p, A @ p, b, rz, M)
        cg_direction(p, z, new_rz / rz)
        rz = new_rz
        trace.iterates.append(x.clone())
        trace.residuals.append(r.clone())
        trace.phis.append(phi)
        trace.rzs.append(rz)
    return trace


@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "preconditioned"])
def test_solves_a_dense_system(preconditioned: bool, backend: str) -> None:
    t = solve(60, preconditioned, 90)
    want = torch.linalg.solve(t.A, t.b)
    # Condition 100: the attainable accuracy is about 100 eps times the solution's size.
    torch.testing.assert_close(t.x, want, rtol=0, atol=1e-12 * float(want.norm()))


@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "preconditioned"])
def test_identities_along_the_way(preconditioned: bool, backend: str) -> None:
    t = solve(60, preconditioned, 15)
    P = torch.stack(t.directions)
    energy = P @ t.A @ P.T
    scale = energy.diagonal().sqrt()
    cosines = (energy / scale / scale.unsqueeze(1)).fill_diagonal_(0)
    # Orthogonality decays with rounding; after 15 steps at condition 100 it still holds well.
    assert cosines.abs().max() < 1e-9
    size = float(t.b.norm())
    for x, r, phi in zip(t.iterates, t.residuals, t.phis, strict=True):
        torch.testing.assert_close(r, t.b - t.A @ x, rtol=0, atol=1e-13 * size)
        assert phi == pytest.approx(float(0.5 * x @ t.A @ x - t.b @ x), rel=1e-12)
    assert all(a > b for a, b in zip(t.phis, t.phis[1:], strict=False))
    assert all(rz > 0 for rz in t.rzs)


@pytest.mark.parametrize("N", [40_009, 1_300_001])
def test_bits_do_not_depend_on_threads(N: int, dtype: torch.dtype) -> None:
    old, M = make_vectors(N, dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        with use_backend("cpu"):
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                new = old.copy()
                scalars = cg_update(*new, 0.37, M)
                cg_direction(new.p, new.z, 0.7)
                results.append((scalars, new))
    finally:
        torch.set_num_threads(threads)
    for scalars, vectors in results[1:]:
        assert scalars == results[0][0]
        assert all(torch.equal(a, b) for a, b in zip(vectors, results[0][1], strict=True))


def test_unaligned_vectors(backend: str) -> None:
    """Views that start at any element give what aligned copies give."""
    old, M = make_vectors(1009, torch.float32)
    views = [torch.zeros(1013)[i % 4 : 1009 + i % 4] for i in range(7)]
    for view, v in zip(views, (*old, M), strict=True):
        view.copy_(v)
    aligned = old.copy()
    x, r, z, p, Ap, b, preconditioner = views
    got = cg_update(x, r, z, p, Ap, b, 0.37, preconditioner)
    assert got == cg_update(*aligned, 0.37, M)
    assert torch.equal(x, aligned.x)
    assert torch.equal(z, aligned.z)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["x", "r", "z", "p", "Ap", "b", "preconditioner"])
def test_refuses_by_name(name: str, backend: str) -> None:
    good, M = make_vectors(6, torch.float32)
    arguments = {**good._asdict(), "preconditioner": M}
    others = arguments.keys() - {name}
    before = {o: arguments[o].clone() for o in others}
    for bad, error, text in (
        (torch.zeros(2, 3), ValueError, "got shape"),
        (torch.zeros(12)[::2], ValueError, "contiguous"),
        (torch.zeros(6, requires_grad=True), ValueError, "requires grad"),
        (None, TypeError, "NoneType"),
    ):
        if bad is None and name == "preconditioner":
            continue
        with pytest.raises(error, match=f"{name}: .*{text}"):
            cg_update(**{**arguments, name: bad}, rz=1.0)
    if name != "x":
        for bad in (torch.zeros(5), torch.zeros(7)):
            with pytest.raises(ValueError, match=f"{name}: got shape"):
                cg_update(**{**arguments, name: bad}, rz=1.0)
        with pytest.raises(TypeError, match=rf"{name}: got torch\.float64, need torch\.float32"):
            cg_update(**{**arguments, name: torch.zeros(6, dtype=torch.float64)}, rz=1.0)
    assert all(torch.equal(arguments[o].nan_to_num(), before[o].nan_to_num()) for o in others)


def test_refuses_empty_vectors(backend: str) -> None:
    e = torch.zeros(0)
    with pytest.raises(ValueError, match="N: got 0"):
        cg_update(e, e, e, e, e, e, 1.0)
    with pytest.raises(ValueError, match="N: got 0"):
        cg_direction(e, e, 1.0)


def test_direction_refuses_by_name(backend: str) -> None:
    with pytest.raises(ValueError, match="z: got shape"):
        cg_direction(torch.zeros(3), torch.zeros(4), 1.0)
    with pytest.raises(TypeError, match=r"z: got torch\.float64"):
        cg_direction(torch.zeros(3), torch.zeros(3, dtype=torch.float64), 1.0)


def test_compiled_form_refuses_shared_memory() -> None:
    v, M = make_vectors(8, torch.float32)
    long = torch.zeros(12)
    with use_backend("cpu"):
        with pytest.raises(ValueError, match="z: shares memory with r"):
            cg_update(v.x, v.r, v.r, v.p, v.Ap, v.b, 1.0, M)
        with pytest.raises(ValueError, match="x: shares memory with p"):
            cg_update(v.p, v.r, v.z, v.p, v.Ap, v.b, 1.0)
        with pytest.raises(ValueError, match="r: shares memory with b"):
            cg_update(v.x, v.b, v.z, v.p, v.Ap, v.b, 1.0)
        with pytest.raises(ValueError, match="z: shares memory with r"):
            cg_update(v.x, long[:8], long[4:], v.p, v.Ap, v.b, 1.0)
        with pytest.raises(ValueError, match="p: shares memory with z"):
            cg_direction(v.p, v.p, 1.0)


def test_compiled_module_checks_for_itself() -> None:
    m = native()
    ok = [torch.zeros(4) for _ in range(6)]
    for position in range(6):
        for bad in (torch.zeros(3), torch.zeros(2, 2), torch.zeros(4).double(), None, 1.0):
            arguments: list[object] = list(ok)
            arguments[position] = bad
            with pytest.raises((ValueError, TypeError)):
                m.cg_update(*arguments, 1.0, None, 1)
    with pytest.raises((ValueError, TypeError)):
        m.cg_update(*[torch.zeros(4, dtype=torch.int32) for _ in range(6)], 1.0, None, 1)
    with pytest.raises((ValueError, TypeError)):
        m.cg_update(*ok, 1.0, torch.zeros(3), 1)
    with pytest.raises((ValueError, TypeError)):
        m.cg_direction(torch.zeros(4), torch.zeros(8)[::2], 1.0, 1)
    assert m.cg_update(*ok, 1.0, None, -3)[:2] == (0.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("N", [1, 7, 16, 4097, 40_009, 300_000])
def test_dot_is_exact_to_float64_and_bitwise_for_any_threads(N, dtype) -> None:
    g = torch.Generator().manual_seed(N)
    a, b = (torch.randn(N, generator=g, dtype=dtype) for _ in range(2))
    want = math.fsum((a.double() * b.double()).tolist())
    # Each of N products and sums rounds once, relative to Σ|a b|.
    bound = 2.0**-53 * 2 * math.sqrt(N) * float((a.double() * b.double()).abs().sum())
    before = torch.get_num_threads()
    try:
        values = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            values.append(dot(a, b))
    finally:
        torch.set_num_threads(before)
    assert len(set(values)) == 1
    assert abs(values[0] - want) <= bound
    with use_backend("reference"):
        assert abs(dot(a, b) - want) <= bound
    with pytest.raises(ValueError, match="b: got shape"):
        dot(a, torch.zeros(N + 1, dtype=dtype))
