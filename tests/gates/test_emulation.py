"""The recurrence kernels of gpu.cu, run on the CPU with every thread as a fiber.

All of gpu.py runs on CPU tensors, in three orders of the threads, against the references in
float64. Shared memory starts as NaN, and so does every tensor that gpu.py allocates.
"""

from __future__ import annotations

import itertools
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import planted
from emulation import (
    ORDERS,
    SANITIZED,
    EmulationError,
    Emulator,
    Order,
    assert_sanitized_tests_pass,
    assert_shared_memory_is_exact,
    build,
    gpu_source,
    kernel_names,
    sanitized,
)
from hfcore.kernels.gpu_launch import in_rows
from hfcore.kernels.recurrence import (
    Curvature,
    ForwardPass,
    RnnWeights,
    gpu,
    gpu_products,
    reference,
)
from oracles.cases import recurrence as cases
from oracles.cases.recurrence import STEPS, Size
from oracles.recurrence_bounds import (
    U,
    assert_within,
    backward_magnitude,
    doubles,
    forward_bound,
    magnitudes,
    product_bound,
    roundings,
    scan_bound,
)

SOURCE = gpu_source("recurrence")
PLANTED = Path(planted.__file__).parent
SEQUENCE_KERNELS = tuple(
    name + form
    for form in ("", "_registers")
    for name in ("rnn_forward", "rnn_tangent", "linear_scan")
)
# Where the weights on chip lie, and the largest H that the rule gives to registers then.
FORMS = {"registers": gpu.MOST_IN_REGISTERS, "shared": 0}
PLENTY = gpu.SHARED_LIMIT[90]


pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(scope="session")
def library(emulated: Callable[[str], Path]) -> Path:
    return emulated("recurrence")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms with the weights on chip, whatever H the rule gives them to."""
    monkeypatch.setattr(gpu, "MOST_IN_REGISTERS", FORMS[request.param])
    return str(request.param)


both_forms = pytest.mark.usefixtures("form")


# Ones; one less, exactly and one more than a tile (4), the rows of a block (8), a warp (32) and the
# inputs that the kernel takes itself (32); n, k > H; more slices of K than K needs.
SIZES = (
    Size(1, 1, 1, 1, 1),
    Size(5, 11, 3, 37, 2),
    Size(2, 8, 2, 4, 3),
    Size(3, 9, 31, 5, 6),
    Size(4, 7, 33, 3, 35),
    Size(3, 17, 1, 64, 1),
    Size(7, 3, 2, 33, 1),
    Size(2, 10, 32, 31, 33),
    Size(2, 5, 2, 100, 1),
    Size(2, 3, 5, 128, 2),
    Size(2, 2, 1, 150, 3),
)
QUICK_SIZES = SIZES[:5]
GROUPS = ("alone", "tangents", "expanded", "inputs", "weights", "distinct", "rows")
NONLINEARITIES = ("tanh", "logistic", "relu")


def Case(size: Size, group: str = "alone", steps: str = "all") -> cases.Case:
    """In float32, which is all that these kernels compute in."""
    return cases.Case(size, torch.float32, group=group, steps=steps, seed=5)


# ---- the ops


def check_forward(e: Emulator, case: cases.Case, nonlinearity: str, limit: int) -> None:
    want_h, want_s = reference.rnn_forward(
        case.x.double(), doubles(case.w), nonlinearity, case.steps
    )
    bound = forward_bound(case, want_h, nonlinearity)
    w = magnitudes(case.w)
    at = reference._at(case.steps, want_h.abs() * (case.size.H + 4) * U + bound)
    bound_s = reference._times(at, w.W_yh.mT) + 2 * U * (want_s.abs() + w.b_y[:, None, None])
    G = max(p.shape[0] for p in (case.x, *case.w))
    for states in (True, False):
        h, s = gpu.rnn_forward(
            e.launch, case.x, case.w, nonlinearity, case.steps, states=states, shared_limit=limit
        )
        assert_within(s, want_s.expand(G, *want_s.shape[1:]), bound_s)
        assert (h is not None) == states
        if h is not None:
            assert_within(h, want_h.expand(G, *want_h.shape[1:]), bound)


def check_scan(e: Emulator, case: cases.Case, limit: int) -> None:
    for a, reverse in itertools.product((None, case.a), (False, True)):
        got = gpu.linear_scan(e.launch, case.u, case.d, case.W, a, reverse, shared_limit=limit)
        wide = [p.double() for p in (case.u, case.d, case.W)]
        want = reference.linear_scan(*wide, None if a is None else a.double(), reverse)
        assert_within(got, want, scan_bound(case, a, reverse))


def check_backward(e: Emulator, case: cases.Case, nonlinearity: str, limit: int) -> None:
    h = case.states(nonlinearity)
    at = case.forward_pass(h=h, nonlinearity=nonlinearity)
    got = gpu.rnn_backward(e.launch, at, case.gs, shared_limit=limit)
    wide = case.forward_pass(torch.float64, h, nonlinearity)
    want = reference.rnn_backward(wide, case.gs.double())
    bound = backward_magnitude(case, h, case.gs, None, nonlinearity)
    assert_within(got, want.expand_as(got), roundings(case) * U * bound)


def check_product(
    e: Emulator, case: cases.Case, nonlinearity: str, limit: int, structural: float, rank_one: bool
) -> None:
    h = case.states(nonlinearity)
    factors = (0.3, structural, 0.7)
    at = case.forward_pass(h=h, nonlinearity=nonlinearity)
    curvature = Curvature(case.c, rank_one, *factors)
    # On a GPU the weight may be a value that lies there.
    given = torch.tensor(structural) if structural and limit == PLENTY else structural
    of = curvature._replace(structural=given)
    got = gpu.rnn_gauss_newton(e.launch, at, case.v, of, shared_limit=limit)
    wide = case.forward_pass(torch.float64, h, nonlinearity)
    curvature = curvature._replace(c=case.c.double())
    want = reference.rnn_gauss_newton(wide, case.v.double(), curvature)
    bound = product_bound(case, h, rank_one, nonlinearity, factors)
    assert_within(got, want.expand_as(got), bound)


def limits(case: cases.Case) -> list[int]:
    """Shared memory for each form of the rule: all on chip, V on chip, W on chip, nothing."""
    H, n = case.size.H, case.size.n
    found = []
    limit = PLENTY
    while True:
        chosen = gpu.plan(H, n, hidden=True, shared_limit=limit)
        found.append(limit)
        if not chosen.on_chip:
            return found
        limit = chosen.shared_bytes - 1


def check_all(e: Emulator, case: cases.Case, nonlinearity: str) -> None:
    for limit in limits(case):
        check_forward(e, case, nonlinearity, limit)
        check_scan(e, case, limit)
        check_backward(e, case, nonlinearity, limit)
        for structural, rank_one in ((0.0, False), (0.4, True)):
            check_product(e, case, nonlinearity, limit, structural, rank_one)


@both_forms
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", QUICK_SIZES, ids=str)
def test_quick(library: Path, size: Size, order: Order) -> None:
    at = QUICK_SIZES.index(size) + ORDERS.index(order)
    group, steps = GROUPS[at % len(GROUPS)], STEPS[at % len(STEPS)]
    check_all(Emulator(library, order), Case(size, group, steps), NONLINEARITIES[at % 3])


@both_forms
@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size_and_group(library: Path, size: Size, group: str) -> None:
    at = SIZES.index(size) + GROUPS.index(group)
    steps, order = STEPS[at % len(STEPS)], ORDERS[at % len(ORDERS)]
    check_all(Emulator(library, order), Case(size, group, steps), NONLINEARITIES[at // 2 % 3])


@both_forms
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("steps", STEPS)
def test_steps_and_nonlinearities(library: Path, steps: str, nonlinearity: str) -> None:
    check_all(
        Emulator(library, "shuffled"), Case(Size(6, 9, 2, 6, 3), "alone", steps), nonlinearity
    )


def test_each_form_is_reached(library: Path, form: str) -> None:
    """The limits that the other tests use do lead through all four forms of the rule."""
    case = Case(Size(2, 3, 2, 12, 2))
    forms = [gpu.plan(12, 2, hidden=True, shared_limit=limit)[:3] for limit in limits(case)]
    on, off = True, False
    assert forms == [(on, on, on), (on, on, off), (on, off, off), (off, off, off)]
    ran = []
    for limit in limits(case):
        e = Emulator(library)
        check_product(e, case, "tanh", limit, 0.0, False)
        ran.append({name for name, _ in e.launches} - {"finish_gradient"})
    beside = {"rows_product", "outer_partials"}
    shared = {"rnn_tangent", "linear_scan"}
    registers = {f"{name}_registers" for name in shared}
    assert ran[:2] == [beside | (registers if form == "registers" else shared)] * 2
    assert ran[2] >= beside | {"rnn_tangent"}
    assert ran[3] == {"linear_scan_step"}


# Every compiled length of a slice, full, not full and over; the columns of a warp likewise.
LENGTHS_IN_REGISTERS = (
    1,
    3,
    4,
    5,
    15,
    16,
    17,
    31,
    32,
    33,
    64,
    65,
    97,
    100,
    101,
    104,
    105,
    127,
    128,
)


@pytest.mark.parametrize("T", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("H", LENGTHS_IN_REGISTERS)
def test_weights_in_registers(library: Path, H: int, T: int) -> None:
    at = H + T
    group, steps = GROUPS[at % len(GROUPS)], STEPS[at % len(STEPS)]
    case = Case(Size(T, (3, 9)[at % 2], 1 + H % 5, H, 1 + H % 3), group, steps)
    e, nonlinearity = Emulator(library, ORDERS[at % len(ORDERS)]), NONLINEARITIES[at % 3]
    check_forward(e, case, nonlinearity, PLENTY)
    check_scan(e, case, PLENTY)
    check_backward(e, case, nonlinearity, PLENTY)
    check_product(e, case, nonlinearity, PLENTY, 0.4, True)
    ran = {name for name, _ in e.launches if name in SEQUENCE_KERNELS}
    assert ran == {
        "rnn_forward_registers",
        "rnn_tangent_registers",
        "linear_scan_registers",
    }


def test_who_is_in_registers() -> None:
    """The rule by size, and that the lengths are those of scan_by_length."""
    for limit, H, m in itertools.product(gpu.SHARED_LIMIT.values(), range(1, 221), (0, 2, 32)):
        for hidden in (False, True):
            chosen = gpu.plan(H, m, hidden=hidden, shared_limit=limit)
            assert chosen.in_registers == (H <= 128)
            if not chosen.in_registers:
                continue
            assert chosen[:3] == (True, hidden, True)
            assert chosen.threads <= 256  # __launch_bounds__
            assert chosen.threads // 32 * 16 >= H
            assert chosen.split in gpu.LENGTHS
            assert gpu.SLICES * chosen.split >= H
    found = [gpu.plan(H, 2, hidden=True, shared_limit=PLENTY) for H in (32, 33, 64, 65, 100, 104)]
    assert [p.split for p in found] == [4, 8, 8, 13, 13, 13]
    assert gpu.plan(105, 2, hidden=True, shared_limit=PLENTY).split == 16
    text = SOURCE.with_name("gpu_registers.cuh").read_text()
    assert [int(n) for n in re.findall(r"scan_in_registers<(\d+), kWide", text)] == [*gpu.LENGTHS]


def test_rule_by_size() -> None:
    """What the docstring of the rule says."""
    for capability, H_scan, H_tangent in ((90, 220, 156), (80, 184, 128)):
        limit = gpu.SHARED_LIMIT[capability]
        for H, hidden, fits in ((H_scan, False, True), (H_scan + 1, False, False)):
            assert gpu.plan(H, 0, hidden=hidden, shared_limit=limit).on_chip == fits
        for H, fits in ((H_tangent, True), (H_tangent + 1, False)):
            chosen = gpu.plan(H, 0, hidden=True, shared_limit=limit)
            assert chosen.hidden_on_chip == fits
            assert chosen.on_chip
    for H, m, hidden in itertools.product(range(1, 260), (0, 1, 32, 33), (False, True)):
        chosen = gpu.plan(H, m, hidden=hidden, shared_limit=PLENTY)
        assert chosen.threads <= gpu.MAX_THREADS
        assert chosen.threads % 32 == 0
        assert chosen.shared_bytes <= PLENTY
        if chosen.on_chip:
            assert chosen.threads >= 2 * H
        if chosen.on_chip and not chosen.in_registers:
            assert chosen.threads >= chosen.split * 2 * -(-H // 4)


def test_barriers_a_step(library: Path, form: str) -> None:
    """One with the weights in registers and two to get them there, per matrix; two in shared."""
    T = 6
    case = Case(Size(T, 3, 2, 9, 1))
    e = Emulator(library)
    check_product(e, case, "tanh", PLENTY, 0.0, False)
    check_forward(e, case, "tanh", PLENTY)
    found = [barriers for name, barriers in e.launches if name in SEQUENCE_KERNELS]
    if form == "shared":
        assert found == [2 * T + 2] * 4
    else:
        assert found == [T + 4, T + 2, T + 2, T + 2]


def test_barriers_of_the_products(library: Path) -> None:
    """As the models beside the kernels say: two a chunk of 32 k, one a chunk of rows."""
    # 138 rows in splits of 128; chunks of 16 rows (hidden) and 16.
    case = Case(Size(6, 23, 2, 37, 1))
    e = Emulator(library)
    check_product(e, case, "tanh", PLENTY, 0.0, False)
    cut = [gpu_products.plan_outer(6 * 23, i, J) for i, J in ((37, 41), (1, 38))]
    chunks = [
        sum(-(-min(c.split_rows, 138 - at) // 16) for at in range(0, 138, c.split_rows))
        for c in cut
    ]
    assert [c.shared_bytes for c in cut] == [2 * 16 * 256 * 4] * 2
    found = {name: barriers for name, barriers in e.launches}
    assert found["rows_product"] == 2 * (2 + 2) + 2
    assert found["finish_gradient"] == 1
    assert [b for name, b in e.launches if name == "outer_partials"] == [
        (c.splits + count) // c.splits for c, count in zip(cut, chunks, strict=True)
    ]


@both_forms
@pytest.mark.parametrize("steps", ["all", "scattered"])
def test_same_bits_in_every_order_and_alone(library: Path, steps: str) -> None:
    """Bits depend on the shape only: not on the order of threads, not on the group."""
    # More than one split of the rows; inputs on chip and not.
    for size, limit in ((Size(4, 41, 3, 22, 2), PLENTY), (Size(3, 23, 40, 9, 35), 4000)):
        case = Case(size, "rows", steps)
        h = case.states("tanh")

        def run(e: Emulator, part: slice, case: cases.Case = case, h: Tensor = h) -> list[Tensor]:
            w = RnnWeights(*(p[part] for p in case.w))
            rest = {"shared_limit": limit}  # noqa: B023
            states, s = gpu.rnn_forward(e.launch, case.x[part], w, "tanh", case.steps, **rest)
            assert states is not None
            at = ForwardPass(case.x[part], h[part], w, "tanh", case.steps)
            curvature = Curvature(case.c[part], True, 0.3, 0.4, 0.7)
            product = gpu.rnn_gauss_newton(e.launch, at, case.v[part], curvature, **rest)
            return [states, s, product]

        together = [run(Emulator(library, order), slice(0, 3)) for order in ORDERS]
        for g in range(3):
            alone = run(Emulator(library), slice(g, g + 1))
            for results in together:
                for whole, one in zip(results, alone, strict=True):
                    assert torch.equal(whole[g], one[0])


# ---- the products over all steps by themselves


class Wide(NamedTuple):
    """Lengths of a product: slots, steps, sequences, widths of both operands, columns."""

    S: int
    T: int
    B: int
    a: int
    h: int
    columns: int


# Columns of every number of slices and of two tiles; widths about a chunk of 32; rows about a tile.
WIDE = (
    Wide(1, 1, 1, 1, 1, 1),
    Wide(2, 5, 32, 31, 33, 4),
    Wide(3, 4, 21, 64, 5, 7),
    Wide(2, 2, 33, 1, 32, 9),
    Wide(1, 3, 65, 40, 1, 33),
    Wide(3, 3, 43, 3, 70, 65),
)


@pytest.mark.parametrize("size", WIDE, ids=str)
def test_rows_product(library: Path, size: Wide) -> None:
    """Every place of a row, both layouts of the weights, terms absent, nets of their own."""
    S, T, B, a_width, h_width, columns = size
    random = torch.Generator().manual_seed(3)

    def array(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    steps = torch.randperm(T, generator=random)[:S].sort().values
    forms = itertools.product((True, False), (1, 2), ("slot", "step", "previous"))
    for at, (transposed, G, place) in enumerate(forms):
        slots = T if place == "previous" else S
        a = array(G, slots, B, a_width)
        (A, V), net_stride = in_rows(
            *(array(G, *((columns, w) if transposed else (w, columns))) for w in (a_width, h_width))
        )
        h = array(3 - G, T if place != "slot" else S, B, h_width)
        bias = array(1, columns) if at % 2 else None
        factor = array(G, slots, B, columns) if at % 3 else None
        code = {
            "slot": gpu_products.AT_SLOT,
            "step": gpu_products.AT_STEP,
            "previous": gpu_products.AT_PREVIOUS,
        }[place]
        launch = Emulator(library, ORDERS[at % 3]).launch
        run = gpu.Run(launch, None, PLENTY, gpu.Scratch(), net_stride=net_stride)
        got = gpu_products._rows_product(
            run, "y", (a, A), (h, V), (gpu_products.AT_SLOT, code), slots,
            bias=bias, factor=factor, steps=steps,
            transposed=transposed,
        )  # fmt: skip
        rows = h.double()
        if place == "step":
            rows = rows[:, steps]
        if place == "previous":
            rows = torch.cat([torch.zeros_like(rows[:, :1]), rows[:, :-1]], 1)
        right = [W.double().mT if transposed else W.double() for W in (A, V)]

        def terms(x: Tensor, y: Tensor, W: list[Tensor], b: Tensor | None) -> Tensor:
            total = x @ W[0][:, None] + y @ W[1][:, None]
            return total if b is None else total + b.double()[:, None, None]

        want = terms(a.double(), rows, right, bias)
        b = None if bias is None else bias.abs()
        size_of = terms(a.double().abs(), rows.abs(), [W.abs() for W in right], b)
        if factor is not None:
            want, size_of = want * factor, size_of * factor.abs()
        assert_within(got, want, (a_width + h_width + 4) * U * size_of)


# Rows of one split and of several, and so many that splits grow; tiles of one thread, cut evenly,
# and two by two; columns that two threads fetch and one does.
GRADIENTS = (
    (Size(1, 1, 1, 1, 1), "all"),
    (Size(5, 27, 2, 20, 3), "scattered"),
    (Size(3, 43, 130, 5, 1), "last"),
    (Size(2, 9, 3, 130, 129), "all"),
    (Size(7, 9, 40, 3, 2), "listed"),
)


@pytest.mark.parametrize(("size", "steps"), GRADIENTS, ids=str)
@pytest.mark.parametrize("group", ["alone", "distinct"])
def test_parameter_gradient(
    library: Path, monkeypatch: pytest.MonkeyPatch, size: Size, steps: str, group: str
) -> None:
    """Own kernels and torch's GEMMs; into a buffer and added to it."""
    case = Case(size, group, steps)
    h, gt = case.states("tanh"), case.u
    N, G = case.shape.numel, case.v.shape[0]
    wide = [t.double() for t in (gt, case.gs, h, case.x)]
    want = reference._parameter_gradient(*wide, case.steps, case.shape)
    bound = reference._parameter_gradient(*(t.abs() for t in wide), case.steps, case.shape)
    bound = (size.T * size.B + 12) * U * (bound + case.v.double().abs() + 1)
    for at, (own, most) in enumerate(((True, 264), (True, 2), (False, 264))):
        monkeypatch.setattr(gpu_products, "SPLITS", most)
        launch = Emulator(library, ORDERS[at]).launch
        run = gpu.Run(launch, None, PLENTY, gpu.Scratch(), net_stride=N)
        for accumulate in (False, True):
            out = torch.full((G, N), 0.5 if accumulate else math.nan)
            got = gpu_products.parameter_gradient(
                run, own, gt, case.gs, h, case.x, case.steps, case.v, (0.3, 0.7), out, accumulate
            )
            assert got is out
            total = 0.3 * want + 0.7 * case.v.double() + (0.5 if accumulate else 0.0)
            assert_within(got, total, bound)


