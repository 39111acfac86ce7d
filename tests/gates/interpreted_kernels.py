"""Triton kernels against their references on odd shapes; ``test_triton_interpreter.py`` runs it.

Bounds are counted roundings, as in tests/kernels: eps of the dtype times the size of the terms.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from tensor_dot import six_products
from torch import Tensor

from guarded import guarded
from hfcore.kernels import triton_math
from hfcore.kernels.conjugate_gradient import gpu_triton as cg
from hfcore.kernels.conjugate_gradient import reference as cg_reference
from hfcore.kernels.dense import gpu_triton as dense
from hfcore.kernels.dense import reference as dense_reference
from hfcore.kernels.draws import gpu_triton as draws
from hfcore.kernels.draws import reference as draws_reference
from hfcore.kernels.loss import gpu_triton as loss
from hfcore.kernels.loss import reference as loss_reference
from hfcore.kernels.momentum import gpu_triton as momentum
from hfcore.kernels.momentum import reference as momentum_reference
from hfcore.kernels.sparse import EllPattern
from hfcore.kernels.sparse import gpu_triton as sparse
from hfcore.kernels.sparse import reference as sparse_reference
from oracles.cases.conjugate_gradient import Vectors
from oracles.cases.loss import DELTA, make_case

assert os.environ.get("TRITON_INTERPRET") == "1"

DTYPES = (torch.float32, torch.float64)
TORCH_TO_LABEL = {torch.float32: "f32", torch.float64: "f64"}


def eps(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps)


def assert_within(got: Tensor, want: Tensor, bound: Tensor | float) -> None:
    """|got − want| ≤ bound everywhere; tells the worst element."""
    assert got.shape == want.shape
    excess = (got.double() - want.double()).abs() - bound
    worst = int(excess.argmax())
    assert not bool((excess > 0).any() | excess.isnan().any()), (
        f"element {worst}: got {got.flatten()[worst]}, want {want.flatten()[worst]}"
    )


# ---------------------------------------------------------------------------- elementary functions


@triton.jit
def elementwise(x, y, f: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, f(tl.load(x + i)))


@triton.jit
def bits_kernel(y, bits):
    tl.store(y, triton_math.from_bits(bits))


def wide(x: Tensor) -> np.ndarray:
    return x.numpy().astype(np.longdouble)


FUNCTIONS = {
    "exp": (triton_math.exp, lambda x: np.exp(wide(x))),
    "logistic": (triton_math.logistic, lambda x: 1 / (1 + np.exp(-wide(x)))),
    "tanh": (triton_math.tanh, lambda x: np.tanh(wide(x))),
    "log1p": (triton_math.log1p, lambda x: np.log1p(wide(x))),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("exp", DTYPES[0]), ("exp", DTYPES[1]), ("logistic", DTYPES[0]), ("logistic", DTYPES[1]),
     ("tanh", DTYPES[0]), ("tanh", DTYPES[1]), ("log1p", DTYPES[1])],
    ids=lambda v: TORCH_TO_LABEL.get(v, v),
)  # fmt: skip
def test_elementary_functions_in_ulps(name: str, dtype: torch.dtype) -> None:
    """Within 3 ulp of extended precision, from tiny to where the result leaves the range."""
    N, f, oracle = 8192, *FUNCTIONS[name]
    limit = {"log1p": 1e18}.get(name, 87.0 if dtype == torch.float32 else 700.0)
    g = torch.Generator().manual_seed(1)
    size = torch.empty(N, dtype=torch.float64).uniform_(-40, math.log2(limit), generator=g).exp2()
    sign = torch.where(torch.rand(N, generator=g) < 0.5, -1.0, 1.0)
    x = (size if name == "log1p" else size * sign).to(dtype)
    x[:3] = torch.tensor([0.0, limit, 1.0], dtype=dtype)
    y = torch.empty_like(x)
    elementwise[(1,)](x, y, f, N=N)
    want = oracle(x)
    ulps = np.abs(wide(y) - want) / np.spacing(np.abs(want).astype(y.numpy().dtype))
    assert float(ulps.max()) < 3.0


@pytest.mark.parametrize("dtype", DTYPES, ids=TORCH_TO_LABEL.get)
def test_elementary_functions_at_extremes(dtype: torch.dtype) -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([-inf, -1e4, 1e4, inf, nan, -0.0, 0.0, -1e30], dtype=dtype)
    exp, logistic, tanh = (torch.empty_like(x) for _ in range(3))
    elementwise[(1,)](x, exp, triton_math.exp, N=8)
    elementwise[(1,)](x, logistic, triton_math.logistic, N=8)
    elementwise[(1,)](x, tanh, triton_math.tanh, N=8)
    torch.testing.assert_close(tanh, x.tanh(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(exp, x.exp(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(logistic, x.sigmoid(), rtol=0, atol=0, equal_nan=True)
    # Denormal results are rounded, not flushed.
    low = torch.full_like(x, -100.0 if dtype == torch.float32 else -740.0)
    elementwise[(1,)](low, exp, triton_math.exp, N=8)
    assert_within(exp, low.double().exp(), 2.0 ** (-148 if dtype == torch.float32 else -1073))


def test_log1p_at_extremes() -> None:
    x = torch.tensor([0.0, 5e-324, 1e-300, 1e-17, 1e18, float("nan")], dtype=torch.float64)
    x = torch.cat([x, torch.zeros(2, dtype=torch.float64)])
    y = torch.empty_like(x)
    elementwise[(1,)](x, y, triton_math.log1p, N=8)
    want = torch.tensor([math.log1p(v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(y, want, rtol=1e-15, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [0.0, 0.3, -1e-300, 5e-324, 1.0, math.pi, float("inf")])
def test_float64_argument_arrives_whole(value: float) -> None:
    y = torch.empty(1, dtype=torch.float64)
    bits_kernel[(1,)](y, triton_math.float64_bits(value))
    assert float(y) == value


# ---------------------------------------------------------------------------- losses

KINDS = loss.KINDS
# T, B, k: ones, primes, exactly and around a tile, several tiles, several chunks of a row.
SHAPES = [(1, 1, 1), (3, 5, 2), (2, 7, 13), (1, 5, 16), (2, 2, 17), (1, 257, 19), (1, 2, 1031)]
SLOW_SHAPES = [(7, 331, 1), (1, 1, 1024), (1, 3, 1025), (13, 631, 5), (1, 2, 3000), (4, 64, 225),
               (5, 101, 19)]  # fmt: skip
MASKS = ("none", "bool", "float", "weights")


def check_loss_ops(kind: str, shape: tuple[int, int, int], dtype: torch.dtype, mask: str) -> None:
    """Value, gradient, curvature and product against the reference in float64."""
    s, y, keep, Rs = make_case(kind, dtype, shape, mask)
    big = s.double()
    targets = y if kind == "softmax" else y.double()
    keep64 = keep.double() if keep is not None and mask in ("float", "weights") else keep

    value = loss.loss_value(kind, s, y, keep, 0.3, DELTA)
    size = 3 * (big**2 + big.abs() + 2 + math.log(shape[2])).sum()
    if kind == "poisson":
        size += 3 * big.exp().sum()
    want = loss_reference.loss_value(kind, big, targets, keep64, 0.3, DELTA)
    assert value.dtype == torch.float64
    assert_within(value, want, 50 * eps(torch.float64) * size)

    with guarded(s.shape, dtype) as out:
        assert loss.loss_gradient(kind, s, y, keep, 0.3, DELTA, out) is out
    want = loss_reference.loss_gradient(kind, big, targets, keep64, 0.3, DELTA)
    assert_within(out, want, 0.3 * 11 * eps(dtype) * (want.abs() / 0.3 + 6))

    with guarded(s.shape, dtype) as c:
        loss.loss_curvature(kind, s, y, keep, DELTA, c)
    want = loss_reference.loss_curvature(kind, big, targets, keep64, DELTA)
    # The reference's p(1 − p) loses eps of float64 absolutely; ours nothing.
    assert_within(c, want, 10 * eps(dtype) * want + 4 * eps(torch.float64))

    for rank_one in loss_reference.RANK_ONE:
        with guarded(s.shape, dtype) as out:
            loss.loss_hessian_product(c, Rs, rank_one, 0.3, out)
        a, b = c.double(), Rs.double()
        want = loss_reference.loss_hessian_product(a, b, rank_one, 0.3)
        dot = (a * b.abs()).sum(-1, keepdim=True)
        if rank_one == "weighted":
            dot /= a.sum(-1, keepdim=True).clamp_min(1e-300)
        size = a * (b.abs() + dot)
        assert_within(out, want, 0.3 * 6 * eps(dtype) * size)


@pytest.mark.parametrize("dtype", DTYPES, ids=TORCH_TO_LABEL.get)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_ops(kind: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Each kind, each shape and each dtype meets every mask."""
    at = KINDS.index(kind) + SHAPES.index(shape) + 2 * DTYPES.index(dtype)
    check_loss_ops(kind, shape, dtype, MASKS[at % len(MASKS)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=TORCH_TO_LABEL.get)
@pytest.mark.parametrize("shape", [*SHAPES, *SLOW_SHAPES], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_ops_by_every_mask(kind: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    for mask in MASKS:
        check_loss_ops(kind, shape, dtype, mask)


GROUPS = [(3, 3, 3), (3, 1, 1), (1, 3, 1), (1, 1, 3), (3, 1, 3)]


@pytest.mark.parametrize("groups", GROUPS, ids=lambda g: "s{}-y{}-m{}".format(*g))
@pytest.mark.parametrize("kind", KINDS)
def test_group_equals_each_net_alone(kind: str, groups: tuple[int, int, int]) -> None:
    """The same bits in a group and alone, for every axis that may be shared."""
    s, y, keep, Rs = make_case(kind, torch.float32, (3, 5, 7), "bool", groups)
    assert keep is not None
    value, gradient = (
        loss.loss_value(kind, s, y, keep, 1.0),
        loss.loss_gradient(kind, s, y, keep, 1.0),
    )
    c = loss.loss_curvature(kind, s, y, keep)
    product = loss.loss_hessian_product(c, Rs, kind == "softmax", 1.0)
    assert value.shape == (3,)
    assert gradient.shape == (3, 3, 5, 7)

    def alone(t: Tensor, g: int) -> Tensor:
        return t[min(g, t.shape[0] - 1)].unsqueeze(0)

    for g in range(3):
        s1, y1, m1 = alone(s, g), alone(y, g), alone(keep, g)
        assert torch.equal(value[g : g + 1], loss.loss_value(kind, s1, y1, m1, 1.0))
        assert torch.equal(gradient[g : g + 1], loss.loss_gradient(kind, s1, y1, m1, 1.0))
        c1 = loss.loss_curvature(kind, s1, y1, m1)
        assert torch.equal(alone(c, g), c1)
        p1 = loss.loss_hessian_product(c1, alone(Rs, g), kind == "softmax", 1.0)
        assert torch.equal(alone(product, g), p1)


@pytest.mark.parametrize("mask", ["bool", "float", "weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_masked_garbage_is_ignored_and_nan_shows(kind: str, mask: str) -> None:
    s, y, keep, _ = make_case(kind, torch.float32, (3, 11, 5), mask)
    assert keep is not None
    dropped = ~keep.bool()
    bad_s, bad_y = s.clone(), y.clone()
    bad_s[dropped] = float("nan")
    bad_y[dropped] = -7 if kind == "softmax" else float("nan")
    for op in (loss.loss_value, loss.loss_gradient):
        assert torch.equal(op(kind, bad_s, bad_y, keep, 1.0), op(kind, s, y, keep, 1.0))
    c = loss.loss_curvature(kind, bad_s, bad_y, keep)
    assert bool((c[dropped] == 0).all())
    at = keep.bool().nonzero()[0].tolist()
    s[at[0], at[1], at[2], 3] = float("nan")
    assert bool(loss.loss_value(kind, s, y, keep, 1.0).isnan().all())
    assert bool(loss.loss_gradient(kind, s, y, keep, 1.0)[at[0], at[1], at[2], 3].isnan())


@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_class_out_of_range_is_nan(wrong: int) -> None:
    s, y, _, _ = make_case("softmax", torch.float32, (3, 11, 5))
    y[0, 1, 2] = wrong
    assert bool(loss.loss_value("softmax", s, y, None, 1.0).isnan().all())
    gradient = loss.loss_gradient("softmax", s, y, None, 1.0)
    assert bool(gradient[0, 1, 2].isnan().all())
    assert int(gradient.isnan().sum()) == 5


@pytest.mark.parametrize("dtype", DTYPES, ids=TORCH_TO_LABEL.get)
@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_large_outputs_stay_finite(kind: str, dtype: torch.dtype) -> None:
    s = torch.tensor([-1e4, -90.0, -1e-30, 0.0, 1e-30, 90.0, 1e4], dtype=dtype).view(1, 1, 1, 7)
    y = torch.zeros(1, 1, 1, dtype=torch.int64) if kind == "softmax" else torch.ones_like(s)
    want = loss_reference.loss_value(kind, s, y, None, 1.0)
    torch.testing.assert_close(loss.loss_value(kind, s, y, None, 1.0), want, rtol=1e-14, atol=0)
    bound = {"rtol": 10 * eps(dtype), "atol": 4 * eps(dtype)}
    want = loss_reference.loss_gradient(kind, s, y, None, 1.0)
    torch.testing.assert_close(loss.loss_gradient(kind, s, y, None, 1.0), want, **bound)
    want = loss_reference.loss_curvature(kind, s, y, None)
    torch.testing.assert_close(loss.loss_curvature(kind, s, y, None), want, **bound)


@pytest.mark.parametrize("kind", KINDS)
def test_output_may_be_an_input(kind: str) -> None:
    s, y, keep, Rs = make_case(kind, torch.float32, (2, 7, 13), "bool")
    want = loss.loss_gradient(kind, s, y, keep, 0.7)
    own = s.clone()
    assert torch.equal(loss.loss_gradient(kind, own, y, keep, 0.7, out=own), want)
    c = loss.loss_curvature(kind, s, y, keep)
    own = s.clone()
    assert torch.equal(loss.loss_curvature(kind, own, y, keep, out=own), c)
    want = loss.loss_hessian_product(c, Rs, True, 0.7)
    for which in (0, 1):
        pair = [c.clone(), Rs.clone()]
        assert torch.equal(loss.loss_hessian_product(*pair, True, 0.7, pair[which]), want)


def test_stop_flag_ends_the_hessian_product() -> None:
    c, Rs = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 5, 7)
    out = torch.full_like(c, 8.0)
    loss.loss_hessian_product(c, Rs, True, 1.0, out, torch.ones(1, dtype=torch.int32))
    assert bool((out == 8.0).all())
    loss.loss_hessian_product(c, Rs, True, 1.0, out, torch.zeros(1, dtype=torch.int32))
    assert torch.equal(out, loss.loss_hessian_product(c, Rs, True, 1.0))


# ---------------------------------------------------------------------------- dense layers

# B, n, m: ones, primes, tiles of 16, 32, 64 and 128 and one more, several splits of the gradient.
LAYERS = [(1, 1, 1), (16, 16, 16), (17, 33, 18), (67, 17, 65), (270, 5, 7)]
SLOW_LAYERS = [(129, 64, 63), (128, 128, 64), (600, 31, 130), (1000, 65, 33), (64, 257, 16)]
QUICK_CASES = [(e, (5, 3, 2)) for e in dense.ACTIVATIONS] + [("tanh", shape) for shape in LAYERS]
SLOW_CASES = [c for c in itertools.product(dense.ACTIVATIONS, LAYERS) if c not in QUICK_CASES]
SLOW_CASES += [("logistic", shape) for shape in SLOW_LAYERS]
CASES = [*QUICK_CASES, *(pytest.param(*c, marks=pytest.mark.slow) for c in SLOW_CASES)]


class Layer:
    """A layer with cached activations, tangents and errors; weights off every alignment."""

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, nets: int = 1, tangents: int = 1
    ) -> None:
        g = torch.Generator().manual_seed(sum(shape))
        self.B, self.n, self.m = B, n, m = shape
        self.G, self.dtype = max(nets, tangents), dtype

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)

        def flat(G: int) -> tuple[Tensor, Tensor]:
            v = normal(G, m * n + m + 3)
            return v[:, 1 : 1 + m * n].view(G, m, n), v[:, 1 + m * n : 1 + m * n + m]

        self.a, self.y = normal(nets, B, n), normal(nets, B, m)
        self.W, self.b = flat(nets)
        self.V, self.v_b = flat(tangents)
        self.Ra, self.add, self.delta = (
            normal(tangents, B, n), normal(tangents, B, n), normal(tangents, B, m)
        )  # fmt: skip

    def alone(self, g: int) -> Layer:
        """Net g by itself."""
        own = Layer((self.B, self.n, self.m), self.dtype)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(own, name, value[min(g, value.shape[0] - 1)].unsqueeze(0))
        return own

    def results(self, e: str, scale: float, precision: str = "ieee") -> dict[str, Tensor]:
        """Every op in every form, in guarded buffers."""
        B, n, m, G, dtype = self.B, self.n, self.m, self.G, self.dtype
        a, Ra, W, V, y, delta = self.a, self.Ra, self.W, self.V, self.y, self.delta
        found = {}
        with guarded([G, B, m], dtype) as out:
            found["y"] = dense.dense_forward(a, W, self.b, e, out, precision)
        for name, moved in (("Ry", Ra), ("first Ry", None)):
            with guarded([G, B, m], dtype) as out:
                dense.dense_rforward(a, moved, W, V, self.v_b, y, e, out, None, precision)
            found[name] = out
        for name, add in (("below", None), ("below + add", self.add)):
            with guarded([G, B, n], dtype) as out:
                dense.dense_backward(delta, W, a, e, add, out, None, precision)
            found[name] = out
        for squared in (False, True):
            with guarded([G, m * n + m + 3], dtype) as flat:
                gW, gb = flat[:, 1 : 1 + m * n].view(G, m, n), flat[:, -2 - m : -2]
                dense.dense_gradient(delta, a, scale, squared, gW, gb, None, precision)
                around = torch.cat([flat[:, :1], flat[:, -2:]], 1)
                assert bool(around.isnan().all()), "wrote outside of its buffers"
            found[f"gW {squared}"], found[f"gb {squared}"] = gW, gb
        return found

    def wanted(self, e: str, scale: float) -> dict[str, tuple[Tensor, Tensor]]:
        """The reference in float64, and the size of its terms for the bound."""
        a, Ra, W, b, V, v_b, y, add, delta = (
            t.double() for t in (self.a, self.Ra, self.W, self.b, self.V, self.v_b, self.y,
                                 self.add, self.delta)
        )  # fmt: skip

        def size(op: Callable[..., Tensor], *arrays: Tensor | None) -> Tensor:
            return op(*(None if t is None else t.abs() for t in arrays))

        # With "linear" the references of absolute values are Σ|terms|, before any φ'.
        forward = size(lambda a, W, b: dense_reference.dense_forward(a, W, b, "linear"), a, W, b)
        want = {"y": (dense_reference.dense_forward(a, W, b, e), forward + 1)}
        for name, moved in (("Ry", Ra), ("first Ry", None)):
            terms = size(
                lambda *t: dense_reference.dense_rforward(*t, "linear"), a, moved, W, V, v_b, y
            )
            slope = 1 + y.square()
            got = dense_reference.dense_rforward(a, moved, W, V, v_b, y, e)
            want[name] = got, terms * slope
        for name, more in (("below", None), ("below + add", add)):
            terms = delta.abs() @ W.abs() * (1 + a.square())
            got = dense_reference.dense_backward(delta, W, a, e, more)
            want[name] = got, terms + (0 if more is None else more.abs())
        for squared in (False, True):
            sums = dense_reference.dense_gradient(delta, a, scale, squared)
            terms = dense_reference.dense_gradient(delta.abs(), a.abs(), scale, squared)
            for name, got, bound in zip(("gW", "gb"), sums, terms, strict=True):
                want[f"{name} {squared}"] = got, bound
        return want


def check_layer(layer: Layer, e: str, precision: str = "ieee") -> None:
    """As in tests/kernels/test_dense.py: √K roundings of Σ|terms| and a few around them."""
    K = max(layer.B, 2 * layer.n, layer.m)
    want = layer.wanted(e, 0.3)
    for name, got in layer.results(e, 0.3, precision).items():
        exact, terms = want[name]
        bound = (8 + 2 * math.sqrt(K)) * eps(layer.dtype) * terms
        assert_within(got, exact.expand_as(got), bound.expand_as(got))


@pytest.mark.parametrize("dtype", DTYPES, ids=TORCH_TO_LABEL.get)
@pytest.mark.parametrize(("e", "shape"), CASES, ids=str)
def test_dense_ops(e: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check_layer(Layer(shape, dtype), e)


@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])
def test_dense_tiles_of_tensor_cores(precision: str) -> None:
    """Their other tiles; the interpreter itself computes in float32."""
    check_layer(Layer((130, 35, 66), torch.float32), "tanh", precision)


@pytest.mark.parametrize(("e", "shape"), [("tanh", (17, 33, 18)), ("logistic", (270, 5, 7))])
def test_dense_ops_in_six_bfloat16_products(e: str, shape: tuple[int, int, int]) -> None:
    """By an emulation of the tensor cores, to the bounds of true float32."""
    layer = Layer(shape, torch.float32)
    with six_products() as emulated:
        check_layer(layer, e, "bf16x6")
    assert emulated.dots > 0


def test_what_is_not_finite_stays_so_in_six_products() -> None:
    """In its row, infinity as infinity."""
    draw = torch.Generator().manual_seed(3)
    a, W = torch.randn(1, 7, 20, generator=draw), torch.rand(1, 5, 20, generator=draw) + 0.1
    clean, out, b = torch.empty(1, 7, 5), torch.empty(1, 7, 5), torch.zeros(1, 5)
    with six_products():
        dense.dense_forward(a, W, b, "linear", clean, "bf16x6")
        a[0, 2, 3], a[0, 4, 1] = math.nan, math.inf
        dense.dense_forward(a, W, b, "linear", out, "bf16x6")
    assert bool(out[0, 2].isnan().all())
    assert bool((out[0, 4] == math.inf).all())
    others = [0, 1, 3, 5, 6]
    assert torch.equal(out[0, others], clean[0, others])


def test_six_bfloat16_products_as_good_as_float32() -> None:
    """Long sums: the errors are no larger than those of float32, where three products lose 2⁻¹⁶."""
    draw = torch.Generator().manual_seed(2)
    a, W = torch.randn(1, 16, 500, generator=draw), torch.randn(1, 16, 500, generator=draw)
    want = a.double() @ W.double().mT
    out, b = torch.empty(1, 16, 16), torch.zeros(1, 16)
    errors = {}
    for precision in ("ieee", "bf16x6"):
        with six_products():
            dense.dense_forward(a, W, b, "linear", out, precision)
        errors[precision] = float((out.double() - want).norm() / want.norm())
    assert errors["bf16x6"] < 1.1 * errors["ieee"] < 1e-6
    with six_products(products=3):
        dense.dense_forward(a, W, b, "linear", out, "bf16x6")
    assert float((out.double() - want).norm() / want.norm()) > 1e-6


@pytest.mark.parametrize(("nets", "tangents"), [(3, 3), (1, 3), (3, 1)])
def test_dense_group_equals_each_net_alone(
    nets: int, tangents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits in a group and alone, with the gradient in three splits."""
    monkeypatch.setattr(dense, "SPLIT_CASES", 8)
    assert dense.splits_of(20, 1) == (3, 7)
    layer = Layer((20, 5, 7), torch.float32, nets, tangents)
    together = layer.results("logistic", 0.7)
    for g in range(3):
        for name, own in layer.alone(g).results("logistic", 0.7).items():
            assert torch.equal(together[name][g], own[0]), name


def test_dense_stop_flag_ends_every_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "SPLIT_CASES", 8)
    layer = Layer((20, 5, 7), torch.float32)
    a, W, delta = layer.a, layer.W, layer.delta
    buffers = [torch.full(s, 8.0) for s in ((1, 20, 7), (1, 20, 5), (1, 7, 5), (1, 7))]
    Ry, below, gW, gb = buffers

    def run(stop: Tensor) -> None:
        dense.dense_rforward(a, layer.Ra, W, layer.V, layer.v_b, layer.y, "tanh", Ry, stop)
        dense.dense_backward(delta, W, a, "tanh", layer.add, below, stop)
        dense.dense_gradient(delta, a, 0.3, False, gW, gb, stop)

    run(torch.ones(1, dtype=torch.int32))
    assert all(bool((t == 8.0).all()) for t in buffers)
    run(torch.zeros(1, dtype=torch.int32))
    want = layer.results("tanh", 0.3)
    for got, name in zip(buffers, ("Ry", "below + add", "gW False", "gb False"), strict=True):
        assert torch.equal(got, want[name])


def test_dense_nan_stays_in_its_row() -> None:
    layer = Layer((17, 5, 19), torch.float32)
    clean = layer.results("tanh", 1.0)
    layer.a[0, 3, 2] = float("nan")
    found = layer.results("tanh", 1.0)
    row = (torch.arange(17) == 3)[None, :, None]
    for name in ("y", "Ry", "first Ry"):
        assert torch.equal(found[name].isnan(), row.expand_as(found[name]))
    column = (torch.arange(5) == 2).expand(1, 19, 5)
    assert torch.equal(found["gW False"].isnan(), column)
    assert torch.equal(found["gb False"], clean["gb False"])


def test_splits_cover_every_case_once() -> None:
    for B in (1, 255, 256, 257, 5000, 100_000):
        for tiles in (1, 3, 91, 1000):
            splits, per_split = dense.splits_of(B, tiles)
            assert (splits - 1) * per_split < B <= splits * per_split
            assert splits == 1 or per_split >= dense.SPLIT_CASES // 2


# ---------------------------------------------------------------------------- sparse weights


class Sparse:
    """A matrix m x n of up to K entries a row, every other row short, and cases on both sides."""

    def __init__(
        self, shape: tuple[int, int, int, int], dtype: torch.dtype, nets: int = 1, cases: int = 1
    ) -> None:
        B, n, m, K = shape
        self.G, self.shape, self.dtype = max(nets, cases), shape, dtype
        g = torch.Generator().manual_seed(sum(shape))
        index = torch.rand(m, n, generator=g).topk(K).indices.sort().values
        index[1::2, K // 2 :] = index[1::2, K // 2 : K // 2 + 1]
        self.pattern = EllPattern(index.int(), n)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)

        self.value, self.x, self.g = normal(nets, m, K), normal(cases, B, n), normal(cases, B, m)
        self.d, self.a = normal(cases, 3, B, m), normal(cases, 3, B, m)
        self.u = normal(cases, 3, B, m)

    def results(self, time: bool = True) -> dict[str, Tensor]:
        """Every op; ``time``: through three steps in every form where the matrix is square."""
        (B, n, m, K), G, p, dtype = self.shape, self.G, self.pattern, self.dtype
        flat = self.value.flatten(1)
        found = {}
        with guarded([G, B, m], dtype) as found["y"]:
            sparse.product(self.x, flat, p.rows, found["y"])
        with guarded([G, B, n], dtype) as found["back"]:
            sparse.product(self.g, flat, p.transposed, found["back"])
        with guarded([self.x.shape[0], m, K], dtype) as found["gradient"]:
            sparse.gradient(self.g, self.x, p, found["gradient"])
        if m != n:
            return found
        for e in sparse.NONLINEAR if time else ("tanh",):
            with guarded([G, 3, B, m], dtype) as found[e]:
                sparse.hidden(self.u, flat, p.rows, e, found[e])
        for t, r, more in itertools.product((False, True), repeat=3):
            if not time and not (t and r and more):
                continue
            name, a = f"{t} {r} {more}", self.a if more else None
            rows = p.transposed if t else p.rows
            with guarded([G, 3, B, m], dtype) as found[name]:
                sparse.scan(self.u, self.d, flat, rows, a, r, found[name])
        return found

    def wanted(self) -> dict[str, Tensor]:
        p, w, x, g, u, d, a = (
            self.pattern,
            *(t.double() for t in (self.value, self.x, self.g, self.u, self.d, self.a)),
        )  # fmt: skip
        want = {
            "y": sparse_reference.ell_matmul(x, w, p),
            "back": sparse_reference.ell_matmul_t(g, w, p),
            "gradient": sparse_reference.ell_gradient(g, x, p),
        }
        for e in sparse.NONLINEAR if p.m == p.n else ():
            want[e] = sparse_reference.ell_hidden(u, w, p, e)
        for t, r in itertools.product((False, True), repeat=2) if p.m == p.n else ():
            for more in (None, a):
                want[f"{t} {r} {more is not None}"] = sparse_reference.ell_scan(
                    u, d, w, p, more, t, r
                )
        return want


# B, n, m, K: ones, primes, a tile of 16 units by 64 cases ± 1; square ones go through time.
SPARSE = [(1, 1, 1, 1), (5, 7, 3, 4), (65, 17, 33, 5), (63, 15, 15, 15), (64, 16, 16, 3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=TORCH_TO_LABEL.get)
@pytest.mark.parametrize("shape", SPARSE, ids=str)
def test_sparse_ops(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Roundings of sums of some tens of terms, and of three steps, at the size of the result."""
    case = Sparse(shape, dtype)
    want = case.wanted()
    for name, got in case.results().items():
        assert_within(got, want[name], 60 * eps(dtype) * float(want[name].abs().max()))


@pytest.mark.parametrize(("nets", "cases"), [(3, 3), (1, 3), (3, 1)])
def test_sparse_group_equals_each_net_alone(nets: int, cases: int) -> None:
    case = Sparse((3, 5, 5, 2), torch.float32, nets, cases)
    together = case.results(time=False)
    for g in range(3):
        own = Sparse((3, 5, 5, 2), torch.float32, nets, cases)
        own.G = 1
        for name in ("value", "x", "g", "u", "d", "a"):
            t = getattr(case, name)
            setattr(own, name, t[min(g, len(t) - 1)].unsqueeze(0))
        for name, alone in own.results(time=False).items():
            assert torch.equal(together[name][min(g, len(together[name]) - 1)], alone[0]), name


def test_sparse_short_rows_are_not_read() -> None:
    case = Sparse((3, 5, 5, 4), torch.float32)
    want = case.results(time=False)
    assert case.pattern.present is not None
    case.value = case.value.masked_fill(~case.pattern.present, math.nan)
    for name, got in case.results(time=False).items():
        assert torch.equal(got, want[name]), name


# ---------------------------------------------------------------------------- conjugate gradients

SIZES = [1, 7, 1023, 1025, 5000]
ALL_SIZES = [*SIZES, *(pytest.param(n, marks=pytest.mark.slow) for n in (16_384, 524_289))]


def make_vectors(N: int, dtype: torch.dtype) -> tuple[Vectors, Tensor]:
    """Vectors with pᵀAp > 0, and a positive diagonal."""
    g = torch.Generator().manual_seed(N)
    x, r, z, p, b = (torch.randn(N, generator=g, dtype=torch.float64) for _ in range(5))
    diagonal = 0.5 + torch.rand(2, N, generator=g, dtype=torch.float64)
    vectors = Vectors(*(v.to(dtype) for v in (x, r, z, p, diagonal[0] * p, b)))
    return vectors, diagonal[1].to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=TORCH_TO_LABEL.get)
@pytest.mark.parametrize("N", ALL_SIZES)
def test_cg_update_and_direction(N: int, dtype: torch.dtype) -> None:
    old, diagonal = make_vectors(N, dtype)
    for M, alias in itertools.product((None, diagonal), (False, True)):
        if M is not None and alias:
            continue
        with guarded([N], dtype) as x, guarded([N], dtype) as r, guarded([N], dtype) as z:
            x.copy_(old.x)
            r.copy_(old.r)
            z = r if alias else z
            pAp, rz, phi = cg.cg_update(x, r, z, old.p, old.Ap, old.b, 0.37, M)
        w = Vectors(*(v.double() for v in old))
        M64 = None if M is None else M.double()
        want = cg_reference.cg_update(*w, 0.37, M64)
        p, Ap, alpha = old.p.double(), old.Ap.double(), 0.37 / want[0]
        sums = 8 * eps(torch.float64) * math.sqrt(N)
        assert pAp == pytest.approx(want[0], abs=sums * float((p * Ap).abs().sum()))
        u = eps(dtype)
        assert_within(x, w.x, 2 * u * (w.x.abs() + (alpha * p).abs()))
        assert_within(r, w.r, 2 * u * (w.r.abs() + (alpha * Ap).abs()))
        r_size = w.r.abs() + (alpha * Ap).abs()
        assert_within(z, w.z, 3 * u * r_size / (1 if M64 is None else M64))
        # The scalars are exact for the vectors that were stored, up to float64 sums.
        stored = Vectors(*(v.double() for v in (x, r, z, p, Ap, old.b)))
        bound = sums * float((stored.r * stored.z).abs().sum())
        assert rz == pytest.approx(cg_reference.dot(stored.r, stored.z), abs=bound)
        terms = stored.x * (stored.r + stored.b)
        bound = sums * float((stored.x.abs() * (stored.r.abs() + stored.b.abs())).sum())
        assert phi == pytest.approx(-0.5 * float(terms.sum()), abs=bound)
        with guarded([N], dtype) as direction:
            direction.copy_(old.p)
            cg.cg_direction(direction, z.clone(), 0.7)
        assert_within(direction, z.double() + 0.7 * p, 2 * u * (z.double().abs() + p.abs()))


@pytest.mark.parametrize("dtype", DTYPES, ids=TORCH_TO_LABEL.get)
@pytest.mark.parametrize("N", ALL_SIZES)
def test_dot(N: int, dtype: torch.dtype) -> None:
    v, _ = make_vectors(N, dtype)
    terms = v.x.double() * v.b.double()
    want, got = math.fsum(terms.tolist()), cg.dot(v.x, v.b)
    assert abs(got - want) <= eps(torch.float64) * math.sqrt(N) * float(terms.abs().sum())
    assert cg.dot(v.x, v.b) == got


Spoil = Callable[[Vectors], Tensor]


@pytest.mark.parametrize(
    ("spoil", "pAp"),
    [
        (lambda v: torch.zeros_like(v.p), 0.0),
        (lambda v: -v.Ap, None),
        (lambda v: torch.where(torch.arange(1500) == 700, float("nan"), v.Ap), float("nan")),
        (lambda v: torch.copysign(torch.full_like(v.p, float("inf")), v.p), float("inf")),
    ],
    ids=["zero", "negative", "nan", "infinite"],
)
def test_bad_curvature_changes_nothing(spoil: Spoil, pAp: float | None) -> None:
    v, M = make_vectors(1500, torch.float32)
    v = v._replace(Ap=spoil(v))
    after = v.copy()
    got, rz, phi = cg.cg_update(*after, 0.37, M)
    assert got < 0 if pAp is None else got == pytest.approx(pAp, nan_ok=True)
    assert rz == 0.37
    assert math.isnan(phi)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(after, v, strict=True))


