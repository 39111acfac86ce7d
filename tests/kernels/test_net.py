"""Loss, gradient and update of whole nets against autograd in float64, on every backend."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from hfcore.bindings.dispatch import native, use_backend
from hfcore.bindings.forms.net.cuda import layer_by_layer
from hfcore.bindings.loss import NET_KINDS
from hfcore.bindings.momentum import Step, lookahead_point, momentum_update
from hfcore.bindings.net import Net, net_gradient, net_update
from oracles.cases.net import CASES, NETS, Case, check, oracle


@pytest.mark.parametrize("kind", NET_KINDS)
@pytest.mark.parametrize("B", CASES)
@pytest.mark.parametrize("net", NETS)
def test_against_algebra(net: str, B: int, kind: str, dtype: torch.dtype, backend: str) -> None:
    check(Case(net, B, kind, dtype))


@pytest.mark.parametrize("kind", NET_KINDS)
@pytest.mark.parametrize("own_data", [False, True], ids=["shared data", "own data"])
def test_groups(kind: str, own_data: bool, dtype: torch.dtype, backend: str) -> None:
    check(Case("primes", 17, kind, dtype, G=3, own_data=own_data))


@pytest.mark.parametrize("kind", NET_KINDS)
@pytest.mark.parametrize("own_data", [False, True], ids=["shared data", "own data"])
@pytest.mark.parametrize("B", [33, 700], ids=["small", "large"])
def test_a_net_in_a_group_has_the_bits_that_it_has_alone(
    kind: str, B: int, own_data: bool, dtype: torch.dtype, cpu: None
) -> None:
    """Small nets are left to one thread each, all threads work on a large one."""
    torch.set_num_threads(2)
    case = Case("deep", B, kind, dtype, G=5, own_data=own_data)
    losses, gradients = case.run()
    for g in range(5):
        loss, gradient = case.one(g).run()
        assert torch.equal(gradients[g], gradient[0])
        assert torch.equal(losses[g], loss[0])


@pytest.mark.parametrize("G", [1, 5])
@pytest.mark.parametrize("kind", NET_KINDS)
def test_bits_do_not_depend_on_threads(kind: str, G: int, dtype: torch.dtype, cpu: None) -> None:
    found = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        losses, gradient = Case("deep", 300, kind, dtype, G=G).run()
        found.append((losses, gradient))
    for losses, gradient in found[1:]:
        assert torch.equal(losses, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("kind", ["squared", "logistic"])
def test_targets_that_are_the_inputs(kind: str, dtype: torch.dtype, backend: str) -> None:
    case = Case("autoencoder", 19, kind, dtype)
    case.targets = case.x
    check(case)
    losses, gradient = case.run()
    before = gradient.clone()
    case.targets = case.x.clone()
    again, gradient = case.run()
    assert torch.equal(gradient, before)
    assert torch.equal(again, losses)


def test_targets_that_begin_where_the_inputs_do(backend: str) -> None:
    """The same memory in another shape is other data."""
    case = Case("one layer", 4)
    memory = torch.rand(12)
    case.x, case.targets = memory.view(1, 4, 3), memory[:8].view(1, 4, 2)
    check(case)


def test_small_losses_are_not_rounded_to_one(cpu: None) -> None:
    """log(1 + e) of an e far below the machine's precision of 1."""
    theta = torch.tensor([[40.0, 0.0]], dtype=torch.float64)
    x = torch.ones(1, 21, 1, dtype=torch.float64)
    losses, _ = net_gradient(Net("logistic", (1, 1), ("linear",)), x, x, theta)
    want = 21 * torch.exp(torch.tensor([-40.0], dtype=torch.float64))
    torch.testing.assert_close(losses, want, rtol=1e-12, atol=0)


def test_long_sums_of_logarithms(cpu: None) -> None:
    """More cases than the product of all 1 + e could hold."""
    x = torch.zeros(1, 40_001, 1)
    losses, _ = net_gradient(Net("logistic", (1, 1), ("linear",)), x, x, torch.zeros(1, 2))
    assert float(losses) == pytest.approx(40_001 * 0.6931471805599453, rel=1e-12)


