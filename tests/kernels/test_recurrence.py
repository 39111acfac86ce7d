"""Recurrence ops: the reference against independent oracles, the compiled form against it.

Oracles: torch.func derivatives of the RNN as a loop, dense JᵀLJ, a block-bidiagonal solve.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.bindings import dispatch
from hfcore.bindings import recurrence as ops
from hfcore.kernels.recurrence import Curvature, RnnShape, RnnWeights, reference, split_flat
from oracles.cases.recurrence import (
    GROUPS,
    SIZES,
    SMALL,
    STEPS,
    Case,
    Size,
    assert_close,
    tolerance,
)
from oracles.rnn import rnn, slope, split

DTYPES = (torch.float32, torch.float64)
NONLINEARITIES = ops.NONLINEARITIES


def poisoned(group_of: tuple[Tensor, ...], *shape: int) -> Tensor:
    """A buffer of NaN with the group axis that a call on these arrays must give."""
    G = max(a.shape[0] for a in group_of)
    return torch.full((G, *shape), math.nan, dtype=group_of[0].dtype)


@pytest.fixture(autouse=True)
def compiled() -> Iterator[None]:
    """Every op here runs compiled, or fails; the reference is called by name."""
    with hf.use_backend("cpu"):
        yield


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ------------------------------------------------------------------ the reference and its oracles


def loop(
    theta: Tensor, x: Tensor, shape: RnnShape, e: str, steps: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Pre-activations ``[T,B,H]`` and outputs ``[T_out,B,k]`` of one net."""
    pre, outputs = rnn(split(theta, *shape), x, e)
    return pre, outputs if steps is None else outputs[steps]


def flat(w: RnnWeights) -> Tensor:
    return torch.cat([p[0].reshape(-1) for p in w])