def test_nan_in_a_vector_shows_in_the_scalars() -> None:
    v, M = make_vectors(1100, torch.float32)
    v.r[1099] = float("nan")
    pAp, rz, phi = cg.cg_update(*v, 0.37, M)
    assert pAp > 0
    assert math.isnan(rz)
    assert math.isnan(phi)


def test_blocks_cover_every_element_once() -> None:
    for N in (1, 1024, 1025, 524_288, 524_289, 3_000_000, 10**9):
        blocks, per_block = cg.blocks_of(N)
        assert blocks <= cg.BLOCKS
        assert per_block % cg.BLOCK == 0
        assert (blocks - 1) * per_block < N <= blocks * per_block


# ---------------------------------------------------------------------------- momentum


def make_nets(G: int, N: int, dtype: torch.dtype, *, shared: bool) -> tuple[Tensor, ...]:
    """θ, v, g, ahead and the coefficients ε, μ, lookahead, l2 of G nets."""
    g = torch.Generator().manual_seed(G * N)
    nets = torch.randn(3, G, N, generator=g, dtype=torch.float64)
    gradient = torch.randn(1 if shared else G, N, generator=g, dtype=torch.float64)
    theta, velocity, ahead, gradient = (t.to(dtype) for t in (*nets, gradient))
    return theta, velocity, gradient, ahead, *torch.rand(4, G, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=TORCH_TO_LABEL.get)
