"""Loss ops on every backend against torch's own losses differentiated in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hfcore.bindings.dispatch import native
from hfcore.bindings.loss import (
    KINDS,
    RANK_ONE,
    loss_curvature,
    loss_gradient,
    loss_hessian_product,
    loss_value,
)
from oracles.cases.loss import DELTA, Case, in_double, make_case, oracle_gradient, oracle_value

# T, B, k: ones, primes, 16 lanes of a vector ± 1, several tiles, several blocks.
SHAPES = (
    (1, 1, 1),
    (3, 5, 2),
    (2, 7, 13),
    (1, 3, 7),
    (1, 2, 8),
    (1, 5, 15),
    (2, 2, 16),
    (1, 2, 17),
    (3, 1, 33),
    (7, 331, 1),
    (5, 101, 19),
    (1, 3, 1031),
)
SHAPE_IDS = [f"T{T}-B{B}-k{k}" for T, B, k in SHAPES]
MASKS = ("none", "bool", "float", "sequence", "weights")


def weights(case: Case) -> Tensor:
    """What each position counts, float64 ``[G,T,B,1]``."""
    return torch.ones(1, 1, 1, 1) if case.mask is None else case.mask.double().unsqueeze(-1)


def one_hot(case: Case) -> Tensor:
    return functional.one_hot(case.targets, case.s.shape[-1])


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def assert_within(got: Tensor, want: Tensor, bound: Tensor) -> None:
    """|got − want| ≤ bound everywhere; tells the worst element."""
    assert got.shape == want.shape
    excess = (got.double() - want).abs() - bound
    worst = int(excess.argmax())
    assert not bool((excess > 0).any() | excess.isnan().any()), (
        f"element {worst}: got {got.flatten()[worst]}, want {want.flatten()[worst]}, "
        f"bound {bound.expand_as(want).flatten()[worst]}"
    )


# ---------------------------------------------------------------------------- agreement

Shape = tuple[int, int, int]
Check = Callable[[str, Shape, str, torch.dtype], None]


def every_mask(check: Check) -> Callable[[str, Shape, torch.dtype, str], None]:
    """``check`` for every kind, shape, dtype and backend; masks in turn within one test."""

    @pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
    @pytest.mark.parametrize("kind", KINDS)
    def test(kind: str, shape: Shape, dtype: torch.dtype, backend: str) -> None:
        for mask in MASKS:
            check(kind, shape, mask, dtype)

    test.__doc__ = check.__doc__
    return test


@every_mask
def test_value(kind: str, shape: tuple[int, int, int], mask: str, dtype: torch.dtype) -> None:
    case = make_case(kind, dtype, shape, mask)
    wide = in_double(kind, case)
    got = loss_value(kind, case.s, case.targets, case.mask, scale=0.3, delta=DELTA)
    want = 0.3 * oracle_value(kind, wide)
    # Elements and sums are float64: some 10 roundings an element whose terms are at most
    # s² + y² + |s| (1 + |y|) + log k, then sums of at most 1024 + 8 + 8 terms in a chain.
    y = torch.tensor(1.0) if kind == "softmax" else wide.targets
    k = torch.tensor(float(shape[2])).log().item()
    terms = wide.s**2 + y**2 + wide.s.abs() * (1 + y.abs()) + 1 + k
    if kind == "poisson":
        terms = terms + 3 * wide.s.exp()
    terms = (terms * weights(wide)).sum()
    assert got.dtype == torch.float64
    assert_within(got, want, 50 * torch.finfo(torch.float64).eps * terms)


@every_mask
def test_gradient(kind: str, shape: tuple[int, int, int], mask: str, dtype: torch.dtype) -> None:
    case = make_case(kind, dtype, shape, mask)
    out = poisoned(1, *shape, dtype=dtype)
    got = loss_gradient(kind, case.s, case.targets, case.mask, scale=0.3, delta=DELTA, out=out)
    assert got is out
    want = 0.3 * oracle_gradient(kind, case)
    # ŷ − y: at most 8 eps in ŷ (3 ulp of exp, the rounded shift of softmax, which costs
    # eps·|shift|·e^shift/2, sum and division), then two roundings of the difference.
    # A weight is one rounding more.
    y = (one_hot(case) if kind == "softmax" else case.targets.double()) * weights(case)
    prediction = (want / 0.3 + y).abs()
    size = prediction + y.abs() + (DELTA * weights(case) if kind == "huber" else 0)
    assert_within(got, want, 0.3 * 11 * torch.finfo(dtype).eps * size)


@every_mask
def test_curvature_and_hessian_product(
    kind: str, shape: tuple[int, int, int], mask: str, dtype: torch.dtype
) -> None:
    case = make_case(kind, dtype, shape, mask)
    wide = in_double(kind, case)
    rank_one = RANK_ONE[1 + (mask == "weights")] if kind == "softmax" else False
    eps = torch.finfo(dtype).eps
    out = poisoned(1, *shape, dtype=dtype)
    c = loss_curvature(kind, case.s, case.targets, case.mask, delta=DELTA, out=out)
    g = loss_hessian_product(
        c, case.Rs, rank_one=rank_one, scale=0.3, out=poisoned(1, *shape, dtype=dtype)
    )
    # Differentiating the oracle's gradient gives L''Rs with no formula of ours; backward, because
    # torch's Huber loss has no forward derivative, and L'' is symmetric.
    gradient = torch.func.grad(lambda s: oracle_value(kind, wide._replace(s=s)).sum())
    want = 0.3 * torch.func.vjp(gradient, wide.s)[1](wide.Rs)[0]
    p = {
        "squared": torch.ones_like(wide.s),
        "logistic": wide.s.sigmoid() * (1 - wide.s.sigmoid()),
        "softmax": wide.s.softmax(-1),
        "huber": ((wide.s - wide.targets.double()).abs() <= DELTA).double()
        if kind == "huber"
        else torch.zeros(()),
        "poisson": wide.s.exp(),
    }[kind]
    w = weights(case)
    p = p * w
    # As for the gradient; 1 − p of the reference's p (1 − p) loses eps absolutely.
    assert_within(c, p, 10 * eps * (p + (w * wide.s.sigmoid() if kind == "logistic" else 0)))
    # cᵀRs / Σc of weighted distributions is that of p, whatever the weight.
    shares = p / w.clamp_min(1e-300) if mask == "weights" else p
    dot = (shares * wide.Rs.abs()).sum(-1, keepdim=True) if rank_one else torch.zeros(())
    size = (p + (w if kind == "logistic" else 0.0)) * (wide.Rs.abs() + (1 + shape[2] ** 0.5) * dot)
    assert_within(g, want, 0.3 * 16 * eps * size)


@pytest.mark.parametrize("mask", ["bool", "weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_slope_of_the_value(kind: str, mask: str, backend: str) -> None:
    case = make_case(kind, torch.float64, (2, 3, 5), mask)
    step = 1e-6 * case.Rs
    options = {"scale": 0.7, "delta": DELTA}
    up = loss_value(kind, case.s + step, case.targets, case.mask, **options)
    down = loss_value(kind, case.s - step, case.targets, case.mask, **options)
    slope = (loss_gradient(kind, case.s, case.targets, case.mask, **options) * case.Rs).sum()
    # Central differences: O(step²) ≈ 1e-12 of truncation, 1e-16·|value| / 1e-6 of rounding; the
    # sum of e^s is some hundreds.
    abs = 1e-7 if kind == "poisson" else 1e-8
    assert float((up - down) / 2e-6) == pytest.approx(float(slope), abs=abs)


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_is_the_hessian_and_positive_semidefinite(kind: str, backend: str) -> None:
    case = make_case(kind, torch.float64, (1, 1, 6))
    rank_one = kind == "softmax"
    c = loss_curvature(kind, case.s, case.targets, None, delta=DELTA)
    columns = [
        loss_hessian_product(c, e.view_as(c), rank_one=rank_one)
        for e in torch.eye(6, dtype=torch.float64)
    ]
    H = torch.stack([column.flatten() for column in columns], 1)
    want = torch.func.hessian(lambda s: oracle_value(kind, case._replace(s=s)).sum())(case.s)
    # e^s of the outputs is up to some 50.
    atol = 1e-14 if kind == "poisson" else 1e-15
    torch.testing.assert_close(H, want.view(6, 6), rtol=0, atol=atol)
    torch.testing.assert_close(H, H.T, rtol=0, atol=1e-17)
    assert torch.linalg.eigvalsh(H).min() > -1e-16


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_softmax_curvature_sums_to_one(
    shape: tuple[int, int, int], dtype: torch.dtype, backend: str
) -> None:
    case = make_case("softmax", dtype, shape, "bool")
    total = loss_curvature("softmax", case.s, None, case.mask).double().sum(-1)
    # Each of the k summands is rounded twice, and they sum to one.
    bound = torch.tensor(4 * torch.finfo(dtype).eps)
    assert case.mask is not None
    assert_within(total, case.mask.double(), bound)
    # L'' has the constant vector in its kernel.
    c = loss_curvature("softmax", case.s, None, None)
    flat = loss_hessian_product(c, torch.ones_like(c), rank_one=True).double()
    assert_within(flat, torch.zeros_like(flat), 8 * torch.finfo(dtype).eps * c.double())


# ---------------------------------------------------------------------------- group axis


@pytest.mark.parametrize(
    "groups",
    [(3, 3, 3), (3, 1, 1), (1, 3, 1), (1, 1, 3), (3, 3, 1), (1, 3, 3), (3, 1, 3)],
    ids=lambda g: f"s{g[0]}-y{g[1]}-m{g[2]}",
)
@pytest.mark.parametrize("mask", ["bool", "float", "weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_group_equals_each_net_alone(
    kind: str, mask: str, groups: tuple[int, int, int], dtype: torch.dtype, backend: str
) -> None:
    case = make_case(kind, dtype, (3, 5, 7), mask, groups)
    assert case.mask is not None

    def alone(t: Tensor, g: int) -> Tensor:
        return t[min(g, t.shape[0] - 1)].unsqueeze(0)

    value = loss_value(kind, case.s, case.targets, case.mask)
    gradient = loss_gradient(kind, case.s, case.targets, case.mask)
    c = loss_curvature(kind, case.s, case.targets, case.mask)
    product = loss_hessian_product(c, case.Rs, rank_one=kind == "softmax")
    assert value.shape == (3,)
    assert gradient.shape == (3, 3, 5, 7)
    members = groups if kind == "huber" else (groups[0], groups[2])
    assert c.shape == product.shape == (max(members), 3, 5, 7)
    for g in range(3):
        s, y, m = alone(case.s, g), alone(case.targets, g), alone(case.mask, g)
        own = loss_curvature(kind, s, y, m)
        pairs = (
            (value[g : g + 1], loss_value(kind, s, y, m)),
            (gradient[g : g + 1], loss_gradient(kind, s, y, m)),
            (alone(c, g), own),
            (
                alone(product, g),
                loss_hessian_product(own, alone(case.Rs, g), rank_one=kind == "softmax"),
            ),
        )
        for in_group, by_itself in pairs:
            if backend == "cpu":
                assert torch.equal(in_group, by_itself)
            else:  # torch's sigmoid rounds an element by its place in a vector
                torch.testing.assert_close(in_group, by_itself)


@pytest.mark.parametrize("kind", KINDS)
def test_expanded_group_axis(kind: str, backend: str) -> None:
    """A stride-0 group axis gives the group's result, one net's copied."""
    case = make_case(kind, torch.float32, (2, 3, 4), "bool")
    assert case.mask is not None
    s, mask = case.s.expand(3, -1, -1, -1), case.mask.expand(3, -1, -1)
    y = case.targets
    value = loss_value(kind, s, y, mask)
    assert torch.equal(value, loss_value(kind, case.s, y, case.mask).expand(3))
    gradient = loss_gradient(kind, s, y, mask)
    assert torch.equal(gradient, loss_gradient(kind, case.s, y, case.mask).expand(3, -1, -1, -1))
    c = loss_curvature(kind, s, y, mask)
    assert torch.equal(loss_hessian_product(c, s), loss_hessian_product(c, case.s))


@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_threads_or_group(kind: str, dtype: torch.dtype, cpu: None) -> None:
    """Large enough that the blocks are really shared among threads."""
    case = make_case(kind, dtype, (13, 631, 5), "bool", (2, 2, 2))
    assert case.mask is not None
    rank_one = kind == "softmax"

    def everything(s: Tensor, y: Tensor, m: Tensor, Rs: Tensor) -> list[Tensor]:
        c = loss_curvature(kind, s, y, m)
        return [
            loss_value(kind, s, y, m),
            loss_gradient(kind, s, y, m),
            c,
            loss_hessian_product(c, Rs, rank_one=rank_one),
        ]

    torch.set_num_threads(1)
    want = everything(case.s, case.targets, case.mask, case.Rs)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        again = everything(case.s, case.targets, case.mask, case.Rs)
        assert all(torch.equal(a, b) for a, b in zip(again, want, strict=True)), threads
        last = everything(case.s[1:], case.targets[1:], case.mask[1:], case.Rs[1:])
        assert all(torch.equal(a, b[1:]) for a, b in zip(last, want, strict=True)), threads


# ---------------------------------------------------------------------------- NaN, extremes


@pytest.mark.parametrize("mask", ["bool", "float", "weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_masked_nan_is_ignored(kind: str, mask: str, dtype: torch.dtype, backend: str) -> None:
    case = make_case(kind, dtype, (3, 11, 5), mask)
    assert case.mask is not None
    dropped = ~case.mask.bool()
    s, y = case.s.clone(), case.targets.clone()
    s[dropped] = float("nan")
    y[dropped] = -7 if kind == "softmax" else float("nan")
    for op in (loss_value, loss_gradient):
        assert torch.equal(op(kind, s, y, case.mask), op(kind, case.s, case.targets, case.mask))
    c = loss_curvature(kind, s, y, case.mask)
    assert torch.equal(c, loss_curvature(kind, case.s, case.targets, case.mask))
    assert bool((c[dropped] == 0).all())


@pytest.mark.parametrize("k", [1, 5, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_unmasked_nan_propagates(kind: str, k: int, dtype: torch.dtype, backend: str) -> None:
    case = make_case(kind, dtype, (3, 11, k), "none", (2, 2, 2))
    clean = loss_gradient(kind, case.s, case.targets, None)
    case.s[1, 2, 4, k // 2] = float("nan")
    value = loss_value(kind, case.s, case.targets, None)
    assert value.isnan().tolist() == [False, True]
    wrong = torch.zeros(2, 3, 11, k, dtype=torch.bool)
    wrong[1, 2, 4] = True
    if kind != "softmax":
        wrong[1, 2, 4] = torch.arange(k) == k // 2
    gradient = loss_gradient(kind, case.s, case.targets, None)
    assert torch.equal(gradient.isnan(), wrong)
    assert torch.equal(gradient[~wrong], clean[~wrong])
    if kind != "squared":  # whose curvature is one whatever s is
        assert torch.equal(loss_curvature(kind, case.s, case.targets, None).isnan(), wrong)


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_extreme_logits_stay_finite(kind: str, dtype: torch.dtype, backend: str) -> None:
    case = make_case(kind, dtype, (2, 9, 7), "bool")
    s = torch.where(case.s > 0, 1e4, -1e4).to(dtype)
    y = case.targets if kind == "softmax" else (case.targets > 0.5).to(dtype)
    value = loss_value(kind, s, y, case.mask)
    want = oracle_value(kind, in_double(kind, case._replace(s=s, targets=y)))
    torch.testing.assert_close(value, want, rtol=1e-13, atol=0)
    gradient = loss_gradient(kind, s, y, case.mask)
    c = loss_curvature(kind, s, y, case.mask)
    assert gradient.isfinite().all()
    assert c.isfinite().all()
    assert bool((gradient.abs() <= 1).all() & (c >= 0).all() & (c <= 1).all())


def test_large_logits_keep_the_tail_of_the_logistic_loss(backend: str) -> None:
    s = torch.tensor([25.0], dtype=torch.float64).view(1, 1, 1, 1)
    value = loss_value("logistic", s, torch.zeros_like(s), None)
    assert float(value) - 25.0 == pytest.approx(1.3887943864964e-11, rel=1e-3)


def test_everything_masked_is_zero(backend: str) -> None:
    case = make_case("softmax", torch.float32, (2, 3, 4))
    mask = torch.zeros(1, 2, 3, dtype=torch.bool)
    assert loss_value("softmax", case.s, case.targets, mask).item() == 0.0
    assert bool((loss_gradient("softmax", case.s, case.targets, mask) == 0).all())


# ---------------------------------------------------------------------------- buffers, refusals


@pytest.mark.parametrize("kind", KINDS)
def test_strided_inputs_and_output_in_place(kind: str, dtype: torch.dtype, backend: str) -> None:
    case = make_case(kind, dtype, (3, 5, 4), "bool")
    want = loss_gradient(kind, case.s, case.targets, case.mask)
    strided = case.s.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not strided.is_contiguous()
    assert torch.equal(loss_gradient(kind, strided, case.targets, case.mask), want)
    s = case.s.clone()
    assert torch.equal(loss_gradient(kind, s, case.targets, case.mask, out=s), want)
    Rs = case.Rs.clone()
    product = loss_hessian_product(want, case.Rs, rank_one=kind == "softmax")
    loss_hessian_product(want, Rs, rank_one=kind == "softmax", out=Rs)
    assert torch.equal(Rs, product)


def test_inputs_stay_untouched(backend: str) -> None:
    for kind in KINDS:
        case = make_case(kind, torch.float32, (3, 5, 4), "float")
        assert case.mask is not None
        before = [t.clone() for t in (case.s, case.targets, case.mask)]
        loss_value(kind, case.s, case.targets, case.mask)
        loss_gradient(kind, case.s, case.targets, case.mask)
        loss_curvature(kind, case.s, case.targets, case.mask)
        after = (case.s, case.targets, case.mask)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


s_, y_ = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
classes_ = torch.zeros(1, 2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("kind", "s", "targets", "mask", "error", "text"),
    [
        ("hinge", s_, y_, None, ValueError, "kind: got 'hinge'"),
        ("squared", s_[0], y_, None, ValueError, r"s: got shape \[2, 3, 4\], need \[G,T,B,k\]"),
        ("squared", s_, y_[:, :1], None, ValueError, "targets: got shape"),
        ("squared", s_, y_.double(), None, TypeError, "targets: got torch.float64"),
        ("squared", s_, None, None, (TypeError, ValueError), "targets"),
        ("softmax", s_, y_, None, (TypeError, ValueError), "targets"),
        ("softmax", s_, classes_.int(), None, TypeError, "targets: got torch.int32"),
        ("softmax", s_, classes_ + 4, None, ValueError, r"targets: got class 4, need 0\.\.3"),
        ("softmax", s_, classes_ - 1, None, ValueError, r"targets: got class -1, need 0\.\.3"),
        ("squared", s_, y_, classes_, TypeError, "mask: got torch.int64"),
        ("squared", s_, y_, torch.ones(1, 2, 4), ValueError, "mask: got shape"),
        ("squared", s_, y_, torch.full((1, 2, 3), -2.0), ValueError, "mask: got -2.0+, need"),
        ("squared", s_, y_, torch.full((1, 2, 3), torch.inf), ValueError, "mask: got inf"),
        ("squared", s_, y_, torch.full((1, 2, 3), torch.nan), ValueError, "mask: got nan"),
        ("squared", s_[:, :0], y_[:, :0], None, ValueError, "T: got 0"),
        ("squared", s_[:, :, :0], y_[:, :, :0], None, ValueError, "B: got 0"),
        ("squared", s_[..., :0], y_[..., :0], None, ValueError, "k: got 0"),
        ("squared", s_[:0], y_[:0], None, ValueError, "s: got group axis 0"),
        (
            "squared",
            s_.repeat(2, 1, 1, 1),
            y_.repeat(3, 1, 1, 1),
            None,
            ValueError,
            "targets: got group axis 3, need 1 or 2",
        ),
        ("squared", s_.half(), y_.half(), torch.ones(1, 2, 3), TypeError, "mask"),
    ],
)
def test_refuses_by_name(
    kind: str,
    s: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    error: type[Exception],
    text: str,
    backend: str,
) -> None:
    for op in (loss_value, loss_gradient):
        with pytest.raises(error, match=text):
            op(kind, s, targets, mask)


def test_refuses_unfit_output_buffers(backend: str) -> None:
    s = torch.zeros(1, 2, 3, 4)
    for out, error in (
        (torch.zeros(1, 2, 3, 5), ValueError),
        (torch.zeros(1, 2, 3, 4, dtype=torch.float64), TypeError),
        (torch.zeros(1, 2, 4, 3).transpose(2, 3), ValueError),
    ):
        with pytest.raises(error, match="out"):
            loss_gradient("squared", s, s, None, out=out)
        with pytest.raises(error, match="out"):
            loss_curvature("squared", s, None, None, out=out)
        with pytest.raises(error, match="out"):
            loss_hessian_product(s, s, out=out)


def test_masked_class_may_be_anything(backend: str) -> None:
    case = make_case("softmax", torch.float32, (2, 3, 4))
    mask = torch.ones(1, 2, 3, dtype=torch.bool)
    mask[0, 1, 2] = False
    y = case.targets.clone()
    y[0, 1, 2] = 2**40
    want = loss_value("softmax", case.s, case.targets, mask)
    assert torch.equal(loss_value("softmax", case.s, y, mask), want)
    # One shared row of classes under two masks: only the mask that keeps it refuses it.
    both = torch.stack([mask[0], torch.ones(2, 3, dtype=torch.bool)])
    with pytest.raises(ValueError, match="got class 1099511627776"):
        loss_gradient("softmax", case.s, y, both)


def test_compiled_module_checks_for_itself() -> None:
    """Called without the bindings it raises, whatever it is given."""
    m = native()
    s, y, out = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    value = torch.zeros(1, dtype=torch.float64)
    bad_class = torch.full((1, 2, 3), 4)
    refused = (ValueError, TypeError)
    for arguments in (
        (5, s, y, None, 1.0, out, 1),
        (-1, s, y, None, 1.0, out, 1),
        (0, s, y, None, 1.0, torch.zeros(2, 2, 3, 4)[:, :, :, :2], 1),
        (0, s[0], y, None, 1.0, out, 1),
        (0, s, y.double(), None, 1.0, out, 1),
        (0, s, y, None, 1.0, out.double(), 1),
        (0, s, y[:, :1].contiguous(), None, 1.0, out, 1),
        (0, s, y, torch.zeros(1, 2, 3, dtype=torch.uint8), 1.0, out, 1),
        (0, s, y, torch.zeros(1, 2, 2, dtype=torch.bool), 1.0, out, 1),
        (0, s, y, torch.full((1, 2, 3), -0.5), 1.0, out, 1),
        (2, s, bad_class, None, 1.0, out, 1),
        (2, s, y, None, 1.0, out, 1),
        (0, s, y, None, 1.0, y, 1),
        (0, None, y, None, 1.0, out, 1),
        (0, s, None, None, 1.0, out, 1),
        (0, s, y, None, 1.0, None, 1),
        (0, s, y, "mask", 1.0, out, 1),
        (0, s[:, :0].contiguous(), y[:, :0].contiguous(), None, 1.0, out, 1),
        (0, s.long(), y, None, 1.0, out, 1),
    ):
        with pytest.raises(refused):
            m.loss_gradient(*arguments)
    with pytest.raises(refused):
        m.loss_value(0, s, y, None, 1.0, value.float(), 1)
    with pytest.raises(refused):
        m.loss_value(0, s, y, None, 1.0, torch.zeros((), dtype=torch.float64), 1)
    for delta in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="delta: got"):
            m.loss_gradient(3, s, y, None, 1.0, out, 1, delta)
    with pytest.raises(ValueError, match="targets: got None"):
        m.loss_curvature(3, s, None, out, 1)
    with pytest.raises(refused):
        m.loss_curvature(3, s, None, out, 1, y.double())
    with pytest.raises(ValueError, match="rank_one: got 3"):
        m.loss_hessian_product(s, y, 3, 1.0, out, 1)
    with pytest.raises(refused):
        m.loss_hessian_product(s, y[:, :1].contiguous(), False, 1.0, out, 1)
    overlapping = torch.zeros(30)
    with pytest.raises(ValueError, match="out: shares memory with Rs"):
        m.loss_hessian_product(
            s, overlapping[:24].view(1, 2, 3, 4), False, 1.0, overlapping[6:].view(1, 2, 3, 4), 1
        )
    m.loss_gradient(0, s, y, None, 1.0, out, -5)  # a senseless thread count is one thread