def loss_hessian(c: Tensor, Rs: Tensor, rank_one: bool) -> Tensor:
    """L''Rs with L'' = diag(c) − [rank one] c cᵀ, built as matrices."""
    L = torch.diag_embed(c)
    if rank_one:
        L = L - c.unsqueeze(-1) * c.unsqueeze(-2)
    return (L @ Rs.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("e", NONLINEARITIES)
@pytest.mark.parametrize("size", SMALL, ids=str)
def test_reference_forward_is_the_loop(size: Size, e: str, steps: str) -> None:
    case = Case(size, nonlinearity=e, steps=steps)
    h, s = reference.rnn_forward(case.x, case.w, e, case.steps)
    pre, outputs = loop(flat(case.w), case.x[0], case.shape, e, case.steps)
    assert_close(h, reference.activation(pre, e).unsqueeze(0), 1e-14)
    assert_close(s, outputs.unsqueeze(0), 1e-14)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("e", NONLINEARITIES)
@pytest.mark.parametrize("size", SMALL, ids=str)
def test_reference_backward_is_vjp(size: Size, e: str, steps: str) -> None:
    case = Case(size, nonlinearity=e, steps=steps)
    got = reference.rnn_backward(case.forward_pass(), case.gs)
    vjp = torch.func.vjp(
        lambda theta: loop(theta, case.x[0], case.shape, e, case.steps)[1], flat(case.w)
    )[1]
    assert_close(got, vjp(case.gs[0])[0].unsqueeze(0), 1e-12)


@pytest.mark.parametrize("rank_one", [False, True], ids=["diagonal", "rank_one"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("e", NONLINEARITIES)
@pytest.mark.parametrize("size", SMALL, ids=str)
def test_reference_product_is_jvp_then_vjp(size: Size, e: str, steps: str, rank_one: bool) -> None:
    case = Case(size, nonlinearity=e, steps=steps)
    theta, structural = flat(case.w), 0.3

    def f(theta: Tensor) -> tuple[Tensor, Tensor]:
        return loop(theta, case.x[0], case.shape, e, case.steps)

    (pre, _), (Rt, Rs) = torch.func.jvp(f, (theta,), (case.v[0],))[:2]
    vjp = torch.func.vjp(f, theta)[1]
    (Gv,) = vjp((structural * slope(pre, e) * Rt, loss_hessian(case.c[0], Rs, rank_one)))
    got = reference.rnn_gauss_newton(
        case.forward_pass(), case.v, Curvature(case.c, rank_one, 0.7, structural, 0.2)
    )
    assert_close(got, (0.7 * Gv + 0.2 * case.v[0]).unsqueeze(0), 1e-12)


@pytest.mark.parametrize("rank_one", [False, True], ids=["diagonal", "rank_one"])
@pytest.mark.parametrize("e", NONLINEARITIES)
def test_reference_product_is_dense_JtLJ(e: str, rank_one: bool) -> None:
    case = Case(SMALL[2], nonlinearity=e, steps="scattered")
    theta = flat(case.w)
    Jt, Js = torch.func.jacrev(  # [T,B,H,N], [T_out,B,k,N]
        lambda theta: loop(theta, case.x[0], case.shape, e, case.steps)
    )(theta)
    pre, _ = loop(theta, case.x[0], case.shape, e, case.steps)
    L = torch.diag_embed(case.c[0])
    if rank_one:
        L = L - case.c[0].unsqueeze(-1) * case.c[0].unsqueeze(-2)
    G = torch.einsum("tbin,tbij,tbjm->nm", Js, L, Js)
    G = G + 0.3 * torch.einsum("tbin,tbi,tbim->nm", Jt, slope(pre, e), Jt)
    got = reference.rnn_gauss_newton(
        case.forward_pass(), case.v, Curvature(case.c, rank_one, 1.0, 0.3, 0.0)
    )
    assert_close(got, (G @ case.v[0]).unsqueeze(0), 1e-12)


@pytest.mark.parametrize("with_a", [False, True], ids=["plain", "added"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("size", SMALL, ids=str)
def test_reference_scan_solves_its_linear_system(size: Size, reverse: bool, with_a: bool) -> None:
    case = Case(size)
    T, B, _, H, _ = size
    got = reference.linear_scan(case.u, case.d, case.W, case.a if with_a else None, reverse)
    for b in range(B):
        u, d, a = case.u[0, :, b], case.d[0, :, b], case.a[0, :, b]
        system = torch.eye(T * H, dtype=torch.float64)
        for t in range(T):
            back = t + 1 if reverse else t - 1
            if 0 <= back < T:
                rows, columns = slice(t * H, (t + 1) * H), slice(back * H, (back + 1) * H)
                system[rows, columns] = -d[t].unsqueeze(1) * case.W[0].T
        y = torch.linalg.solve(system, (d * u + (a if with_a else 0 * a)).reshape(-1))
        assert_close(got[:, :, b], y.view(1, T, H), 1e-12)


# ------------------------------------------------------- the compiled ops against the reference


def check_forward(case: Case) -> None:
    """Both outputs, with and without states, into buffers full of NaN."""
    T, B, _, H, k = case.size
    outputs = T if case.steps is None else case.steps.numel()
    e = NONLINEARITIES.index(case.nonlinearity)
    want_h, want_s = reference.rnn_forward(
        case.x.double(), case.weights_double(), case.nonlinearity, case.steps
    )
    given = (case.x, *case.w)
    h, s = poisoned(given, T, B, H), poisoned(given, outputs, B, k)
    only_s = s.clone()
    x = case.x.contiguous()
    arrays = [p.contiguous() for p in case.w]
    native = dispatch.native()
    native.rnn_forward(x, *arrays, case.steps, e, h, s, torch.get_num_threads())
    native.rnn_forward(x, *arrays, case.steps, e, None, only_s, torch.get_num_threads())
    tol = tolerance(case.dtype, case.size)
    assert_close(h, want_h, tol)
    assert_close(s, want_s, tol)
    assert torch.equal(s, only_s)
    out = poisoned(given, T, B, H)
    through = ops.rnn_forward(
        case.x, case.w, nonlinearity=case.nonlinearity, steps=case.steps, out=out
    )
    assert through[0] is out
    assert torch.equal(through[0], h)
    assert torch.equal(through[1], s)
    assert ops.rnn_forward(case.x, case.w, states=False)[0] is None


def check_scan(case: Case) -> None:
    T, B, _, H, _ = case.size
    u, d, W, a = case.double(case.u, case.d, case.W, case.a)
    for reverse, added in itertools.product((False, True), repeat=2):
        want = reference.linear_scan(u, d, W, a if added else None, reverse)
        out = poisoned((case.u, case.d, case.W, *([case.a] if added else [])), T, B, H)
        got = ops.linear_scan(
            case.u, case.d, case.W, case.a if added else None, reverse=reverse, out=out
        )
        assert got is out
        assert_close(got, want, tolerance(case.dtype, case.size))


def check_backward(case: Case) -> None:
    want = reference.rnn_backward(case.forward_pass(torch.float64), case.gs.double())
    out = poisoned((case.x, case.h, *case.w, case.gs), case.shape.numel)
    got = ops.rnn_backward(
        case.x, case.h, case.w, case.gs, nonlinearity=case.nonlinearity, steps=case.steps, out=out
    )
    assert got is out
    assert_close(got, want, tolerance(case.dtype, case.size))


def check_product(case: Case, rank_one: bool, structural: float) -> None:
    scale, damping = 0.25, 0.01
    curvature = Curvature(case.c.double(), rank_one, scale, structural, damping)
    want = reference.rnn_gauss_newton(case.forward_pass(torch.float64), case.v.double(), curvature)
    out = poisoned((case.x, case.h, *case.w, case.v, case.c), case.shape.numel)
    got = case.product(
        rank_one=rank_one, scale=scale, structural=structural, damping=damping, out=out
    )
    assert got is out
    assert_close(got, want, tolerance(case.dtype, case.size))


@pytest.mark.parametrize("group", ["alone", "distinct", "expanded"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_accumulates(backend: str, group: str) -> None:
    """What is in the buffer stays, and the result is added; in full only once."""
    case = Case(Size(3, 4, 2, 5, 2), torch.float64, group=group, steps="last")
    with hf.use_backend(backend):
        one = case.product(structural=0.3, damping=0.2)
        out = torch.full(one.shape, 0.5, dtype=one.dtype)
        assert case.product(structural=0.3, damping=0.2, out=out, accumulate=True) is out
        torch.testing.assert_close(out, one + 0.5)
        with pytest.raises(ValueError, match="out: got None, need a buffer to accumulate in"):
            case.product(accumulate=True)


def rotating(sizes: tuple[Size, ...] = SIZES) -> Iterator[tuple[Size, str, str, bool, float]]:
    """Every size with two group forms and step choices, so that each pair of options meets."""
    options = itertools.cycle(itertools.product(GROUPS, STEPS))
    for i, size in enumerate(sizes):
        for j in range(2):
            group, steps = next(options)
            next(options), next(options)
            yield size, group, steps, (i + j) % 2 == 0, 0.3 * ((i // 2 + j) % 2)


@pytest.mark.parametrize(
    ("size", "group", "steps", "rank_one", "structural"),
    list(rotating()),
    ids=str,
)
@pytest.mark.parametrize("e", NONLINEARITIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled(
    dtype: torch.dtype,
    e: str,
    size: Size,
    group: str,
    steps: str,
    rank_one: bool,
    structural: float,
) -> None:
    case = Case(size, dtype, e, group, steps)
    check_forward(case)
    check_scan(case)
    check_backward(case)
    check_product(case, rank_one, structural)


@pytest.mark.parametrize("structural", [0.0, 0.3], ids=["plain", "structural"])
@pytest.mark.parametrize("rank_one", [False, True], ids=["diagonal", "rank_one"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("group", GROUPS)
def test_compiled_every_option(group: str, steps: str, rank_one: bool, structural: float) -> None:
    for dtype in DTYPES:
        case = Case(Size(9, 19, 3, 13, 2), dtype, "tanh", group, steps)
        check_forward(case)
        check_scan(case)
        check_backward(case)
        check_product(case, rank_one, structural)


@pytest.mark.slow
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_compiled_full_grid(size: Size, group: str, steps: str) -> None:
    for dtype, e in itertools.product(DTYPES, NONLINEARITIES):
        case = Case(size, dtype, e, group, steps, seed=1)
        check_forward(case)
        check_scan(case)
        check_backward(case)
        for rank_one, structural in itertools.product((False, True), (0.0, 0.3)):
            check_product(case, rank_one, structural)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "size", [Size(*s) for s in itertools.product((1, 4, 5), (15, 33), (2,), range(1, 50), (1,))],
    ids=str,
)  # fmt: skip
def test_compiled_every_width(size: Size, dtype: torch.dtype) -> None:
    case = Case(size._replace(k=1 + size.H % 7, n=1 + size.H % 5), dtype, group="tangents")
    check_forward(case)
    check_scan(case)
    check_backward(case)
    check_product(case, True, 0.3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_long_sequence(dtype: torch.dtype) -> None:
    case = Case(Size(101, 37, 2, 29, 1), dtype, steps="last")
    check_forward(case)
    check_backward(case)
    check_product(case, False, 0.3)


@pytest.mark.parametrize("group", ["W_yh", "b_y", "b_init", "W_hx", "x", "c", "gs"])
def test_group_axis_on_one_array_alone(group: str) -> None:
    """Whichever single array carries the axis, every result has it."""
    case = Case(Size(3, 5, 2, 4, 3))
    w, x, c, gs = case.w, case.x, case.c, case.gs
    if group in RnnWeights._fields:
        one = getattr(w, group)
        w = w._replace(**{group: torch.cat([one, 2 * one, -one])})
    x, c, gs = (
        torch.cat([a, 0.5 * a, 0.1 * a]) if name == group else a
        for name, a in (("x", x), ("c", c), ("gs", gs))
    )

    def everything() -> tuple[Tensor, ...]:
        h, s = ops.rnn_forward(x, w)
        assert h is not None
        return (
            h.expand(3, -1, -1, -1),
            s.expand(3, -1, -1, -1),
            ops.rnn_backward(x, case.h, w, gs).expand(3, -1),
            ops.rnn_gauss_newton(x, case.h, w, case.v, c).expand(3, -1),
        )

    fast = everything()
    with hf.use_backend("reference"):
        slow = everything()
    for got, want in zip(fast, slow, strict=True):
        assert_close(got, want, 1e-12)


def test_arguments_may_be_strided_views() -> None:
    case = Case(Size(4, 6, 3, 5, 2), group="distinct", steps="scattered")

    def strided(a: Tensor) -> Tensor:
        order = tuple(reversed(range(a.ndim)))
        return a.permute(order).contiguous().permute(order)

    assert case.steps is not None
    apart = torch.stack([case.steps, case.steps], dim=1)[:, 0]
    assert not apart.is_contiguous()
    w = RnnWeights(*map(strided, case.w))
    x, h, v, c, gs = map(strided, (case.x, case.h, case.v, case.c, case.gs))
    got = ops.rnn_gauss_newton(x, h, w, v, c, steps=apart)
    assert torch.equal(got, case.product())
    assert torch.equal(
        ops.rnn_backward(x, h, w, gs, steps=apart),
        ops.rnn_backward(case.x, case.h, case.w, case.gs, steps=case.steps),
    )
    assert torch.equal(
        ops.rnn_forward(x, w, steps=apart)[1],
        ops.rnn_forward(case.x, case.w, steps=case.steps)[1],
    )
    assert torch.equal(
        ops.linear_scan(strided(case.u), strided(case.d), strided(case.W)),
        ops.linear_scan(case.u, case.d, case.W),
    )


def test_lazily_negated_view() -> None:
    """The imaginary part of a conjugate stores the other sign."""
    case = Case(Size(3, 4, 2, 3, 1))
    lazy = torch.complex(torch.zeros_like(case.u), -case.u).conj().imag
    assert lazy.is_neg()
    want = ops.linear_scan(case.u, case.d, case.W)
    assert torch.equal(ops.linear_scan(lazy, case.d, case.W), want)
    assert torch.equal(ops.linear_scan(torch._neg_view(-case.u), case.d, case.W), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES[:12], ids=str)
def test_nothing_is_written_beside_the_output(size: Size, dtype: torch.dtype) -> None:
    case = Case(size, dtype, steps="scattered")
    T, B, _, H, k = size
    assert case.steps is not None
    e, margin = NONLINEARITIES.index("tanh"), 64

    def fenced(*shape: int) -> tuple[Tensor, Tensor]:
        whole = torch.full((math.prod(shape) + 2 * margin,), 7.0, dtype=dtype)
        return whole, whole[margin:-margin].view(shape)

    h, s = fenced(1, T, B, H), fenced(1, case.steps.numel(), B, k)
    dispatch.native().rnn_forward(case.x, *case.w, case.steps, e, h[1], s[1], 2)
    y, g, Gv = fenced(1, T, B, H), fenced(1, case.shape.numel), fenced(1, case.shape.numel)
    ops.linear_scan(case.u, case.d, case.W, case.a, out=y[1])
    ops.rnn_backward(case.x, case.h, case.w, case.gs, steps=case.steps, out=g[1])
    case.product(structural=0.1, out=Gv[1])
    for whole, _ in (h, s, y, g, Gv):
        assert bool((whole[:margin] == 7.0).all())
        assert bool((whole[-margin:] == 7.0).all())


# ------------------------------------------------------------------------------ identities


IDENTITY_SIZES = (Size(5, 33, 3, 12, 2), Size(9, 7, 5, 3, 11), Size(1, 17, 2, 9, 1))


@pytest.mark.parametrize("structural", [0.0, 0.3], ids=["plain", "structural"])
@pytest.mark.parametrize("rank_one", [False, True], ids=["diagonal", "rank_one"])
@pytest.mark.parametrize("e", NONLINEARITIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", IDENTITY_SIZES, ids=str)
def test_product_is_symmetric_and_positive(
    size: Size, dtype: torch.dtype, e: str, rank_one: bool, structural: float
) -> None:
    case = Case(size, dtype, e, steps="scattered")
    u, v = case.array("v", case.shape.numel), case.v
    Gu = case.product(u, rank_one=rank_one, structural=structural)
    Gv = case.product(v, rank_one=rank_one, structural=structural)
    tol = tolerance(dtype, size) * math.sqrt(case.shape.numel)
    scale = float(u.double().norm() * Gv.double().norm())
    difference = (u.double() * Gv.double()).sum() - (v.double() * Gu.double()).sum()
    assert abs(float(difference)) <= tol * scale
    # c sums to less than one over outputs, so diag(c) − c cᵀ is positive too
    for w, Gw in ((u, Gu), (v, Gv)):
        assert float((w.double() * Gw.double()).sum()) > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", IDENTITY_SIZES, ids=str)
def test_reverse_scan_is_the_adjoint_of_the_forward_scan(size: Size, dtype: torch.dtype) -> None:
    """y = S u is ⟨δ, y⟩ = ⟨Sᵀδ, u⟩, where Sᵀ scans d ⊙ (… Wᵀ + δ) backwards in time."""
    case = Case(size, dtype)
    delta = case.a
    y = ops.linear_scan(case.u, case.d, case.W)
    back = ops.linear_scan(delta, case.d, case.W.mT, reverse=True)
    left, right = (delta.double() * y.double()).sum(), (back.double() * case.u.double()).sum()
    scale = float(delta.double().norm() * y.double().norm())
    assert abs(float(left - right)) <= tolerance(dtype, size) * scale


@pytest.mark.parametrize("e", NONLINEARITIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", IDENTITY_SIZES, ids=str)
def test_backward_is_the_adjoint_of_the_tangent(size: Size, dtype: torch.dtype, e: str) -> None:
    """⟨δ, Jv⟩ = ⟨Jᵀδ, v⟩; Jv from the compiled scan, Jᵀδ from the compiled backward pass."""
    case = Case(size, dtype, e)
    v, w = split_flat(case.v, case.shape), case.w
    before = torch.cat([torch.zeros_like(case.h[:, :1]), case.h[:, :-1]], dim=1)
    u = case.x @ v.W_hx.mT.unsqueeze(1) + before @ v.W_hh.mT.unsqueeze(1) + v.b_h[:, None, None]
    u[:, 0] += v.b_init.unsqueeze(1)
    d = reference.activation_derivative(case.h, e)
    Rh = ops.linear_scan(u, d, w.W_hh.mT)
    Rs = Rh @ w.W_yh.mT.unsqueeze(1) + case.h @ v.W_yh.mT.unsqueeze(1) + v.b_y[:, None, None]
    g = ops.rnn_backward(case.x, case.h, w, case.gs, nonlinearity=e)
    left, right = (case.gs.double() * Rs.double()).sum(), (g.double() * case.v.double()).sum()
    scale = float(case.gs.double().norm() * Rs.double().norm())
    assert abs(float(left - right)) <= tolerance(dtype, size) * scale


@pytest.mark.parametrize("rank_one", [False, True], ids=["diagonal", "rank_one"])
@pytest.mark.parametrize("size", IDENTITY_SIZES, ids=str)
def test_scale_structural_and_damping(size: Size, rank_one: bool) -> None:
    """The product is scale·(G + structural·S) v + damping·v: damping is not scaled."""
    case = Case(size, group="tangents", steps="scattered")
    G = case.product(rank_one=rank_one)
    S = case.product(rank_one=rank_one, structural=1.0) - G
    got = case.product(rank_one=rank_one, scale=0.01, structural=0.3, damping=2.5)
    assert_close(got, 0.01 * (G + 0.3 * S) + 2.5 * case.v, 1e-12)
    assert torch.equal(case.product(scale=0.0, damping=2.0), 2.0 * case.v)
    assert not bool(case.product(torch.zeros_like(case.v), structural=0.3).any())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_structural_weight_may_be_a_tensor(backend: Any) -> None:
    """One of zero, too; its dtype is x's."""
    case = Case(IDENTITY_SIZES[-1], group="tangents", steps="scattered")
    with hf.use_backend(backend):
        for weight in (0.3, 0.0):
            tensor = torch.tensor(weight, dtype=case.x.dtype)
            got = case.product(structural=tensor, damping=0.2)
            assert_close(got, case.product(structural=weight, damping=0.2), 1e-14)
    with pytest.raises(TypeError, match=r"structural: got torch\.int64, need torch\.float64"):
        case.product(structural=torch.tensor(1))
    with pytest.raises(TypeError, match="structural: got Tensor, need a float"):
        case.product(structural=torch.ones(1, dtype=case.x.dtype))


@pytest.mark.parametrize("size", IDENTITY_SIZES, ids=str)
def test_product_is_linear(size: Size) -> None:
    case = Case(size)
    u = case.array("v", case.shape.numel)
    options: dict[str, Any] = {"rank_one": True, "structural": 0.2, "damping": 0.1}
    got = case.product(2 * u - 3 * case.v, **options)
    assert_close(got, 2 * case.product(u, **options) - 3 * case.product(**options), 1e-12)


# --------------------------------------------------------------------------- reproducible bits


def everything(case: Case) -> tuple[Tensor, ...]:
    h, s = ops.rnn_forward(case.x, case.w, nonlinearity=case.nonlinearity, steps=case.steps)
    assert h is not None
    return (
        h,
        s,
        ops.linear_scan(case.u, case.d, case.W, case.a),
        ops.linear_scan(case.u, case.d, case.W, case.a, reverse=True),
        ops.rnn_backward(
            case.x, case.h, case.w, case.gs, nonlinearity=case.nonlinearity, steps=case.steps
        ),
        case.product(rank_one=True, structural=0.1, damping=0.5),
        case.product(),
    )


def assert_same_bits(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


BIT_SIZES = (Size(9, 900, 2, 31, 3), Size(5, 65, 7, 12, 1), Size(1, 33, 1, 1, 1))


@pytest.mark.parametrize("group", ["alone", "tangents", "distinct"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", BIT_SIZES, ids=str)
def test_same_bits_for_any_number_of_threads(
    size: Size, dtype: torch.dtype, group: str, threads: Callable[[int], None]
) -> None:
    case = Case(size, dtype, group=group)
    threads(1)
    want = everything(case)
    for count in (2, 3, 5, 1, 5, 2, 2):
        threads(count)
        assert_same_bits(everything(case), want)


@pytest.mark.parametrize("group", ["tangents", "expanded", "inputs", "weights", "distinct"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", BIT_SIZES, ids=str)
def test_same_bits_alone_and_in_a_group(size: Size, dtype: torch.dtype, group: str) -> None:
    case = Case(size, dtype, group=group)
    together = everything(case)
    for g in range(case.G):
        alone = Case(size, dtype)
        alone.w, arrays = case.net(g)
        for name, value in arrays.items():
            setattr(alone, name, value)
        assert_same_bits(tuple(a[g : g + 1] for a in together if a.shape[0] > 1), tuple(
            b for a, b in zip(together, everything(alone), strict=True) if a.shape[0] > 1
        ))  # fmt: skip


def test_other_sequences_of_a_batch_do_not_change_a_sequence() -> None:
    """A sequence's states and outputs do not depend on its place in a tile."""
    case = Case(Size(6, 67, 3, 14, 2), torch.float32)
    h, s = ops.rnn_forward(case.x, case.w)
    assert h is not None
    for b in (0, 15, 16, 31, 32, 66):
        h_one, s_one = ops.rnn_forward(case.x[:, :, b : b + 1], case.w)
        assert h_one is not None
        assert torch.equal(h_one, h[:, :, b : b + 1])
        assert torch.equal(s_one, s[:, :, b : b + 1])


# ------------------------------------------------------------------- non-finite and masked data


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("e", NONLINEARITIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bad_sequence_stays_alone(dtype: torch.dtype, e: str, bad: float) -> None:
    case = Case(Size(5, 35, 3, 7, 2), dtype, e)
    clean_h, clean_s = ops.rnn_forward(case.x, case.w, nonlinearity=e)
    clean_y = ops.linear_scan(case.u, case.d, case.W)
    assert clean_h is not None
    for b in (0, 20, 34):
        x, u = case.x.clone(), case.u.clone()
        x[0, 1, b, 0] = bad
        u[0, 1, b, 0] = bad
        h, s = ops.rnn_forward(x, case.w, nonlinearity=e)
        y = ops.linear_scan(u, case.d, case.W)
        assert h is not None
        others = torch.arange(35) != b
        for got, clean in ((h, clean_h), (s, clean_s), (y, clean_y)):
            assert torch.equal(got[:, :, others], clean[:, :, others])
            assert torch.equal(got[:, :1, b], clean[:, :1, b])
        if math.isnan(bad):
            assert bool(h[:, 1:, b].isnan().all())
            assert bool(s[:, 1:, b].isnan().all())
            assert bool(y[:, 2:, b].isnan().all())


@pytest.mark.parametrize("e", NONLINEARITIES)
def test_bad_data_is_seen_in_the_gradient(e: str) -> None:
    case = Case(Size(5, 35, 3, 7, 2), nonlinearity=e)
    case.x[0, 4, 34, 1] = math.nan
    h = case.states(case.nonlinearity)
    grad = ops.rnn_backward(case.x, h, case.w, case.gs, nonlinearity=e)
    assert bool(grad.isnan().any())
    case.h = h
    assert bool(case.product().isnan().any())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [Size(9, 35, 3, 7, 2), Size(5, 16, 2, 13, 1)], ids=str)
def test_outputs_without_curvature_do_not_matter(size: Size, dtype: torch.dtype) -> None:
    """Every output with c = 0 at some steps is the same as those steps having no output."""
    case = Case(size, dtype)
    kept = torch.tensor([1, size.T - 1])
    c, gs = torch.zeros_like(case.c), torch.zeros_like(case.gs)
    c[:, kept], gs[:, kept] = case.c[:, kept], case.gs[:, kept]
    masked = ops.rnn_gauss_newton(case.x, case.h, case.w, case.v, c, structural=0.1)
    chosen = ops.rnn_gauss_newton(
        case.x, case.h, case.w, case.v, case.c[:, kept], structural=0.1, steps=kept
    )
    assert torch.equal(masked, chosen)
    assert torch.equal(
        ops.rnn_backward(case.x, case.h, case.w, gs),
        ops.rnn_backward(case.x, case.h, case.w, case.gs[:, kept], steps=kept),
    )


def test_outputs_without_curvature_are_not_computed() -> None:
    """With c = 0 nothing at the outputs is read, not even a NaN there; states still count."""
    case = Case(Size(6, 35, 3, 7, 2))
    v, w = split_flat(case.v.clone(), case.shape), case.w
    zero = torch.zeros_like(case.c)
    want = ops.rnn_gauss_newton(case.x, case.h, w, case.v, zero, structural=0.2)
    v = v._replace(W_yh=torch.full_like(v.W_yh, math.nan), b_y=torch.full_like(v.b_y, math.nan))
    w = w._replace(W_yh=torch.full_like(w.W_yh, math.nan))
    poisoned = torch.cat([p.flatten(1) for p in v], dim=1)
    got = split_flat(
        ops.rnn_gauss_newton(case.x, case.h, w, poisoned, zero, structural=0.2), case.shape
    )
    for name, a, b in zip(RnnWeights._fields, got, split_flat(want, case.shape), strict=True):
        if name in ("W_yh", "b_y"):  # damping·v is zero times NaN
            assert bool(a.isnan().all())
        else:
            assert torch.equal(a, b)
            assert bool(b.any())
