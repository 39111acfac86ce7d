"""Dense ops on every backend against a layer differentiated by torch.func in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hfcore.bindings.dense import (
    ACTIVATIONS,
    activation_derivative,
    dense_backward,
    dense_forward,
    dense_gradient,
    dense_rforward,
)
from hfcore.bindings.dispatch import native
from oracles.cases.dense import (
    GROUPS,
    SHAPE_IDS,
    SHAPES,
    Case,
    Shape,
    all_results,
    check_all,
    check_nan,
    check_relu_at_zero,
    check_saturated,
)
from oracles.mlp import ACTIVATIONS as ACTIVATE

# ---------------------------------------------------------------------------- agreement


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("e", ACTIVATIONS)
def test_every_op(e: str, shape: Shape, dtype: torch.dtype, backend: str) -> None:
    check_all(Case(shape, dtype, e))


@pytest.mark.parametrize("shape", [(13, 7, 5), (25, 17, 33), (1, 3, 2)], ids=str)
@pytest.mark.parametrize("group", GROUPS)
def test_every_group(group: str, shape: Shape, dtype: torch.dtype, backend: str) -> None:
    check_all(Case(shape, dtype, "logistic", group))


@pytest.mark.parametrize("e", ACTIVATIONS)
def test_derivative_is_the_slope(e: str) -> None:
    z = torch.linspace(-2, 2, 8, dtype=torch.float64)
    slope = torch.func.jvp(ACTIVATE[e], (z,), (torch.ones_like(z),))[1]
    torch.testing.assert_close(activation_derivative(e, ACTIVATE[e](z)), slope, rtol=1e-14, atol=0)


def test_two_layers_are_a_linear_map_and_its_transpose(backend: str) -> None:
    """⟨δ, J v⟩ = ⟨Jᵀ δ, v⟩ through R-op, backward pass and gradients of two layers."""
    first = Case((19, 6, 11), torch.float64, "logistic")
    second = Case((19, 11, 4), torch.float64, "tanh")
    x, h = first.a, dense_forward(first.a, first.W, first.b, activation="tanh")
    s = dense_forward(h, second.W, second.b, activation="linear")
    Rh = dense_rforward(x, None, first.W, first.V, first.v_b, h, activation="tanh")
    Rs = dense_rforward(h, Rh, second.W, second.V, second.v_b, s, activation="linear")
    gW2, gb2 = dense_gradient(second.delta, h)
    gh = dense_backward(second.delta, second.W, h, activation="tanh")
    gW1, gb1 = dense_gradient(gh, x)
    tangents = (first.V, first.v_b, second.V, second.v_b)
    back = sum((g * v).sum() for g, v in zip((gW1, gb1, gW2, gb2), tangents, strict=True))
    torch.testing.assert_close((second.delta * Rs).sum(), back, rtol=1e-13, atol=1e-13)


def test_squares_are_those_of_single_cases(backend: str) -> None:
    case = Case((9, 5, 4), torch.float64)
    alone = [dense_gradient(case.delta[:, i : i + 1], case.a[:, i : i + 1]) for i in range(9)]
    gW, gb = dense_gradient(case.delta, case.a, squared=True)
    torch.testing.assert_close(gW, sum(g.square() for g, _ in alone), rtol=1e-14, atol=0)
    torch.testing.assert_close(gb, sum(g.square() for _, g in alone), rtol=1e-14, atol=0)


# ---------------------------------------------------------------------------- bits


@pytest.mark.parametrize("group", GROUPS)
def test_bits_do_not_depend_on_threads_or_group(group: str, dtype: torch.dtype, cpu: None) -> None:
    """Large enough that cases, panels and blocks of the gradient are shared among threads."""
    case = Case((300, 65, 83), dtype, "logistic", group)
    torch.set_num_threads(1)
    want = all_results(case)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(v, want[k]) for k, v in all_results(case).items()), threads
    names = ("z", "a", "W", "b", "V", "v_b", "Ra", "add", "delta", "y")
    for g in range(case.G):
        own = Case((300, 65, 83), dtype, "logistic", group)
        own.G = 1
        for name in names:
            t = getattr(case, name)
            setattr(own, name, t[min(g, t.shape[0] - 1)].unsqueeze(0))
        for name, alone in all_results(own).items():
            in_group = want[name]
            assert torch.equal(in_group[min(g, in_group.shape[0] - 1)], alone[0]), name


def test_more_nets_than_packed_weights_are_held_at_once(cpu: None) -> None:
    """Beyond 64 MiB of packed weights the nets take turns: 5 of 4096 x 1024 in float32."""
    B, n, m, G = 3, 1024, 4096, 5
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(1, B, n, generator=draw)
    V = torch.randn(G, m, n, generator=draw)
    zero, y = torch.zeros(1, m), torch.zeros(1, B, m)
    got = dense_rforward(a, None, V[:1], V, zero, y, activation="linear")
    for g in range(G):
        alone = dense_rforward(a, None, V[:1], V[g : g + 1], zero, y, activation="linear")
        assert torch.equal(got[g], alone[0])


# ---------------------------------------------------------------------------- NaN, extremes


@pytest.mark.parametrize("e", ACTIVATIONS)
def test_nan_reaches_what_it_touches_and_nothing_else(
    e: str, dtype: torch.dtype, backend: str
) -> None:
    check_nan(e, dtype)


def test_saturated_units_stay_finite(dtype: torch.dtype, backend: str) -> None:
    check_saturated(dtype)


def test_relu_is_off_at_zero(dtype: torch.dtype, backend: str) -> None:
    check_relu_at_zero(dtype)


# ---------------------------------------------------------------------------- buffers


def test_any_stride_goes_in(dtype: torch.dtype, backend: str) -> None:
    case = Case((13, 7, 5), dtype)
    want = all_results(case)
    for name in ("a", "W", "V", "Ra", "delta", "y", "add"):
        t = getattr(case, name)
        setattr(case, name, t.permute(2, 1, 0).contiguous().permute(2, 1, 0))
    case.v_b = torch.stack([case.v_b, case.v_b], 2)[:, :, 0]
    case.b = torch.complex(case.b, -case.b).conj().imag  # negated lazily
    assert case.b.is_neg()
    for name, got in all_results(case).items():
        torch.testing.assert_close(got, want[name], rtol=0, atol=0 if backend == "cpu" else 1e-5)


def test_an_expanded_group_is_one_net(dtype: torch.dtype, backend: str) -> None:
    case = Case((13, 7, 5), dtype)
    want = all_results(case)
    for name in ("a", "W", "b", "y"):
        t = getattr(case, name)
        setattr(case, name, t.expand(3, *t.shape[1:]))
    case.G = 3
    for name, got in all_results(case).items():
        if got.shape[0] == 1:  # the gradients: nothing in them but delta and a, of which a is 3
            raise AssertionError(name)
        expected = want[name].expand_as(got)
        torch.testing.assert_close(got, expected, rtol=0, atol=0 if backend == "cpu" else 1e-5)


def test_parameters_that_require_grad_are_read_as_data(backend: str) -> None:
    case = Case((13, 7, 5), torch.float32)
    want = all_results(case)
    before = {name: getattr(case, name).clone() for name in ("a", "W", "b", "y", "delta")}
    for name in ("a", "W", "b", "delta"):
        setattr(case, name, getattr(case, name).clone().requires_grad_())
    for name, got in all_results(case).items():
        assert not got.requires_grad
        assert torch.equal(got, want[name])
    assert all(torch.equal(getattr(case, name), t) for name, t in before.items())


def test_outputs_that_share_memory_are_refused(backend: str) -> None:
    case = Case((6, 5, 5), torch.float32)
    a, W, y, e = case.a, case.W, case.y, "tanh"
    for name in ("a", "Ra", "y"):
        with pytest.raises(ValueError, match=f"out: shares memory with {name}, need its own"):
            dense_rforward(
                a, case.Ra, W, case.V, case.v_b, y, activation=e, out=getattr(case, name)
            )
    with pytest.raises(ValueError, match="out: shares memory with a, need its own"):
        dense_forward(a, W, case.b, activation=e, out=a)
    for name in ("delta", "add"):
        with pytest.raises(ValueError, match=f"out: shares memory with {name}, need its own"):
            dense_backward(case.delta, W, a, activation=e, add=case.add, out=getattr(case, name))
    both = torch.zeros(2, 60)
    gW = both[:, :25].view(2, 5, 5)
    delta = case.delta.repeat(2, 1, 1)
    with pytest.raises(ValueError, match=r"out\[1\]: shares memory with out\[0\], need its own"):
        dense_gradient(delta, a, out=(gW, both[:, 24:29]))
    with pytest.raises(ValueError, match=r"out\[1\]: shares memory with out\[0\], need its own"):
        dense_gradient(delta[:1], a, out=(gW[:1], both[:1, 24:29]))
    with pytest.raises(ValueError, match=r"out\[0\]: shares memory with delta, need its own"):
        dense_gradient(delta, a, out=(delta.view(-1)[:50].view(2, 5, 5), both[:, 24:29]))
    # The second output may lie before the first.
    dense_gradient(delta, a, out=(both[:, 5:30].view(2, 5, 5), both[:, :5]))


def test_unfit_outputs_are_refused(backend: str) -> None:
    case = Case((6, 5, 4), torch.float32)

    def forward(out: Tensor) -> None:
        dense_forward(case.a, case.W, case.b, activation="tanh", out=out)

    good = torch.zeros(1, 6, 4)
    for out, error, text in (
        (torch.zeros(1, 6, 5), ValueError, r"out: got shape \[1, 6, 5\], need \[1,6,4\]"),
        (good.double(), TypeError, "out: got torch.float64, need torch.float32"),
        (torch.zeros(1, 4, 6).mT, ValueError, "out: is not contiguous"),
        (good.clone().requires_grad_(), ValueError, "out: requires grad"),
    ):
        with pytest.raises(error, match=text):
            forward(out)
    nets = case.a.repeat(2, 1, 1)
    with pytest.raises(ValueError, match="out: its nets overlap"):
        dense_forward(nets, case.W, case.b, activation="tanh", out=good.expand(2, -1, -1))
    gW, gb = torch.zeros(1, 4, 5), torch.zeros(1, 4)
    for out, error, text in (
        (gW, TypeError, "out: got Tensor, need a tuple of gW and gb"),
        ((gW,), TypeError, "out: got tuple"),
        ((gb, gW), ValueError, r"out\[0\]: got shape"),
        ((gW, gb.double()), TypeError, r"out\[1\]: got torch.float64"),
        ((torch.zeros(1, 5, 4).mT, gb), ValueError, r"out\[0\]: is not contiguous"),
    ):
        with pytest.raises(error, match=text):
            dense_gradient(case.delta, case.a, out=out)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- refusals

Spoil = Callable[[Case], None]


def put(name: str, change: Callable[[Tensor], object]) -> Spoil:
    return lambda case: setattr(case, name, change(getattr(case, name)))


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (put("e", lambda _: "softplus"), ValueError, "activation: got 'softplus', need one of"),
        (put("a", lambda t: t[0]), ValueError, r"a: got shape \[6, 5\], need \[G,B,n\]"),
        (put("a", lambda t: t[:, :0]), ValueError, "B: got 0, need at least 1"),
        (put("a", lambda t: t[:0]), ValueError, "G: got 0, need at least 1"),
        (put("a", lambda t: t[..., :0]), ValueError, "n: got 0, need at least 1"),
        (put("a", lambda t: t.long()), TypeError, "a: got torch.int64, need a floating-point"),
        (put("a", lambda t: t.tolist()), TypeError, "a: got list, need a torch.Tensor"),
        (put("a", lambda t: t.to_sparse()), TypeError, "a: got layout torch.sparse_coo"),
        (put("W", lambda t: t[:, :, :4]), ValueError, r"W: got shape \[1, 4, 4\], need \[G,m,5\]"),
        (put("W", lambda t: t[:, :0]), ValueError, "m: got 0, need at least 1"),
        (put("W", lambda t: t.double()), TypeError, "W: got torch.float64, need torch.float32"),
        (put("W", lambda t: t.to("meta")), ValueError, "W: is on meta, need cpu like the other"),
        (put("W", lambda t: t.repeat(2, 1, 1)), ValueError, "group axis (2|3), need 1 or (2|3)"),
    ],
)
def test_forward_and_rforward_refuse_by_name(
    spoil: Spoil, error: type[Exception], text: str, backend: str
) -> None:
    case = Case((6, 5, 4), torch.float32)
    case.b, case.v_b = case.b.repeat(3, 1), case.v_b.repeat(3, 1)
    spoil(case)
    with pytest.raises(error, match=text):
        dense_forward(case.a, case.W, case.b, activation=case.e)
    with pytest.raises(error, match=text):
        dense_rforward(case.a, None, case.W, case.V, case.v_b, case.y, activation=case.e)


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (put("Ra", lambda t: t[:, 1:]), ValueError, r"Ra: got shape \[1, 5, 5\], need \[G,6,5\]"),
        (put("V", lambda t: t.mT), ValueError, r"V: got shape \[1, 5, 4\], need \[G,4,5\]"),
        (put("v_b", lambda t: t[0]), ValueError, r"v_b: got shape \[4\], need \[G,4\]"),
        (put("y", lambda t: t[:, :, 1:]), ValueError, r"y: got shape \[1, 6, 3\], need \[G,6,4\]"),
        (put("Ra", lambda t: t.half()), TypeError, "Ra: got torch.float16, need torch.float32"),
    ],
)
def test_rforward_refuses_by_name(
    spoil: Spoil, error: type[Exception], text: str, backend: str
) -> None:
    case = Case((6, 5, 4), torch.float32)
    spoil(case)
    with pytest.raises(error, match=text):
        dense_rforward(case.a, case.Ra, case.W, case.V, case.v_b, case.y, activation=case.e)


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (put("delta", lambda t: t[:, :0]), ValueError, "B: got 0, need at least 1"),
        (put("delta", lambda t: t[..., :0]), ValueError, "m: got 0, need at least 1"),
        (put("delta", lambda t: t.int()), TypeError, "delta: got torch.int32, need a floating"),
        (put("a", lambda t: t[:, 1:]), ValueError, r"(y|a): got shape \[1, 5, 5\]"),
        (put("a", lambda t: t.double()), TypeError, "(y|a): got torch.float64"),
        (put("add", lambda t: t[..., 1:]), ValueError, r"add: got shape \[1, 6, 4\]"),
        (put("add", lambda t: t.double()), TypeError, "add: got torch.float64"),
    ],
)
def test_backward_and_gradient_refuse_by_name(
    spoil: Spoil, error: type[Exception], text: str, backend: str
) -> None:
    case = Case((6, 5, 4), torch.float32)
    spoil(case)
    with pytest.raises(error, match=text):
        dense_backward(case.delta, case.W, case.a, activation=case.e, add=case.add)
    if not text.startswith("add"):
        with pytest.raises(error, match=text):
            dense_gradient(case.delta, case.a)


def test_factors_and_stop_flags_are_checked(backend: str) -> None:
    case = Case((6, 5, 4), torch.float32)
    with pytest.raises(ValueError, match="scale: got nan, need a finite number"):
        dense_gradient(case.delta, case.a, scale=math.nan)
    with pytest.raises(TypeError, match="scale: got str, need a float"):
        dense_gradient(case.delta, case.a, scale="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"stop: got torch\.bool, need torch\.int32"):
        dense_gradient(case.delta, case.a, stop=torch.zeros(1, dtype=torch.bool))


def test_compiled_module_checks_for_itself() -> None:
    """Called without the bindings it raises, whatever it is given."""
    m = native()
    case = Case((6, 5, 4), torch.float32)
    a, W, b, out = case.a, case.W, case.b, torch.zeros(1, 6, 4)
    refused = (ValueError, TypeError)
    for arguments in (
        (a, W, b, 4, out, 1),
        (a, W, b, -1, out, 1),
        (a[0], W, b, 0, out, 1),
        (a[:, 1:], W, b, 0, out, 1),
        (a.mT, W, b, 0, out, 1),
        (a, W.mT, b, 0, out, 1),
        (a, W, b[:, 1:], 0, out, 1),
        (a, W, b[0], 0, out, 1),
        (a, W.double(), b, 0, out, 1),
        (a.long(), W, b, 0, out, 1),
        (a, W, b, 0, out.double(), 1),
        (a, W, b, 0, out[0], 1),
        (a, W, b, 0, torch.zeros(1, 4, 6).mT, 1),
        (a.repeat(2, 1, 1), W, b, 0, out, 1),
        (a, W, b, 0, out.expand(2, -1, -1), 1),
        (a[:, :0], W, b, 0, out[:, :0], 1),
        (None, W, b, 0, out, 1),
        (a, W, b, 0, None, 1),
        (a, W, b, 0, a.view(-1)[:24].view(1, 6, 4), 1),
    ):
        with pytest.raises(refused):
            m.dense_forward(*arguments)
    delta, flat = case.delta, torch.zeros(1, 40)
    gW, gb = flat[:, :20].view(1, 4, 5), flat[:, 20:24]
    for arguments in (
        (delta, a, 1.0, False, gW, flat[:, 19:23], 1),
        (delta, a, 1.0, False, gb, gW, 1),
        (delta, a[:, 1:], 1.0, False, gW, gb, 1),
        (delta, a, 1.0, False, gW.mT, gb, 1),
        (delta, a.double(), 1.0, False, gW, gb, 1),
        (delta, a, "1", False, gW, gb, 1),
    ):
        with pytest.raises(refused):
            m.dense_gradient(*arguments)
    with pytest.raises(ValueError, match="out: shares memory with y"):
        m.dense_backward(delta, W, a, 0, None, a, 1)
    with pytest.raises(ValueError, match="add: wrong shape"):
        m.dense_backward(delta, W, a, 0, delta, torch.zeros(1, 6, 5), 1)
    with pytest.raises(ValueError, match="Ra: wrong shape"):
        m.dense_rforward(a, delta, W, case.V, case.v_b, out, 0, torch.zeros(1, 6, 4), 1)
    wide, result = torch.randn(1, 300, 50), torch.zeros(1, 300, 50)
    W, b = torch.randn(1, 50, 50), torch.randn(1, 50)
    gW, gb = torch.zeros(1, 50, 50), torch.zeros(1, 50)
    for threads in (0, -5, 2**31 - 1):  # a senseless number is 1, or as many as there may be
        m.dense_forward(wide, W, b, 0, result, threads)
        m.dense_gradient(result, wide, 1.0, False, gW, gb, threads)
    torch.testing.assert_close(gW, result.mT @ wide, rtol=1e-3, atol=1e-2)