def test_saturated_outputs_stay_finite(dtype: torch.dtype, backend: str) -> None:
    theta = torch.tensor([[1e4, 0.0]], dtype=dtype)
    x = torch.tensor([[[-1.0], [1.0]]], dtype=dtype)
    y = torch.tensor([[[1.0], [0.0]]], dtype=dtype)
    losses, gradient = net_gradient(Net("logistic", (1, 1), ("linear",)), x, y, theta)
    assert losses.tolist() == [2e4]
    assert gradient.tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("kind", NET_KINDS)
def test_a_nan_reaches_loss_and_gradient(kind: str, dtype: torch.dtype, backend: str) -> None:
    case = Case("tiles", 20, kind, dtype, G=2)
    case.theta[1, 0] = torch.nan
    case.activations = ("logistic", "logistic", "linear")  # relu's derivative at NaN is 0
    losses, gradient = case.run()
    assert losses.isnan().tolist() == [False, True]
    assert not gradient[0].isnan().any()
    assert gradient[1].isnan().all()


def test_nothing_is_written_outside(dtype: torch.dtype, backend: str) -> None:
    case = Case("primes", 17, dtype=dtype, G=2)
    memory = torch.full((2 * case.theta.shape[1] + 64,), 7.0, dtype=dtype)
    case.out = memory[32:-32].view_as(case.theta)
    before = [t.clone() for t in (case.x, case.targets, case.theta)]
    case.run()
    assert (memory[:32] == 7).all()
    assert (memory[-32:] == 7).all()
    for t, want in zip((case.x, case.targets, case.theta), before, strict=True):
        assert torch.equal(t, want)


def test_any_stride_and_parameters_go_in(dtype: torch.dtype, backend: str) -> None:
    case = Case("primes", 17, dtype=dtype)
    losses, gradient = case.run()
    before = gradient.clone()
    case.x = case.x.mT.contiguous().mT
    case.targets = torch.complex(case.targets, -case.targets).conj().imag
    case.theta = torch.stack([case.theta, case.theta], 2)[:, :, 0].requires_grad_()
    again, gradient = case.run()
    exact = 0 if backend == "cpu" else 1e-5
    assert not gradient.requires_grad
    torch.testing.assert_close(gradient, before, rtol=exact, atol=exact)
    torch.testing.assert_close(again, losses, rtol=exact, atol=exact)


