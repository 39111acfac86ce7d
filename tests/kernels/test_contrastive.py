"""CD-1 of Boltzmann machines: every form against sums over cases, and its update in place."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.bindings.contrastive import contrastive_gradient, contrastive_update
from hfcore.bindings.dispatch import native
from hfcore.bindings.forms.contrastive import cuda as by_ops

# B, n, m: ones, primes, tiles of 6 and 12 cases and panels of 8 to 32 units ± 1, and more than a
# block of depth (256) in the cases, the visible and the hidden units.
SHAPES = (
    (1, 1, 1),
    (2, 3, 1),
    (13, 1, 7),
    (11, 31, 33),
    (12, 32, 31),
    (7, 17, 64),
    (129, 65, 5),
    (5, 300, 24),
    (4, 23, 270),
)
IDS = [f"B{B}-n{n}-m{m}" for B, n, m in SHAPES]
UNITS = [(v, h) for v in ("logistic", "linear") for h in ("logistic", "linear")]
RATES = {"learning_rate": 0.3, "momentum": 0.9, "weight_cost": 0.01}


class Case:
    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, hidden: str = "logistic", G: int = 1
    ) -> None:
        B, n, m = self.shape = shape
        draw = torch.Generator().manual_seed(sum(shape))
        self.N = m * n + m + n
        size = {"generator": draw, "dtype": dtype}
        self.v = torch.rand(G, B, n, **size)  # type: ignore[call-overload]
        noise = torch.rand if hidden == "logistic" else torch.randn
        self.noise = noise(G, B, m, **size)  # type: ignore[operator]
        self.theta = torch.randn(G, self.N, **size) / math.sqrt(n)  # type: ignore[call-overload]
        self.velocity = torch.randn(G, self.N, **size)  # type: ignore[call-overload]


def expected(case: Case, visible: str, hidden: str, g: int = 0) -> tuple[float, Tensor, Tensor]:
    """Error, gradient ``[N]`` and its size by parts, case by case in float64."""
    _, n, m = case.shape
    W, b_h, b_v = case.theta[g].double().split([m * n, m, n])
    W = W.view(m, n)
    phi = {"logistic": torch.sigmoid, "linear": lambda z: z}
    total, size = torch.zeros(case.N, dtype=torch.float64), torch.zeros(
        case.N, dtype=torch.float64
    )  # fmt: skip
    error = 0.0
    for v, u in zip(case.v[g].double(), case.noise[g].double(), strict=True):
        p = phi[hidden](W @ v + b_h)
        h = (u < p).double() if hidden == "logistic" else p + u
        v1 = phi[visible](W.T @ h + b_v)
        p1 = phi[hidden](W @ v1 + b_h)
        up, down = (torch.cat([torch.outer(a, b).flatten(), a, b]) for a, b in ((p, v), (p1, v1)))
        total += down - up
        size += down.abs() + up.abs()
        error += float((v1 - v).square().sum())
    B = case.shape[0]
    return error, total / B, size / B


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    taken: torch.dtype = request.param
    return taken


@pytest.mark.parametrize(("visible", "hidden"), UNITS)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_gradient(
    shape: tuple[int, int, int], visible: str, hidden: str, dtype: torch.dtype, backend: str
) -> None:
    case = Case(shape, dtype, hidden)
    out = torch.full((1, case.N), math.nan, dtype=dtype)
    errors, found = contrastive_gradient(
        case.v, case.noise, case.theta, visible=visible, hidden=hidden, out=out
    )
    assert found is out
    assert errors.dtype == torch.float64
    error, want, size = expected(case, visible, hidden)
    # Three products one after the other, each of max(n, m) terms, then one of 2B; linear units
    # carry what came before them on in full.
    B, n, m = shape
    close = 4 * torch.finfo(dtype).eps * (math.sqrt(n) + math.sqrt(m) + math.sqrt(2 * B) + 8)
    scale = size + float(size.max())
    assert bool(((found[0].double() - want).abs() <= close * scale * 4).all())
    assert float(errors) == pytest.approx(error, rel=close * 16, abs=close)


@pytest.mark.parametrize(("visible", "hidden"), UNITS)
def test_update_is_the_gradient_and_a_step(
    visible: str, hidden: str, dtype: torch.dtype, backend: str
) -> None:
    case = Case((9, 37, 18), dtype, hidden, G=2)
    units = {"visible": visible, "hidden": hidden}
    before, g = contrastive_gradient(case.v, case.noise, case.theta, **units)
    cost = torch.zeros(case.N, dtype=dtype)
    cost[: 37 * 18] = RATES["weight_cost"]
    velocity = RATES["momentum"] * case.velocity - RATES["learning_rate"] * (g + cost * case.theta)
    theta = case.theta + velocity
    errors = contrastive_update(case.v, case.noise, case.theta, case.velocity, **units, **RATES)
    torch.testing.assert_close(errors, before, rtol=0, atol=0)
    close = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(case.velocity, velocity, rtol=close, atol=close)
    torch.testing.assert_close(case.theta, theta, rtol=close, atol=close)


@pytest.mark.parametrize("shape", [(100, 130, 97), (3, 5, 2)])
def test_bits_do_not_depend_on_threads_or_group(shape: tuple[int, int, int], cpu: None) -> None:
    case = Case(shape, torch.float32, G=3)
    case.v = case.v[:1]  # shared
    units = {"visible": "logistic", "hidden": "logistic"}
    torch.set_num_threads(1)
    errors, want = contrastive_gradient(case.v, case.noise, case.theta, **units)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        found = contrastive_gradient(case.v, case.noise, case.theta, **units)
        assert torch.equal(found[0], errors)
        assert torch.equal(found[1], want)
    for g in range(3):
        alone = contrastive_gradient(case.v, case.noise[g, None], case.theta[g, None], **units)
        assert torch.equal(alone[1][0], want[g])
    theta, velocity = case.theta.clone(), case.velocity.clone()
    contrastive_update(case.v, case.noise, theta, velocity, **units, **RATES)
    own = case.theta[1:2].clone(), case.velocity[1:2].clone()
    contrastive_update(case.v, case.noise[1:2], *own, **units, **RATES)
    assert torch.equal(own[0], theta[1:2])
    assert torch.equal(own[1], velocity[1:2])


@pytest.mark.parametrize(("visible", "hidden"), UNITS)
def test_the_dense_ops_give_the_same(visible: str, hidden: str, cpu: None) -> None:
    """What serves CUDA, here on the dense ops of the CPU."""
    case = Case((14, 21, 40), torch.float64, hidden, G=2)
    units = {"visible": visible, "hidden": hidden}
    out = torch.full((2, case.N), math.nan, dtype=torch.float64)
    errors = by_ops.contrastive_gradient(case.v, case.noise, case.theta, **units, out=out)
    want = contrastive_gradient(case.v, case.noise, case.theta, **units)
    torch.testing.assert_close(errors, want[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(out, want[1], rtol=1e-11, atol=1e-12)


def test_half_precision_has_a_form() -> None:
    case = Case((4, 3, 2), torch.float32)
    v, noise, theta = (t.bfloat16() for t in (case.v, case.noise, case.theta))
    _, g = contrastive_gradient(v, noise, theta, visible="logistic", hidden="logistic")
    assert g.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visible": "tanh"}, "visible: got 'tanh', need one of 'logistic', 'linear'"),
        ({"hidden": 1}, "hidden: got 1, need one of"),
        ({"v": torch.rand(1, 0, 3)}, r"noise: got shape \[1, 4, 2\], need \[G,0,m\]"),
        ({"v": torch.rand(4, 3)}, r"v: got shape \[4, 3\], need \[G,B,n\]"),
        ({"v": torch.ones(1, 4, 3, dtype=torch.int64)}, "v: got torch.int64, need a floating"),
        ({"noise": torch.rand(1, 3, 2)}, r"noise: got shape \[1, 3, 2\], need \[G,4,m\]"),
        ({"noise": torch.rand(1, 4, 2).double()}, "noise: got torch.float64, need torch.float32"),
        ({"theta": torch.rand(1, 12)}, r"theta: got shape \[1, 12\], need \[G,11\]"),
        ({"v": torch.rand(3, 4, 3)}, "v: got group axis 3, need 1 like theta"),
        ({"velocity": torch.rand(2, 11)}, "velocity: got shape"),
        ({"velocity": 1}, "velocity: got int, need a torch.Tensor"),
        ({"learning_rate": math.nan}, "learning_rate: got nan, need a finite number"),
        ({"weight_cost": "0"}, "weight_cost: got str, need a float"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str, backend: str) -> None:
    given = {
        "v": torch.rand(1, 4, 3), "noise": torch.rand(1, 4, 2), "theta": torch.rand(1, 11),
        "velocity": torch.zeros(1, 11), "visible": "logistic", "hidden": "logistic", **RATES,
    }  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=message):
        contrastive_update(**(given | change))


def test_shared_memory_is_refused(cpu: None) -> None:
    theta, units = torch.rand(1, 11), {"visible": "logistic", "hidden": "logistic"}
    v, noise = torch.rand(1, 4, 3), torch.rand(1, 4, 2)
    with pytest.raises(ValueError, match="out: shares memory with theta, need its own"):
        contrastive_gradient(v, noise, theta, **units, out=theta)
    with pytest.raises(ValueError, match="theta: shares memory with velocity, need its own"):
        contrastive_update(v, noise, theta, theta, **units, **RATES)


def test_the_compiled_form_checks_again(cpu: None) -> None:
    v, noise, theta = torch.rand(1, 4, 3), torch.rand(1, 4, 2), torch.rand(1, 11)
    velocity, out = torch.rand(1, 11), torch.rand(1, 11)
    errors = torch.zeros(1, dtype=torch.float64)
    good = (v, noise, theta, velocity, out, False, False, 0.1, 0.9, 0.0, errors, 1)
    native().contrastive_step(*good)
    for place, value, text in (
        (0, v[0], "v: got shape"),
        (1, noise[:, :3].contiguous(), "noise: got shape"),
        (1, torch.rand(1, 4, 0), "need at least 1 of each"),
        (2, torch.rand(1, 10), "theta: got 10 parameters, need"),
        (2, theta.double(), "theta: wrong dtype"),
        (2, velocity, "velocity: shares memory with theta"),
        (3, torch.rand(2, 11), "velocity: got shape"),
        (4, velocity, "velocity: shares memory with out"),
        (10, torch.zeros(1), "errors: wrong dtype"),
        (10, torch.zeros(0, dtype=torch.float64), "need at least 1 of each"),
    ):
        bad: list[Any] = list(good)
        bad[place] = value
        with pytest.raises((ValueError, TypeError), match=text):
            native().contrastive_step(*bad)
    nothing = (*good[:3], None, None, *good[5:])
    with pytest.raises(ValueError, match="velocity and out: got neither"):
        native().contrastive_step(*nothing)


def test_numbers_too_small_to_be_normal_cost_and_change_nothing(cpu: None) -> None:
    """They are taken for zero, as in the other products of layers."""
    case = Case((8, 6, 5), torch.float32)
    units = {"visible": "linear", "hidden": "linear"}
    tiny = torch.full_like(case.v, 1e-40)
    zero = contrastive_gradient(torch.zeros_like(tiny), case.noise, case.theta, **units)
    found = contrastive_gradient(tiny, case.noise, case.theta, **units)
    assert torch.equal(found[1], zero[1])


def test_what_is_not_finite_stays_so(backend: str) -> None:
    case = Case((8, 6, 5), torch.float32)
    case.v[0, 3, 2] = math.inf
    units = {"visible": "logistic", "hidden": "logistic"}
    errors, g = contrastive_gradient(case.v, case.noise, case.theta, **units)
    assert not math.isfinite(float(errors))
    assert not bool(g.isfinite().all())
    with hf.use_backend("reference"):
        want = contrastive_gradient(case.v, case.noise, case.theta, **units)[1]
    assert torch.equal(g.isfinite(), want.isfinite())