def test_rows_that_an_int_cannot_count_are_refused() -> None:
    run = gpu.Run(lambda *_: None, None, PLENTY, gpu.Scratch())
    left = torch.zeros(1, 1, 1, 1).expand(1, 2**16, 2**15, 1)
    with pytest.raises(ValueError, match="got 65536 steps of 32768 sequences, need at most"):
        gpu_products._outer_partials(run, "hidden", left, left, left, None)


def test_plan_of_the_outer_products() -> None:
    for rows, i, J in itertools.product((1, 63, 64, 200_000), (1, 8, 100, 129), (2, 103, 400)):
        cut = gpu_products.plan_outer(rows, i, J)
        assert cut.splits * cut.split_rows >= rows > (cut.splits - 1) * cut.split_rows
        assert cut.high * cut.wide <= gpu_products.THREADS
        assert 8 * (cut.high + cut.wide) <= gpu_products.CHUNK_STRIDE
        down = -(-i // (8 * cut.high))
        assert cut.tiles == down * -(-J // (8 * cut.wide))
        assert cut.shared_bytes <= 48 * 1024
    # What the model in gpu.cu says of the addition net.
    assert gpu_products.plan_outer(200_000, 100, 104)[1:5] == (13, 13, 760, 264)


def test_steps_without_outputs_do_no_output_work(library: Path) -> None:
    """Without structural damping, Rh leaves the R-op at the output steps only."""
    case = Case(Size(9, 3, 2, 5, 1), "alone", "last")
    e = Emulator(library)
    sizes: dict[str, int] = {}

    def launch(kernel: str, *rest: object) -> None:
        arguments = rest[-1]
        assert isinstance(arguments, list)
        if kernel.startswith("rnn_tangent"):
            sizes[kernel] = next(a for a in reversed(arguments) if isinstance(a, Tensor)).shape[1]
        e.launch(kernel, *rest)  # type: ignore[arg-type]

    h = case.states("tanh")
    gpu.rnn_gauss_newton(launch, case.forward_pass(h=h), case.v, Curvature(case.c))
    assert sizes == {"rnn_tangent_registers": 1}


@both_forms
@pytest.mark.parametrize("limit", [PLENTY, 0])
def test_stop_leaves_outputs_alone(library: Path, limit: int) -> None:
    case = Case(Size(3, 9, 2, 6, 2))
    launch = Emulator(library).launch
    h = case.states("tanh")
    N = case.shape.numel

    def run(stop: Tensor) -> list[Tensor]:
        states, scanned, gradient, product = (
            torch.full(s, 7.0) for s in ((1, 3, 9, 6), (1, 3, 9, 6), (1, N), (1, N))
        )
        rest = {"stop": stop, "shared_limit": limit}
        gpu.rnn_forward(launch, case.x, case.w, "tanh", None, out=states, **rest)
        gpu.linear_scan(launch, case.u, case.d, case.W, None, True, out=scanned, **rest)
        at = case.forward_pass(h=h)
        gpu.rnn_backward(launch, at, case.gs, out=gradient, **rest)
        gpu.rnn_gauss_newton(launch, at, case.v, Curvature(case.c), out=product, **rest)
        return [states, scanned, gradient, product]

    for untouched in run(torch.tensor([1], dtype=torch.int32)):
        assert bool((untouched == 7.0).all())
    for written in run(torch.tensor([0], dtype=torch.int32)):
        assert bool(written.isfinite().all())
        assert not bool((written == 7.0).any())


@both_forms
def test_every_kernel_of_a_product_looks_at_the_flag(library: Path) -> None:
    """None writes its part once the flag is raised, in each form with the weights on chip."""
    case = Case(Size(3, 9, 35, 12, 34), steps="scattered")
    h = case.states("tanh")
    for limit in limits(case)[:-1]:
        e, scratch = Emulator(library), gpu.Scratch()
        for stop in (0, 1):
            gpu.rnn_gauss_newton(
                e.launch, case.forward_pass(h=h), case.v, Curvature(case.c, True, 1.0, 0.3),
                stop=torch.tensor([stop], dtype=torch.int32), scratch=scratch, shared_limit=limit,
            )  # fmt: skip
            if stop == 0:
                assert {"u", "Rh", "gs", "gt", "hidden", "outputs"} == set(scratch._kept)
                for buffer in scratch._kept.values():
                    assert bool(buffer.isfinite().all())
                    buffer.fill_(7.0)
        for name, buffer in scratch._kept.items():
            assert bool((buffer == 7.0).all()), name


@both_forms
def test_nan_stays_in_its_sequence(library: Path) -> None:
    """A sequence with a NaN spoils itself from that step on, and no other."""
    case = Case(Size(4, 9, 2, 7, 1))
    case.x[0, 2, 3, 1] = math.nan
    for nonlinearity in NONLINEARITIES:
        h, _ = gpu.rnn_forward(Emulator(library).launch, case.x, case.w, nonlinearity, None)
        assert h is not None
        spoilt = h.isnan().any(-1)[0]
        assert spoilt.nonzero().tolist() == [[2, 3], [3, 3]]


def test_float64_is_refused() -> None:
    case = Case(Size(2, 2, 2, 3, 1))
    with pytest.raises(TypeError, match=r"got torch\.float64, need torch\.float32"):
        gpu.linear_scan(
            lambda *_: None, case.u.double(), case.d.double(), case.W.double(), None, False
        )


def test_too_many_nets_are_refused() -> None:
    u, W = torch.zeros(65_536, 1, 1, 1), torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match="has 65536 nets or tangents, need at most 65535"):
        gpu.linear_scan(lambda *_: None, u, u, W, None, False)


def test_wrong_arguments_are_refused(library: Path) -> None:
    with pytest.raises(EmulationError, match="got arguments ff, need "):
        Emulator(library).launch("linear_scan", (1, 1, 1), (32, 1, 1), 0, [1.0, 2.0])
    with pytest.raises(EmulationError, match="there is no such kernel"):
        Emulator(library).launch("no_kernel", (1, 1, 1), (32, 1, 1), 0, [])


# ---- the gate itself: planted faults must show


# Where the barriers are: file and how many.
BARRIERS = {"gpu_scan.cuh": 4, "gpu_registers.cuh": 5, "gpu_product.cuh": 4, "gpu.cu": 3}


def mutated(folder: Path, file: str, barrier: int) -> Path:
    """A copy of the kernels without one of a file's barriers."""
    for path in SOURCE.parent.glob("gpu*.cu*"):
        shutil.copy(path, folder)
    path = folder / file
    parts = path.read_text().split("__syncthreads();")
    assert len(parts) - 1 == BARRIERS[file]
    kept = ["__syncthreads();"] * (len(parts) - 1)
    kept[barrier - 1] = ""
    path.write_text("".join(itertools.chain(*zip(parts, [*kept, ""], strict=True))))
    return folder / "gpu.cu"


def shows_fault(library: Path) -> bool:
    """Whether any order of the threads gives a wrong product; chunks follow one another in both."""
    for order in ORDERS:
        for size in (SIZES[1], Size(3, 43, 70, 5, 40)):
            try:
                check_product(Emulator(library, order), Case(size), "tanh", PLENTY, 0.0, False)
            except AssertionError:
                return True
    return False


@pytest.mark.parametrize(
    ("file", "barrier"),
    [
        pytest.param(file, i, marks=[] if i == 3 else pytest.mark.slow)
        for file, count in BARRIERS.items()
        for i in range(1, count + 1)
    ],
)
def test_a_barrier_taken_out_shows(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch, file: str, barrier: int
) -> None:
    if file == "gpu_scan.cuh":
        monkeypatch.setattr(gpu, "MOST_IN_REGISTERS", FORMS["shared"])
    assert not shows_fault(library)
    assert shows_fault(build(mutated(tmp_path, file, barrier), tmp_path, optimise="-O0"))


# Parameters of one kind each, of the scans in either form and of the products over all steps.
OF_NETS = (
    ("gpu_scan.cuh", "kCarryWeights, s.net_stride"),
    ("gpu_scan.cuh", "kBias, s.net_stride"),
    ("gpu_registers.cuh", "kInputWeights, s.net_stride"),
    ("gpu_registers.cuh", "kHiddenWeights, s.net_stride"),
    ("gpu.cu", "kHiddenWeights, net_stride"),
    ("gpu.cu", "kAdded, net_stride"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "what"), OF_NETS)
def test_a_wrong_distance_of_nets_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, what: str
) -> None:
    for path in SOURCE.parent.glob("gpu*.cu*"):
        shutil.copy(path, tmp_path)
    text = (tmp_path / file).read_text()
    assert text.count(what) == 1
    (tmp_path / file).write_text(text.replace(what, f"{what} - 1"))
    if file == "gpu_scan.cuh" and "Carry" in what:
        monkeypatch.setattr(gpu, "MOST_IN_REGISTERS", FORMS["shared"])
    e = Emulator(build(tmp_path / "gpu.cu", tmp_path, optimise="-O0"))
    with pytest.raises(AssertionError):
        check_product(e, Case(Size(3, 9, 2, 11, 2), "rows"), "tanh", PLENTY, 0.0, False)