@pytest.mark.parametrize("N", SIZES)
def test_momentum_update(N: int, dtype: torch.dtype) -> None:
    """With and without every optional argument, within counted roundings, nothing outside."""
    for G, has_l2, has_ahead, shared in (
        (1, False, False, False), (1, True, True, True), (3, True, False, False),
        (3, False, True, True), (3, True, True, False),
    ):  # fmt: skip
        theta, v, g, ahead, *rates, l2 = make_nets(G, N, dtype, shared=shared)
        wide = [t.double() for t in (theta, v, g, ahead)]
        sizes = [t.abs() for t in wide]
        with (
            guarded(theta.shape, dtype) as new,
            guarded(theta.shape, dtype) as new_v,
            guarded(theta.shape, dtype) as new_ahead,
        ):
            for to, array in ((new, theta), (new_v, v), (new_ahead, ahead)):
                to.copy_(array)
            decay, point = (l2 if has_l2 else None), (new_ahead if has_ahead else None)
            momentum.momentum_update(new, new_v, g, *rates, decay, point, None)
        point = wide[3] if has_ahead else None
        momentum_reference.momentum_update(*wide[:3], *rates, decay, point, None)
        a = sizes[3] if has_ahead else sizes[0]
        eps_mu = [r.unsqueeze(1) for r in rates]
        force = sizes[2] + (l2.unsqueeze(1) * a if has_l2 else 0)
        bound = 6 * eps(dtype) * (eps_mu[1] * sizes[1] + eps_mu[0] * force)
        assert_within(new_v, wide[1], bound)
        bound = bound + eps(dtype) * wide[0].abs()
        assert_within(new, wide[0], bound)
        if has_ahead:
            assert_within(new_ahead, wide[3], 4 * bound + 2 * eps(dtype) * wide[3].abs())


