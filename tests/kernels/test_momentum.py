"""The momentum update on every backend against float64 algebra and against itself, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from hfcore.bindings.dispatch import native, use_backend
from hfcore.bindings.momentum import lookahead_point, momentum_update
from oracles.cases.momentum import FORMS, SIZES, assert_within, check, make


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("N", SIZES)
def test_against_algebra(N: int, form: str, dtype: torch.dtype, backend: str) -> None:
    for G, shared in ((1, False), (3, False), (3, True)):
        old = make(G, N, dtype, form, shared=shared)
        check(old, old.copy().run())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("N", [1, 17, 1009, 10_501])
def test_a_net_in_a_group_has_the_bits_that_it_has_alone(
    N: int, form: str, dtype: torch.dtype, backend: str
) -> None:
    for shared in (False, True):
        case = make(5, N, dtype, form, shared=shared)
        together = case.copy().run().outputs()
        for g in range(5):
            alone = case.net(g).run().outputs()
            assert all(torch.equal(a[g : g + 1], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_an_element_has_the_same_bits_wherever_it_stands(
    form: str, dtype: torch.dtype, backend: str
) -> None:
    """A flat buffer cut anywhere is updated as it is in one piece."""
    case = make(1, 8300, dtype, form)
    whole = case.copy().run().outputs()
    cuts = [0, 1, 4, 20, 33, 64, 257, 1000, 1777, 8299, 8300]
    parts = case.copy()
    for a, b in pairwise(cuts):
        ahead = None if parts.ahead is None else parts.ahead[:, a:b]
        arrays = (t[:, a:b] for t in parts[:3])
        momentum_update(*arrays, **case.rates, ahead=ahead, active=case.active)
    assert all(torch.equal(a, b) for a, b in zip(parts.outputs(), whole, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_bits_do_not_depend_on_threads(form: str, dtype: torch.dtype, threads: None) -> None:
    case = make(7, 40_009, dtype, form)
    results = []
    with use_backend("cpu"):
        for count in (1, 2, 3, 40):
            torch.set_num_threads(count)
            results.append(case.copy().run().outputs())
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_classical_momentum_is_no_lookahead(dtype: torch.dtype, backend: str) -> None:
    """With lookahead 0 the two points coincide, and ``ahead`` may be left out, to the bit."""
    case = make(3, 1009, dtype, "l2")
    zero = torch.zeros(3, dtype=torch.float64)
    kept = case._replace(rates=case.rates | {"lookahead": zero}, ahead=case.theta.clone())
    case.run()
    kept.run()
    assert torch.equal(case.theta, kept.theta)
    assert torch.equal(case.velocity, kept.velocity)
    assert torch.equal(kept.theta, kept.ahead)


def test_no_l2_is_an_l2_of_zero(dtype: torch.dtype, backend: str) -> None:
    case = make(2, 1009, dtype, "ahead")
    zero = case.rates | {"l2": torch.zeros(2, dtype=torch.float64)}
    with_zero = case.copy()._replace(rates=zero)
    pairs = zip(case.run().outputs(), with_zero.run().outputs(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("form", ["active", "l2 ahead active"])
def test_a_net_that_is_not_active_is_not_read(form: str, dtype: torch.dtype, backend: str) -> None:
    """Its NaN stay where they are and reach nobody."""
    case = make(4, 33, dtype, form)
    bad = case.copy()._replace(gradient=case.gradient.clone())
    for array in (bad.gradient, *bad.outputs()):
        array[1::2] = float("nan")
    pairs = zip(bad.run().outputs(), case.run().outputs(), strict=True)
    for got, want in pairs:
        assert torch.equal(got[::2], want[::2])
        assert bool(got[1::2].isnan().all())
    nobody = make(4, 33, dtype, form)._replace(active=torch.zeros(4, dtype=torch.bool))
    before = nobody.copy()
    pairs = zip(nobody.run().outputs(), before.outputs(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_nan_and_infinity_stay_in_their_element(dtype: torch.dtype, backend: str) -> None:
    case = make(2, 1009, dtype, "l2 ahead")
    case.gradient[0, 500], case.velocity[1, 1008] = float("nan"), float("inf")
    theta, velocity, ahead = case.run().outputs()
    for array in (theta, velocity, ahead):
        strange = (~array.isfinite()).nonzero().tolist()
        assert strange == [[0, 500], [1, 1008]]


def test_nothing_is_written_outside(dtype: torch.dtype, backend: str) -> None:
    """Views that start at any element, with a sentinel on both sides."""
    case = make(1, 1009, dtype, "l2 ahead")
    pools = [torch.full((1, 1009 + 40), 7.0, dtype=dtype) for _ in range(3)]
    views = [pool[:, 17 + i : 17 + i + 1009] for i, pool in enumerate(pools)]
    for view, array in zip(views, case.outputs(), strict=True):
        view.copy_(array)
    case._replace(theta=views[0], velocity=views[1], ahead=views[2]).run()
    case.run()
    for i, (pool, view, want) in enumerate(zip(pools, views, case.outputs(), strict=True)):
        assert torch.equal(view, want)
        outside = torch.cat([pool[:, : 17 + i], pool[:, 17 + i + 1009 :]], dim=1)
        assert bool((outside == 7.0).all())


def test_floats_serve_all_nets(dtype: torch.dtype, backend: str) -> None:
    case = make(3, 33, dtype, "l2 ahead")
    numbers = {"learning_rate": 0.1, "momentum": 1, "lookahead": 0.995, "l2": 0.3}
    rates = {n: torch.full((3,), v, dtype=torch.float64) for n, v in numbers.items()}
    other = case.copy()
    momentum_update(*other[:3], **numbers, ahead=other.ahead)
    pairs = zip(case._replace(rates=rates).run().outputs(), other.outputs(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(kind: torch.dtype) -> None:
    """The reference serves it, in float32: θ, v and ahead are their float32 values, rounded."""
    half = make(2, 33, kind, "l2 ahead")
    wide = half._replace(**{n: getattr(half, n).float() for n in ("theta", "velocity", "gradient")})
    wide = wide._replace(ahead=half.ahead.float())
    with use_backend("reference"):
        wide.run()
    for got, want in zip(half.run().outputs(), wide.outputs(), strict=True):
        assert torch.equal(got, want.to(kind))


def test_gradient_of_any_layout(dtype: torch.dtype, backend: str) -> None:
    case = make(3, 33, dtype, "ahead", shared=True)
    want = case.copy().run().outputs()
    strided = case.gradient.expand(2, 33).t().contiguous().t()[:1]
    expanded = case.gradient.expand(3, 33).requires_grad_()
    negated = torch._neg_view(-case.gradient)
    for gradient in (strided, expanded, negated):
        got = case.copy()._replace(gradient=gradient).run().outputs()
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# ---------------------------------------------------------------------------- the lookahead point


@pytest.mark.parametrize("N", SIZES)
def test_lookahead_point(N: int, dtype: torch.dtype, backend: str) -> None:
    """θ + μv with three roundings, and the very bits that the update leaves in ``ahead``."""
    case = make(3, N, dtype, "ahead")
    theta, velocity, ahead = case.run().outputs()
    out = torch.full_like(theta, float("nan"))
    assert lookahead_point(theta, velocity, case.rates["lookahead"], out=out) is out
    assert torch.equal(out, ahead)
    assert torch.equal(lookahead_point(theta, velocity, case.rates["lookahead"]), ahead)
    step = case.rates["lookahead"].unsqueeze(1) * velocity.double()
    want = theta.double() + step
    u = torch.finfo(dtype).eps / (1 if dtype == torch.float64 else 2) * 1.0001
    assert_within(out, want, u * (3 * step.abs() + want.abs()))


def test_lookahead_point_of_active_nets(dtype: torch.dtype, backend: str) -> None:
    theta, velocity = make(3, 33, dtype)[:2]
    want = lookahead_point(theta, velocity, 0.9)
    out = torch.full_like(theta, 7.0)
    lookahead_point(theta, velocity, 0.9, out=out, active=torch.tensor([True, False, True]))
    assert torch.equal(out[::2], want[::2])
    assert bool((out[1] == 7.0).all())
    for a, b in pairwise([0, 1, 5, 12, 33]):
        alone = lookahead_point(theta[1:2, a:b], velocity[1:2, a:b], 0.9)
        assert torch.equal(alone, want[1:2, a:b])


def test_lookahead_point_refuses_by_name(backend: str) -> None:
    theta, velocity = make(3, 6, torch.float32)[:2]
    for given, error, text in (
        ({"velocity": torch.zeros(3, 7)}, ValueError, "velocity: got shape"),
        ({"theta": torch.zeros(3)}, ValueError, "theta: got shape"),
        ({"momentum": torch.zeros(2, dtype=torch.float64)}, ValueError, "momentum: got shape"),
        ({"momentum": None}, TypeError, "momentum: got NoneType"),
        ({"out": torch.zeros(6, 3).t()}, ValueError, "out: is not contiguous"),
        ({"active": torch.ones(3)}, TypeError, r"active: got torch\.float32"),
    ):
        with pytest.raises(error, match=text):
            lookahead_point(**{"theta": theta, "velocity": velocity, "momentum": 0.9} | given)


# ---------------------------------------------------------------------------- refusals


def arguments() -> dict[str, Any]:
    case = make(3, 6, torch.float32, "l2 ahead active")
    return {
        "theta": case.theta,
        "velocity": case.velocity,
        "gradient": case.gradient,
        "ahead": case.ahead,
        "active": case.active,
        **case.rates,
    }


ARRAYS = ("theta", "velocity", "gradient", "ahead")
RATES = ("learning_rate", "momentum", "lookahead", "l2")


@pytest.mark.parametrize("name", ARRAYS)
def test_refuses_arrays_by_name(name: str, backend: str) -> None:
    bad: list[tuple[object, type[Exception], str]] = [
        (torch.zeros(6), ValueError, "got shape"),
        (torch.zeros(2, 6), ValueError, "got shape|got group axis"),
        (torch.zeros(3, 7), ValueError, "got shape"),
        (torch.zeros(3, 6, dtype=torch.float64), TypeError, "got torch"),
        (torch.zeros(3, 6, dtype=torch.int64), TypeError, "got torch"),
        (1.0, TypeError, "got float"),
        (torch.zeros(3, 6).to_sparse(), TypeError, "layout"),
    ]
    if name != "gradient":
        bad.append((torch.zeros(6, 3).t(), ValueError, "contiguous"))
        bad.append((torch.zeros(1, 6).expand(3, 6), ValueError, "contiguous"))
        bad.append((torch.zeros(3, 6, requires_grad=True), ValueError, "requires grad"))
    for value, error, text in bad:
        given = arguments()
        before = {n: v.clone() for n, v in given.items()}
        # Where θ is unlike all others, the next to be checked is named.
        named = "velocity" if name == "theta" and text.startswith("got shape|") else name
        named = "velocity|theta" if name == "theta" else named
        with pytest.raises(error, match=f"({named}): .*({text})"):
            momentum_update(**{**given, name: value})
        assert all(torch.equal(given[n], before[n]) for n in given)


@pytest.mark.parametrize("name", [*RATES, "active"])
def test_refuses_coefficients_by_name(name: str, backend: str) -> None:
    for value, error, text in (
        (torch.zeros(2, dtype=torch.float64), ValueError, "got shape"),
        (torch.zeros(3, 1, dtype=torch.float64), ValueError, "got shape"),
        (torch.zeros(3), TypeError, r"got torch\.float32"),
        ("0.1", TypeError, "got str"),
        (True, TypeError, "got bool"),
    ):
        with pytest.raises(error, match=f"{name}: {text}"):
            momentum_update(**{**arguments(), name: value})


def test_refuses_empty_and_complex(backend: str) -> None:
    rates = {"learning_rate": 0.1, "momentum": 0.9}
    for shape, size in (((0, 3), "G"), ((3, 0), "N")):
        e = torch.zeros(shape)
        with pytest.raises(ValueError, match=f"{size}: got 0"):
            momentum_update(e, e, e, **rates)
    c = torch.zeros(1, 3, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"theta: got torch\.complex64"):
        momentum_update(c, c.clone(), c.clone(), **rates)


def test_compiled_form_refuses_shared_memory() -> None:
    given = arguments()
    with use_backend("cpu"):
        for a, b in (
            ("theta", "velocity"),
            ("theta", "gradient"),
            ("theta", "ahead"),
            ("velocity", "gradient"),
            ("velocity", "ahead"),
            ("ahead", "gradient"),
        ):
            with pytest.raises(ValueError, match=f"{a}: shares memory with {b}"):
                momentum_update(**{**given, b: given[a]})
        long = torch.zeros(9, 6)
        with pytest.raises(ValueError, match="theta: shares memory with velocity"):
            momentum_update(**{**given, "theta": long[:3], "velocity": long[2:5]})


def test_compiled_module_checks_for_itself() -> None:
    m = native()
    names = ("theta", "velocity", "gradient", *RATES, "ahead", "active")
    strange = (
        torch.zeros(3),
        torch.zeros(4),
        torch.zeros(2, 6),
        torch.zeros(6, 3).t(),
        torch.zeros(3, 6, dtype=torch.float64),
        torch.zeros(3, 6, dtype=torch.int32),
        torch.zeros(0, 6),
        torch.zeros(3, 0),
        1.0,
        "x",
    )
    for name in names:
        for bad in (*strange, *([] if name in ("l2", "ahead", "active") else [None])):
            given = arguments() | {name: bad}
            with pytest.raises((ValueError, TypeError)):
                m.momentum_update(*(given[n] for n in names), 1)
    given = arguments()
    m.momentum_update(*(given[n] for n in names), -3)
    names = ("theta", "velocity", "momentum", "out", "active")
    good = {**arguments(), "out": torch.zeros(3, 6)}
    for name in names:
        for bad in (*strange, *([] if name == "active" else [None])):
            with pytest.raises((ValueError, TypeError)):
                m.lookahead_point(*((good | {name: bad})[n] for n in names), 1)
    with pytest.raises(ValueError, match="out: shares memory with theta"):
        m.lookahead_point(*((good | {"out": good["theta"]})[n] for n in names), 1)