def test_without_a_buffer(backend: str) -> None:
    case = Case("tiles", 5)
    want = case.run()[1].clone()
    case.out = None  # type: ignore[assignment]
    assert torch.equal(case.run()[1], want)


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"sizes": (3,)}, ValueError, r"sizes: got \[3\], need at least inputs and one layer"),
        ({"sizes": (3, 0)}, ValueError, r"sizes: got \[3, 0\], need at least 1 unit a layer"),
        ({"sizes": (3.0, 2)}, TypeError, "sizes: got 3.0, need an int for every layer"),
        ({"activations": ()}, ValueError, "activations: got 0, need 1"),
        ({"activations": ("sin",)}, ValueError, "activations: got 'sin', need one of 'linear'"),
        ({"kind": "hinge"}, ValueError, "kind: got 'hinge', need one of 'squared'"),
        ({"x": torch.rand(1, 4, 4)}, ValueError, r"x: got shape \[1, 4, 4\], need \[G,B,3\]"),
        ({"x": torch.rand(1, 0, 3)}, ValueError, "B: got 0, need at least 1"),
        ({"x": torch.zeros(1, 4, 3, dtype=torch.int64)}, TypeError, "x: got torch.int64"),
        ({"theta": torch.rand(1, 9)}, ValueError, r"theta: got shape \[1, 9\], need \[G,8\]"),
        ({"theta": torch.rand(1, 8).double()}, TypeError, "theta: got torch.float64, need torch"),
        ({"theta": torch.rand(0, 8)}, ValueError, "G: got 0, need at least 1"),
        ({"targets": torch.rand(1, 4, 3)}, ValueError, r"targets: got shape \[1, 4, 3\]"),
        ({"targets": torch.rand(2, 4, 2)}, ValueError, "out: got shape"),
        ({"kind": "softmax"}, ValueError, r"targets: got shape \[1, 4, 2\], need \[G,4\]"),
        (
            {"kind": "softmax", "targets": torch.full((1, 4), 2)},
            ValueError,
            r"targets: got class 2, need 0\.\.1",
        ),
        ({"scale": float("nan")}, ValueError, "scale: got nan, need a finite number"),
        ({"out": torch.zeros(1, 9)}, ValueError, r"out: got shape \[1, 9\], need \[1,8\]"),
        ({"out": torch.zeros(8, 1).mT}, None, ""),
    ],
)
def test_refuses_by_name(
    change: dict[str, object], error: type[Exception] | None, text: str, backend: str
) -> None:
    case = Case("one layer", 4)
    arguments = {"scale": 1.0, **change}
    scale = arguments.pop("scale")
    for name, value in arguments.items():
        setattr(case, name, value)
    if error is None:
        case.run()
        return
    with pytest.raises(error, match=text):
        case.run(scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x", "targets", "theta"])
def test_refuses_shared_memory(name: str, backend: str) -> None:
    case = Case("ones", 8)  # everything in one piece of memory
    memory = torch.rand(20)
    case.out = memory[8:12].view(1, 4)
    parts = {"x": memory[4:12].view(1, 8, 1), "targets": memory[4:12].view(1, 8, 1)}
    setattr(case, name, parts.get(name, memory[10:14].view(1, 4)))
    with pytest.raises(ValueError, match=f"out: shares memory with {name}, need its own"):
        case.run()


def test_the_compiled_form_checks_by_itself(cpu: None) -> None:
    x, y, theta, out = torch.rand(1, 4, 3), torch.rand(1, 4, 2), torch.rand(1, 8), torch.zeros(1, 8)
    losses = torch.zeros(1, dtype=torch.float64)
    good = (0, x, y, theta, [3, 2], [0], 1.0, out, losses, 1)
    native().net_gradient(*good)
    for place, value, text in (
        (0, 3, "kind: got 3"),
        (1, x[0], "x: got shape"),
        (1, x.double(), "targets: wrong dtype"),
        (2, y[:, :3], "targets: got shape"),
        (3, torch.rand(1, 7), "theta: got 7 parameters"),
        (3, torch.rand(1, 9), "theta: got 9 parameters, need 8"),
        (4, [3], "sizes: got fewer than two"),
        (4, [3, -2], "sizes: got -2"),
        (4, [2**62, 2**62], "fewer than the net of these sizes has"),
        (5, [4], "activations: got 4"),
        (5, [0, 0], "activations: got 2, need 1"),
        (7, torch.zeros(0, 8), "G: got 0"),
        (7, theta, "out: shares memory with theta"),
        (8, torch.zeros(2, dtype=torch.float64), "losses: got shape"),
        (8, torch.zeros(1), "losses: wrong dtype"),
    ):
        bad = list(good)
        bad[place] = value
        with pytest.raises((ValueError, TypeError), match=text):
            native().net_gradient(*bad)


def test_half_precision_scales_last() -> None:
    """What a mean over many cases is, must not be lost before it is summed."""
    x = torch.full((1, 1000, 1), 1e-3, dtype=torch.float16)
    theta = torch.ones(1, 4, dtype=torch.float16)
    theta[0, 1::2] = 0
    net = Net("squared", (1, 1, 1), ("linear", "linear"))
    _, gradient = net_gradient(net, x, x * 0, theta, scale=1e-3)
    torch.testing.assert_close(gradient[0, 3], torch.tensor(1e-3, dtype=torch.float16))


@pytest.mark.parametrize("kind", NET_KINDS)
@pytest.mark.parametrize("net", NETS)
def test_the_form_of_cuda_data(net: str, kind: str, dtype: torch.dtype, cpu: None) -> None:
    """The ops it is made of, on the CPU."""
    case = Case(net, 17, kind, dtype, G=3)
    want_losses, want = case.run()
    out = torch.full_like(want, torch.nan)
    losses = layer_by_layer(case.net, case.x, case.targets, case.theta, scale=0.3, out=out)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(losses.expand(3), want_losses, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(out, want, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------- updates

SCALE = 0.3


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def step_of(G: int, *, ahead: bool = True, l2: bool = False) -> Step:
    """Coefficients of its own for every net, not representable in float32; one looks not ahead."""
    nets = torch.arange(G, dtype=torch.float64)
    momentum = 0.9 - 0.1 * nets / 3
    lookahead = momentum * (nets != 1) if ahead else torch.zeros_like(momentum)
    return Step(0.05 + 0.01 * nets / 3, momentum, lookahead, 0.01 + nets / 300 if l2 else None)


class Update:
    """A net with a velocity."""

    def __init__(self, case: Case, step: Step) -> None:
        self.case, self.step = case, step
        draw = torch.Generator().manual_seed(7)
        self.velocity = torch.randn(case.theta.shape, generator=draw).to(case.theta) / 10
        self.active: Tensor | None = None

    @property
    def given(self) -> tuple[Net, Tensor, Tensor]:
        return self.case.net, self.case.x, self.case.targets

    def in_one(self, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """θ, v and the losses, from copies."""
        theta, velocity = self.case.theta.clone(), self.velocity.clone()
        losses = net_update(
            *self.given, theta, velocity, self.step, scale=SCALE, active=self.active, out=out
        )
        return theta, velocity, losses

    def in_turn(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same by the ops it stands for, and the gradient."""
        theta, velocity = self.case.theta.clone(), self.velocity.clone()
        point = lookahead_point(theta, velocity, self.step.lookahead)
        losses, gradient = net_gradient(*self.given, point, scale=SCALE)
        rate, momentum, _, l2 = self.step
        momentum_update(
            theta,
            velocity,
            gradient,
            learning_rate=rate,
            momentum=momentum,
            l2=l2,
            ahead=point,
            active=self.active,
        )
        return theta, velocity, losses, gradient


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n} threads")
def threads(request: pytest.FixtureRequest, cpu: None) -> int:
    torch.set_num_threads(request.param)
    return request.param


FORMS = [
    {"ahead": ahead, "l2": l2} for ahead, l2 in product([False, True], repeat=2)
]  # classical and Nesterov's


@pytest.mark.parametrize("kind", NET_KINDS)
@pytest.mark.parametrize("B", [1, 17, 300])
@pytest.mark.parametrize("net", NETS)
def test_has_the_bits_of_its_parts(
    net: str, B: int, kind: str, dtype: torch.dtype, threads: int
) -> None:
    for form in FORMS:
        case = Case(net, B, kind, dtype, G=3)
        update = Update(case, step_of(3, **form))
        *want, gradient = update.in_turn()
        for out in (None, case.out):
            for got, expected in zip(update.in_one(out), want, strict=True):
                assert torch.equal(got, expected), form
        assert torch.equal(case.out, gradient), form


@pytest.mark.parametrize("own_data", [False, True], ids=["shared data", "own data"])
@pytest.mark.parametrize("kind", NET_KINDS)
def test_large_nets_of_a_group(kind: str, own_data: bool, threads: int) -> None:
    """All threads work on each."""
    case = Case("deep", 700, kind, G=2, own_data=own_data)
    update = Update(case, step_of(2, l2=True))
    *want, _ = update.in_turn()
    for got, expected in zip(update.in_one(), want, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kind", NET_KINDS)
@pytest.mark.parametrize("net", NETS)
def test_an_update_against_algebra(
    net: str, kind: str, form: dict[str, bool], dtype: torch.dtype, backend: str
) -> None:
    """Eqs. 1-4 with the gradient of autograd, in float64."""
    case = Case(net, 17, kind, dtype, G=2)
    update = Update(case, step_of(2, **form))
    theta, velocity, losses = update.in_one()
    rate, momentum, lookahead, l2 = (
        torch.zeros(2, 1) if r is None else torch.as_tensor(r)[:, None] for r in update.step
    )
    start, v = case.theta.double(), update.velocity.double()
    point = start + lookahead * v
    case.theta = point
    want_losses, gradient = oracle(case, SCALE)
    v = momentum * v - rate * (gradient + l2 * point)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(losses, want_losses, rtol=tolerance, atol=0)
    torch.testing.assert_close(velocity.double(), v, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(theta.double(), start + v, rtol=tolerance, atol=tolerance)


def test_nets_that_are_not_active(backend: str, dtype: torch.dtype) -> None:
    case = Case("primes", 20, "squared", dtype, G=5)
    update = Update(case, step_of(5))
    all_of_them = update.in_one()
    update.active = torch.tensor([True, False, True, False, True])
    theta, velocity, losses = update.in_one()
    assert losses.isnan().tolist() == [False, True, False, True, False]
    for g, on in enumerate(update.active.tolist()):
        want = all_of_them if on else (case.theta, update.velocity)
        assert torch.equal(theta[g], want[0][g])
        assert torch.equal(velocity[g], want[1][g])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_net_whose_loss_is_not_finite_stays(bad: float, backend: str, dtype: torch.dtype) -> None:
    case = Case("one layer", 20, "squared", dtype, G=3)
    case.theta[1, 0] = bad
    update = Update(case, step_of(3))
    theta, velocity, losses = update.in_one()
    assert losses.isfinite().tolist() == [True, False, True]
    assert torch.equal(theta[1, 1:], case.theta[1, 1:])
    assert torch.equal(velocity[1], update.velocity[1])
    for g in (0, 2):
        assert not torch.equal(theta[g], case.theta[g])
    out = torch.full_like(theta, 7.0)
    update.in_one(out)
    assert not bool(out[1].isfinite().all())  # what its gradient is, it is


def test_a_float_serves_all_nets(backend: str) -> None:
    case = Case("ones", 5, G=2)
    numbers = Update(case, Step(0.1, 0.9, 0.9, 0.01)).in_one()
    tensors = Update(case, Step(*(column(r, r) for r in (0.1, 0.9, 0.9, 0.01)))).in_one()
    for got, want in zip(numbers, tensors, strict=True):
        assert torch.equal(got, want)


def refuse_update(change: dict[str, Any], error: type[Exception], text: str) -> None:
    case = Case("one layer", 4)
    given: dict[str, Any] = {
        "net": Net("squared", case.sizes, case.activations),
        "x": case.x,
        "targets": case.targets,
        "theta": case.theta,
        "velocity": torch.zeros(1, 8),
        "step": Step(0.1, 0.9),
    }
    with pytest.raises(error, match=text):
        net_update(**(given | change))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"velocity": torch.zeros(1, 7)},
            ValueError,
            r"velocity: got shape \[1, 7\], need \[1,8\]",
        ),
        ({"velocity": torch.zeros(1, 8).double()}, TypeError, "velocity: got torch.float64"),
        ({"velocity": torch.zeros(8, 2).mT[:1]}, ValueError, "velocity: is not contiguous"),
        ({"theta": torch.zeros(1, 9)}, ValueError, r"theta: got shape \[1, 9\], need \[G,8\]"),
        ({"theta": torch.zeros(1, 8).requires_grad_()}, ValueError, "theta: requires grad"),
        ({"x": torch.rand(2, 4, 3)}, ValueError, "x: got group axis 2, need 1 like theta"),
        ({"targets": torch.rand(2, 4, 2)}, ValueError, "targets: got group axis 2, need 1 like"),
        ({"x": torch.rand(1, 0, 3)}, ValueError, "B: got 0, need at least 1"),
        ({"out": torch.zeros(1, 9)}, ValueError, r"out: got shape \[1, 9\], need \[1,8\]"),
        ({"active": torch.ones(2, dtype=torch.bool)}, ValueError, "active: got shape"),
        ({"active": torch.ones(1)}, TypeError, "active: got torch.float32, need torch.bool"),
        ({"step": Step("fast", 0.9)}, TypeError, "learning_rate: got str, need a float"),
        ({"step": Step(0.1, None)}, TypeError, "momentum: got NoneType, need a float"),
        ({"step": Step(0.1, torch.ones(1))}, TypeError, "momentum: got torch.float32"),
        ({"step": Step(0.1, 0.9, column(1, 2))}, ValueError, "lookahead: got shape"),
        ({"step": Step(0.1, 0.9, 0.9, True)}, TypeError, "l2: got bool, need a float"),
        ({"scale": float("inf")}, ValueError, "scale: got inf, need a finite number"),
    ],
)
def test_an_update_refuses_by_name(
    change: dict[str, Any], error: type[Exception], text: str, backend: str
) -> None:
    refuse_update(change, error, text)


@pytest.mark.parametrize("other", ["velocity", "out", "x", "targets"])
def test_an_update_refuses_shared_memory(other: str, backend: str) -> None:
    memory = torch.rand(30)
    shapes = {"velocity": (1, 8), "out": (1, 8), "x": (1, 4, 3), "targets": (1, 4, 2)}
    size = torch.Size(shapes[other]).numel()
    change = {"theta": memory[:8].view(1, 8), other: memory[7 : 7 + size].view(shapes[other])}
    refuse_update(change, ValueError, f"theta: shares memory with {other}, need its own")


def test_an_update_refuses_shared_memory_of_what_it_would_copy(backend: str) -> None:
    memory = torch.rand(30)
    x = memory[7:19].view(1, 3, 4).mT
    change = {"theta": memory[:8].view(1, 8), "x": x}
    refuse_update(change, ValueError, "theta: shares memory with x, need its own")


def test_the_compiled_update_checks_by_itself(cpu: None) -> None:
    x, y = torch.rand(1, 4, 3), torch.rand(1, 4, 2)
    theta, velocity, out = torch.rand(1, 8), torch.rand(1, 8), torch.rand(1, 8)
    rate, losses = column(0.1), column(0.0)
    good = (
        *(0, x, y, theta, velocity, [3, 2], [0], 1.0),
        *(rate, rate, rate, None, None, out, losses, 1),
    )
    native().net_update(*good)
    for place, value, text in (
        (0, 3, "kind: got 3"),
        (1, x[0], "x: got shape"),
        (2, y[:, :3], "targets: got shape"),
        (3, torch.rand(1, 7), "theta: got 7 parameters"),
        (3, torch.rand(0, 8), "G: got 0"),
        (4, torch.rand(1, 7), "velocity: got shape"),
        (4, velocity.double(), "velocity: wrong dtype"),
        (4, theta, "theta: shares memory with velocity"),
        (8, rate.float(), "learning_rate: wrong dtype, need float64"),
        (9, column(1, 2), "momentum: got shape"),
        (10, losses, "losses: shares memory with lookahead"),
        (11, rate.float(), "l2: wrong dtype"),
        (12, torch.ones(1), "active: wrong dtype, need bool"),
        (13, velocity, "velocity: shares memory with out"),
        (14, torch.zeros(1), "losses: wrong dtype"),
    ):
        bad = list(good)
        bad[place] = value
        with pytest.raises((ValueError, TypeError), match=text):
            native().net_update(*bad)


def test_half_precision_has_a_form() -> None:
    """The reference, as nothing else computes in it."""
    case = Case("one layer", 6, dtype=torch.bfloat16)
    with use_backend(None):
        theta, _, losses = Update(case, Step(0.1, 0.9, 0.9)).in_one()
    assert theta.dtype == torch.bfloat16
    assert bool(losses.isfinite())
