"""Sparse ops on every backend against dense matrices in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hfcore.bindings.dispatch import native
from hfcore.bindings.sparse import (
    ell_dense,
    ell_gather,
    ell_gradient,
    ell_hidden,
    ell_matmul,
    ell_matmul_t,
    ell_pattern,
)
from hfcore.fan_in import distinct_columns
from oracles.cases.sparse import (
    GROUPS,
    SHAPE_IDS,
    SHAPES,
    Case,
    Shape,
    TimeCase,
    all_results,
    check_all,
    dense_of,
)

# ---------------------------------------------------------------------------- agreement


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("short", [False, True], ids=["full", "short"])
def test_every_op(short: bool, shape: Shape, dtype: torch.dtype, backend: str) -> None:
    check_all(Case(shape, dtype, short=short))


@pytest.mark.parametrize("shape", [(13, 7, 5, 3), (33, 64, 65, 15), (1, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("group", GROUPS)
def test_every_group(group: str, shape: Shape, dtype: torch.dtype, backend: str) -> None:
    check_all(Case(shape, dtype, group, short=True))


def test_matmul_and_transpose_are_adjoint(backend: str) -> None:
    """⟨g, W x⟩ = ⟨Wᵀg, x⟩ = ⟨value, gradient⟩."""
    case = Case((33, 41, 29, 7), torch.float64)
    found = all_results(case)
    forward = (case.g * found["y"]).sum()
    torch.testing.assert_close((case.x * found["back"]).sum(), forward, rtol=1e-12, atol=0)
    torch.testing.assert_close((case.value * found["gradient"]).sum(), forward, rtol=1e-12, atol=0)


@pytest.mark.parametrize("short", [False, True])
def test_dense_and_back(short: bool) -> None:
    case = Case((2, 9, 7, 4), torch.float64, "nets", short)
    W = ell_dense(case.value, case.pattern)
    assert torch.equal(W, dense_of(case.value, case.pattern))
    assert torch.equal(ell_gather(W, case.pattern), case.value.nan_to_num())
    ones = torch.ones_like(W)
    kept = torch.ones(7, 4) if case.pattern.present is None else case.pattern.present
    assert torch.equal(ell_gather(ones, case.pattern), kept.double().expand(3, -1, -1))


def test_pattern_in_either_integer() -> None:
    index = torch.tensor([[0, 2], [1, 1]])
    wide, narrow = ell_pattern(index, 3), ell_pattern(index.int(), 3)
    assert torch.equal(wide.index, narrow.index)
    assert wide.index.dtype == torch.int32
    assert wide.present is not None
    assert wide.present.tolist() == [[True, True], [True, False]]
    assert wide.transposed.start.tolist() == [0, 1, 2, 3]
    assert wide.transposed.column.tolist() == [0, 1, 0]
    assert wide.to(torch.device("cpu")) is wide


# ---------------------------------------------------------------------------- through time


@pytest.mark.parametrize(
    "size", [(1, 1, 1, 1), (3, 5, 7, 3), (4, 16, 16, 15), (3, 33, 65, 15), (2, 70, 31, 17)], ids=str
)
def test_through_time(size: Shape, dtype: torch.dtype, backend: str) -> None:
    TimeCase(*size, dtype).check()


@pytest.mark.parametrize("group", GROUPS)
def test_through_time_in_groups(group: str, dtype: torch.dtype, backend: str) -> None:
    TimeCase(3, 18, 20, 5, dtype, group).check()


# ---------------------------------------------------------------------------- bits


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", [(20, 65, 300, 15), (300, 65, 99, 15), (2100, 9, 40, 3)], ids=str)
def test_bits_do_not_depend_on_threads_or_group(
    shape: Shape, group: str, dtype: torch.dtype, cpu: None
) -> None:
    """Large enough that tiles, pieces of rows and partial sums are shared among threads."""
    case = Case(shape, dtype, group, short=True)
    torch.set_num_threads(1)
    want = all_results(case)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(v, want[k]) for k, v in all_results(case).items()), threads
    for net in range(case.G):
        own = Case(shape, dtype, group, short=True)
        own.G = 1
        for name in ("x", "g", "value"):
            t = getattr(case, name)
            setattr(own, name, t[min(net, len(t) - 1)].unsqueeze(0))
        for name, alone in all_results(own).items():
            assert torch.equal(want[name][min(net, len(want[name]) - 1)], alone[0]), name


@pytest.mark.parametrize(
    ("B", "n", "m"), [(1000, 5, 1616), (100, 12_300, 16_016)], ids=["two vectors", "one"]
)
def test_bits_of_a_result_written_past_the_caches(
    B: int, n: int, m: int, dtype: torch.dtype, cpu: None
) -> None:
    """It is where every row begins a cache line; an element further on it is not."""
    draw = torch.Generator().manual_seed(0)
    pattern = ell_pattern(distinct_columns(m, n, 3, draw), n)
    value, x = torch.randn(1, m, 3, generator=draw), torch.randn(1, B, n, generator=draw)
    value, x = value.to(dtype), x.to(dtype)
    size, line = B * m, 64 // x.element_size()

    def result(after: int, threads: int) -> Tensor:
        room = torch.full((size + 3 * line,), math.nan, dtype=dtype)
        first = -room.data_ptr() % 64 // room.element_size() + after
        torch.set_num_threads(threads)
        ell_matmul(x, value, pattern, out=room[first : first + size].view(1, B, m))
        assert room[:first].isnan().all()
        assert room[first + size :].isnan().all()
        return room[first : first + size]

    kept = result(1, threads=2)
    assert not kept.isnan().any()
    for threads in (1, 2, 3):
        assert torch.equal(result(0, threads), kept)


@pytest.mark.parametrize("group", GROUPS)
def test_bits_through_time(group: str, dtype: torch.dtype, cpu: None) -> None:
    case = TimeCase(4, 70, 33, 15, dtype, group)
    torch.set_num_threads(1)
    want = case.results()
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert all(torch.equal(v, want[k]) for k, v in case.results().items()), threads
    for net in range(case.G):
        own = TimeCase(4, 70, 33, 15, dtype, group)
        own.G = 1
        for name in ("u", "d", "a", "value"):
            t = getattr(case, name)
            setattr(own, name, t[min(net, len(t) - 1)].unsqueeze(0))
        assert all(torch.equal(want[k][net], v[0]) for k, v in own.results().items())


# ---------------------------------------------------------------------------- NaN, buffers


def test_nan_reaches_what_it_touches_and_nothing_else(dtype: torch.dtype, backend: str) -> None:
    case = Case((20, 9, 19, 4), dtype)
    clean = all_results(case)
    case.x[0, 3, 2] = math.nan
    found = all_results(case)
    touched = case.pattern.index == 2
    wrong = (torch.arange(20) == 3)[:, None] & touched.any(1)
    assert torch.equal(found["y"].isnan()[0], wrong)
    assert torch.equal(found["y"][0][~wrong], clean["y"][0][~wrong])
    assert torch.equal(found["gradient"].isnan()[0], touched)
    assert torch.equal(found["back"], clean["back"])


def test_any_stride_goes_in(dtype: torch.dtype, backend: str) -> None:
    case = Case((13, 7, 5, 3), dtype)
    want = all_results(case)
    for name in ("x", "g", "value"):
        t = getattr(case, name)
        setattr(case, name, t.permute(2, 1, 0).contiguous().permute(2, 1, 0))
    case.x = torch.complex(case.x, -case.x).conj().imag  # negated lazily
    assert case.x.is_neg()
    for name, got in all_results(case).items():
        torch.testing.assert_close(got, want[name], rtol=0, atol=0 if backend == "cpu" else 1e-5)


def test_an_expanded_group_is_one_net(dtype: torch.dtype, backend: str) -> None:
    case = Case((13, 7, 5, 3), dtype)
    want = ell_matmul(case.x, case.value, case.pattern)
    got = ell_matmul(case.x.expand(3, -1, -1), case.value.expand(3, -1, -1), case.pattern)
    assert torch.equal(got, want.expand(3, -1, -1))


def test_out_shares_no_memory(backend: str) -> None:
    case = Case((6, 5, 5, 3), torch.float64)
    with pytest.raises(ValueError, match="out: shares memory with x, need its own"):
        ell_matmul(case.x, case.value, case.pattern, out=case.x)
    with pytest.raises(ValueError, match="out: shares memory with g, need its own"):
        ell_matmul_t(case.g, case.value, case.pattern, out=case.g)
    u = torch.zeros(1, 2, 3, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="out: shares memory with u, need its own"):
        ell_hidden(u, case.value, case.pattern, out=u)


def test_no_gradient_passes(backend: str) -> None:
    case = Case((6, 5, 4, 3), torch.float64)
    case.x.requires_grad_()
    case.value.requires_grad_()
    assert not any(t.requires_grad for t in all_results(case).values())


# ---------------------------------------------------------------------------- refusals

PATTERN = ell_pattern(torch.tensor([[0, 1], [1, 2]]), 3)
X, G, V = torch.zeros(1, 4, 3), torch.zeros(1, 4, 2), torch.zeros(1, 2, 2)


@pytest.mark.parametrize(
    ("index", "n", "error", "message"),
    [
        ([[0.0]], 3, TypeError, r"index: got torch.float32, need torch.int32 or torch.int64"),
        ([0, 1], 3, ValueError, r"index: got shape \[2\], need \[m,K\]"),
        ([[]], 3, ValueError, "K: got 0, need at least 1"),
        ([[0, 1], [0, 3]], 3, ValueError, r"index: row 1 has column 3, need columns in 0\.\.2"),
        ([[-1, 1]], 3, ValueError, r"index: row 0 has column -1, need columns in 0\.\.2"),
        ([[0, 1], [2, 1]], 3, ValueError, r"index: row 1 is \[2,1\], need columns that increase"),
        ([[0, 0, 1]], 3, ValueError, r"index: row 0 is \[0,0,1\], need columns that increase"),
        ([[0, 1]], 0, ValueError, "n: got 0, need at least 1"),
        ([[0, 1]], 2.0, TypeError, r"n: got 2.0, need an int"),
    ],
)
def test_bad_patterns(index: list[object], n: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ell_pattern(torch.tensor(index, dtype=None if index != [[]] else torch.int64), n)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ell_matmul(X[:, :0], V, PATTERN), ValueError, "B: got 0, need at least 1"),
        (lambda: ell_matmul(X[..., :2], V, PATTERN), ValueError, r"x: got shape \[1, 4, 2\], need"),
        (lambda: ell_matmul(X, V.double(), PATTERN), TypeError, "value: got torch.float64, need"),
        (lambda: ell_matmul(X.long(), V, PATTERN), TypeError, "x: got torch.int64, need a float"),
        (lambda: ell_matmul(X, V[:, :1], PATTERN), ValueError, r"value: got shape \[1, 1, 2\]"),
        (lambda: ell_matmul(X, V, PATTERN.index), TypeError, "pattern: got Tensor, need what ell"),
        (
            lambda: ell_matmul(X.expand(2, 4, 3), V.expand(3, 2, 2), PATTERN),
            ValueError,
            "x: got group axis 2, need 1 or 3",
        ),
        (lambda: ell_matmul(X.to("meta"), V, PATTERN), ValueError, "pattern: is on cpu, need meta"),
        (lambda: ell_matmul_t(X, V, PATTERN), ValueError, r"g: got shape \[1, 4, 3\], need"),
        (lambda: ell_gradient(G, X[:, :3], PATTERN), ValueError, r"x: got shape \[1, 3, 3\]"),
        (
            lambda: ell_gradient(G, X, PATTERN, out=torch.zeros(1, 2, 3)),
            ValueError,
            r"out: got shape \[1, 2, 3\], need \[1,2,2\]",
        ),
        (lambda: ell_hidden(X[None], V, PATTERN), ValueError, "pattern: got a matrix of 2 x 3, ne"),
    ],
)  # fmt: skip
def test_bad_arguments(
    call: Callable[[], object], error: type[Exception], message: str, backend: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_unknown_nonlinearity() -> None:
    case = TimeCase(2, 3, 4, 2, torch.float32)
    with pytest.raises(ValueError, match="nonlinearity: got 'softplus', need one of"):
        ell_hidden(case.u, case.value, case.pattern, nonlinearity="softplus")


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("start", "column", "place", "message"),
    [
        (ints(0, 2), ints(0, 1, 1, 2), None, r"start: got shape \[2\], need \[3\]"),
        (ints(0, 2, 3), ints(0, 1, 1, 2), None, "start: need 0 first and 4 last"),
        (ints(0, 9, 4), ints(0, 1, 1, 2), None, r"start: got 9, need 0\.\.4"),
        (ints(0, 2, 4), ints(0, 1, 1, 3), None, r"column: got 3, need 0\.\.2"),
        (ints(0, 2, 4), ints(0, -1, 1, 2), None, r"column: got -1, need 0\.\.2"),
        (ints(0, 2, 3), ints(0, 1, 2), None, "place: got None for 3 entries of 4 values, need"),
        (ints(0, 2, 4), ints(0, 1, 1, 2), ints(0, 1, 2, 4), r"place: got 4, need 0\.\.3"),
        (ints(0, 2, 4), ints(0, 1, 1, 2), ints(0, 1, 2), r"place: got shape \[3\], need \[4\]"),
    ],
)
def test_the_compiled_module_checks_the_entries_itself(
    start: Tensor, column: Tensor, place: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        native().ell_product(X, V.view(1, 4), start, column, place, torch.zeros(1, 4, 2), 1)
    with pytest.raises(ValueError, match=message):
        native().ell_gradient(G, X, start, column, place, torch.zeros(1, 4), 1)


def test_the_compiled_module_refuses_a_start_that_falls() -> None:
    with pytest.raises(ValueError, match="start: falls, need it to increase"):
        native().ell_product(
            X, V.view(1, 4), ints(0, 3, 1, 4), ints(0, 1, 1, 2), None, torch.zeros(1, 4, 3), 1
        )