def run_row(e: Emulator, kernel: str) -> Tensor:
    row, out = torch.arange(64.0), torch.empty(64)
    e.launch(kernel, (1, 1, 1), (64, 1, 1), 4 * 64, [row, out])
    return out


def test_planted_missing_barrier_shows(tmp_path: Path, require_tool: Callable[[str], str]) -> None:
    require_tool("g++")
    source = PLANTED / "missing_barrier.cu"
    assert kernel_names(source) == dict.fromkeys(("reversed", "planted", "divergent"), 1)
    library = build(source, tmp_path)
    want = torch.arange(63.0, -1.0, -1.0)
    for order in ORDERS:
        e = Emulator(library, order)
        assert torch.equal(run_row(e, "reversed"), want)
        assert not torch.equal(run_row(e, "planted"), want)
        with pytest.raises(EmulationError, match="a barrier is not reached by thread 0"):
            run_row(e, "divergent")


# ---- the same under the sanitizers, in a process that has their runtime loaded from the start

ROW = """
import sys, torch
from emulation import Emulator
row, out = torch.arange(64.0), torch.empty(64)
for kernel in sys.argv[2:]:
    Emulator(sys.argv[1]).launch(kernel, (1, 1, 1), (64, 1, 1), 256, [row, out])
    assert torch.equal(out, row.roll(1)), out
    print(kernel, "is right", flush=True)
"""