def test_lookahead_point_is_what_the_update_leaves() -> None:
    for N, dtype in itertools.product((1, 1023, 1025), DTYPES):
        theta, v, g, ahead, *rates, _ = make_nets(3, N, dtype, shared=False)
        momentum.momentum_update(theta, v, g, *rates, None, ahead, None)
        active = torch.tensor([True, False, True])
        for which in (None, active):
            with guarded(theta.shape, dtype) as out:
                momentum.lookahead_point(theta, v, rates[2], out, which)
            assert torch.equal(out[::2], ahead[::2])
            assert torch.equal(out[1], ahead[1]) if which is None else bool(out[1].isnan().all())


def test_momentum_update_of_a_group_equals_each_net_alone() -> None:
    """And of the nets that are not active nothing is read or written."""
    N = 1025
    for shared in (False, True):
        theta, v, g, ahead, *rates = make_nets(4, N, torch.float32, shared=shared)
        active = torch.tensor([True, False, True, False])
        before = [t.clone() for t in (theta, v, ahead)]
        for array in (theta, v, ahead):
            array[1] = float("nan")
        momentum.momentum_update(theta, v, g, *rates, ahead, active)
        assert all(bool(t[1].isnan().all()) for t in (theta, v, ahead))
        for n, on in enumerate(active.tolist()):
            alone = [t[n : n + 1].clone() for t in before]
            if on:
                one = g if shared else g[n : n + 1]
                rate = [r[n : n + 1] for r in rates]
                momentum.momentum_update(*alone[:2], one, *rate, alone[2], None)
            if n != 1:
                pairs = zip((theta, v, ahead), alone, strict=True)
                assert all(torch.equal(t[n : n + 1], a) for t, a in pairs)


# ---------------------------------------------------------------------------- draws


@pytest.mark.parametrize("count", [1, 6, 4 * draws.BLOCK, 4 * draws.BLOCK + 1])
@pytest.mark.parametrize("key", [(0, 0), (1, 1), (2**31 - 1, 2**32 - 1), (2**63 - 1, 2**40)])
def test_philox_is_that_of_the_reference(key: tuple[int, int], count: int) -> None:
    with guarded_integers(count) as out:
        draws.philox(*key, out)
    assert torch.equal(out, draws_reference.philox(*key, count))


@contextmanager
def guarded_integers(count: int) -> Iterator[Tensor]:
    """A buffer of int64 beside which nothing may be written."""
    around = torch.full((count + 16,), -7)
    yield around[8:-8]
    assert bool((torch.cat([around[:8], around[-8:]]) == -7).all()), "wrote outside of out"