@pytest.mark.skipif(SANITIZED, reason="starts sanitized processes itself")
def test_planted_write_out_of_bounds_is_caught(
    tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    require_tool("g++")
    library = build(PLANTED / "out_of_bounds.cu", tmp_path, sanitize=True)
    caught = sanitized("-c", ROW, str(library), "shifted", "planted")
    assert caught.stdout == "shifted is right\n", caught.stderr[-3000:]
    assert caught.returncode != 0
    assert "heap-buffer-overflow" in caught.stderr
    assert "out_of_bounds.cu" in caught.stderr


LESS_SHARED = """
import sys, torch
from emulation import Emulator
from hfcore.kernels.recurrence import gpu
launch = Emulator(sys.argv[1]).launch
def short(kernel, grid, block, shared, arguments):
    launch(kernel, grid, block, shared - int(sys.argv[2]), arguments)
a = torch.ones(1, 2, 9, 10)
gpu.linear_scan(short, a, a, torch.ones(1, 10, 10), None, False)
"""


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="starts sanitized processes itself")
def test_planned_shared_memory_is_exact(tmp_path: Path) -> None:
    library = build(SOURCE, tmp_path, sanitize=True)
    assert_shared_memory_is_exact(LESS_SHARED, library, 4)


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="starts sanitized processes itself")
def test_under_sanitizers(require_tool: Callable[[str], str]) -> None:
    require_tool("g++")
    kept = "test_quick or test_steps or test_stop or test_each_form or test_nan or test_same"
    kept += " or test_rows_product or test_parameter_gradient or test_weights_in_registers"
    assert_sanitized_tests_pass(__file__, kept)
