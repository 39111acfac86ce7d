"""The gated kernels of gpu.cu, run on the CPU with every thread as a fiber.

The bindings' CUDA branch runs on CPU tensors, in three orders of the threads and in both forms,
against cells that torch.func differentiates in float64. Shared memory starts as NaN, and so does
every tensor that is written to.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from emulation import (
    ORDERS,
    SANITIZED,
    Emulator,
    Order,
    assert_sanitized_tests_pass,
    assert_shared_memory_is_exact,
    build,
    gpu_source,
    kernel_names,
)
from hfcore.bindings import cuda, dispatch, gated
from hfcore.kernels.gated import gpu, rows_of
from hfcore.kernels.recurrence.gpu import SHARED_LIMIT
from oracles.cases.gated import CELLS, GROUPS, SHAPES, Case

SOURCE = gpu_source("gated")
# What the names of kernels end in; shared memory a block, in bytes, and gpu.HELD, that lead there.
FORMS = {
    "": (SHARED_LIMIT[90], (0,)),
    "_held": (SHARED_LIMIT[90], (24,)),
    "_step": (0, (0, 24)),
}

pytestmark = pytest.mark.usefixtures("poisoned_memory")
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form or "_shared")
two_forms = pytest.mark.parametrize("form", ["", "_step"], ids=["_shared", "_step"])
every_cell = pytest.mark.parametrize("cell", CELLS)


@pytest.fixture(scope="session")
def library(emulated: Callable[[str], Path]) -> Path:
    return emulated("gated")


@contextmanager
def served(library: Path, form: str, order: Order = "forward") -> Iterator[Emulator]:
    """CPU tensors are served as if they were on a GPU, in one of the forms."""
    emulator, (limit, held) = Emulator(library, order), FORMS[form]

    class Launch:
        shared_limit = limit

        def __call__(self, *how: Any) -> None:
            emulator.launch(*how)

    @contextmanager
    def serving(op: str, family: str, device: torch.device) -> Iterator[Launch]:
        assert family == "gated"
        yield Launch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "serving", serving)
        patch.setattr(gpu, "HELD", held)
        patch.setattr(dispatch, "_fastest", lambda device: "cuda")
        patch.setattr(dispatch, "_why_declined", lambda _, op, *__: not_emulated(op))
        yield emulator


def not_emulated(op: str) -> str | None:
    """The products of a gradient are not what is looked at here."""
    return None if op.startswith("gated.") else "it is not emulated"


def ran(cell: str, form: str) -> set[str]:
    """The kernels of every op."""
    return {f"{cell}_{op}{form}" for op in ("forward", "tangent", "backward")}


# ---- the ops


@two_forms
@every_cell
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(library: Path, shape: tuple[int, ...], cell: str, form: str) -> None:
    order = ORDERS[(SHAPES.index(shape) + len(form)) % 3]
    with served(library, form, order) as emulator:
        Case(shape, torch.float32, cell).check(with_Rx=False)
    assert {name for name, _ in emulator.launches} == ran(cell, form)


@two_forms
@every_cell
@pytest.mark.parametrize("group", [*GROUPS, "rows"])
def test_every_group(library: Path, group: str, cell: str, form: str) -> None:
    order = ORDERS[(len(group) + len(form)) % 3]
    with served(library, form, order):
        Case((3, 13, 5, 17), torch.float32, cell, group).check(with_Rx=True)


# The rule's own choice: slices that K fills and does not, one and many; the largest on chip.
LARGE = [
    (3, 9, 2, 33), (2, 17, 1, 64), (2, 3, 5, 100), (2, 9, 1, 112), (2, 2, 1, 115), (2, 3, 1, 128)
]  # fmt: skip


@every_cell
@pytest.mark.parametrize(
    "shape",
    [pytest.param(s, marks=[] if s[3] == 100 else pytest.mark.slow) for s in LARGE],
    ids=str,
)
def test_by_the_rule(library: Path, shape: tuple[int, ...], cell: str) -> None:
    for order in ORDERS:
        with served(library, "", order), pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpu, "HELD", (0, 24))
            Case(shape, torch.float32, cell).check(with_Rx=True)


@every_cell
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(s, marks=[] if s[3] == 31 else pytest.mark.slow)
        for s in [(1, 3, 2, 24), (3, 9, 2, 31), (3, 9, 2, 47), (2, 11, 3, 53), *LARGE]
    ],
    ids=str,
)
def test_weights_in_registers(library: Path, shape: tuple[int, ...], cell: str) -> None:
    """Where they need not be, too: slices that are held whole, and that end beyond K."""
    for order in ORDERS:
        with served(library, "_held", order) as emulator:
            Case(shape, torch.float32, cell, "nets").check(with_Rx=True)
        assert {name for name, _ in emulator.launches} == ran(cell, "_held")


@every_form
@every_cell
def test_nets_that_are_one(library: Path, cell: str, form: str) -> None:
    """A group expanded from one net has that net's results."""
    case = Case((3, 9, 2, 25), torch.float32, cell)
    with served(library, form):
        want = case.results(with_Rx=True)
        case.G = 3
        for name in ("x", "Rx", "gh"):
            array = getattr(case, name)
            setattr(case, name, array.expand(3, *array.shape[1:]))
        got = case.results(with_Rx=True)
    for name, value in got.items():
        assert len(value) == 3
        torch.testing.assert_close(value, want[name].expand_as(value), rtol=1e-6, atol=1e-6)


@every_form
@every_cell
def test_states_are_left_out(library: Path, cell: str, form: str) -> None:
    """h has the same bits without what derivatives need."""
    case = Case((3, 13, 5, 27), torch.float32, cell)
    with served(library, form):
        alone = gated.gated_forward(case.x, case.w, cell=cell, states=False)
        assert torch.equal(alone.h, case.states().h)
    assert alone.gates.numel() == 0


@every_form
@every_cell
def test_same_bits_in_every_order(library: Path, cell: str, form: str) -> None:
    case, found = Case((4, 19, 3, 29), torch.float32, cell, "nets"), []
    for order in ORDERS:
        with served(library, form, order):
            found.append(case.results(with_Rx=True))
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


@every_form
@every_cell
def test_nan_stays_in_its_sequence(library: Path, cell: str, form: str) -> None:
    """And large inputs give finite derivatives."""
    case = Case((4, 9, 3, 24), torch.float32, cell)
    case.x[:, 1, 3] = float("nan")
    case.x[:, :, 4] = 1e4
    with served(library, form):
        at = gated.gated_forward(case.x, case.w, cell=cell)
        Rh = gated.gated_tangent(case.x, at, case.w, case.v, cell=cell)
        ga = gated.gated_backward(case.gh, at, case.w.W_hh, cell=cell)
    assert bool(at.h[0, 1:, 3].isnan().all())
    others = [b for b in range(9) if b != 3]
    for finite in (at.h[:, :, others], Rh[:, :, others], ga[:, :, :, others]):
        assert bool(finite.isfinite().all())


@every_cell
def test_launches_and_barriers(library: Path, cell: str) -> None:
    """One kernel an op of two barriers a step, one at the first; or one kernel a step."""
    T = 4
    for form in FORMS:
        with served(library, form) as emulator:
            Case((T, 3, 2, 25), torch.float32, cell).results(with_Rx=False)
        names = [f"{cell}_{op}{form}" for op in ("forward", "tangent", "backward")]
        one = [(name, 2 * T - 1) for name in names]
        steps = [(name, 0) for name in names for _ in range(T)]
        assert emulator.launches == (steps if form == "_step" else one)


def test_other_data_is_refused() -> None:
    case = Case((2, 2, 2, 3), torch.float64, "gru")
    with pytest.raises(TypeError, match=r"got torch\.float64, need torch\.float32"):
        gpu.gated_tangent(
            lambda *_: None, case.x, case.states(), None, case.w, case.v, "gru", case.gh,
            shared_limit=0,
        )  # fmt: skip
    gh, W = torch.zeros(65_536, 1, 1, 1), torch.zeros(1, 3, 1)
    at = gated.GatedStates(gh, torch.zeros(1, 4, 1, 1, 1), None)
    for limit, _ in FORMS.values():
        with pytest.raises(ValueError, match="has 65536 nets or tangents, need at most 65535"):
            gpu.gated_backward(
                lambda *_: None, gh, at, W, "gru", torch.zeros(65_536, 4, 1, 1, 1),
                shared_limit=limit,
            )  # fmt: skip


# ---- the rule


def test_rule_by_size() -> None:
    """What its docstring says, and that every thread that is counted on is there."""
    largest = {}
    for (capability, limit), cell in itertools.product(SHARED_LIMIT.items(), CELLS):
        R = rows_of(cell).blocks
        for backward, H in itertools.product((False, True), range(1, 140)):
            chosen = gpu.plan(H, R, backward=backward, shared_limit=limit)
            if not chosen.split:
                continue
            largest[capability, cell, backward] = H
            K, columns = (R * H, H) if backward else (H, R * H)
            assert chosen.shared_bytes <= limit
            assert chosen.threads <= gpu.MAX_THREADS
            assert chosen.threads % 32 == 0
            assert chosen.threads >= max(2 * H, chosen.split * -(-columns // 4))
            assert -(-K // chosen.split) >= max(chosen.held, min(K, gpu.SHORTEST_SLICE))
            assert chosen.split > 1 or K < 16
    a_90, a_100 = (
        {(a, cell, back): 128 for cell in CELLS for back in (False, True)} for a in (90, 100)
    )
    assert largest == {
        **a_90,
        **a_100,
        **{(80, "gru", back): 128 for back in (False, True)},
        (80, "lstm", False): 116,
        (80, "lstm", True): 112,
    }


def test_kernels_are_those_that_are_launched() -> None:
    wanted = [ran(cell, form) for cell in CELLS for form in FORMS]
    assert set(kernel_names(SOURCE)) == set().union(*wanted)


# ---- the gate itself: planted faults must show

# Steps that one thread takes for another, and what no product gives.
FAULTS = {
    "sums": (
        "gpu_scan.cuh",
        "__syncthreads();  // the sums are complete, and nobody reads the carry any more",
        "",
    ),
    "carry": (
        "gpu_scan.cuh",
        "__syncthreads();  // the carry of the next step is complete, and the sums are free",
        "",
    ),
    "step before": ("gpu_cell.cuh", "const Element back{row - a.B,", "const Element back{row,"),
    "cells": ("gpu_cell.cuh", "past = f * gc;", "past = gc;"),
    "blocks": (
        "gpu_cell.cuh",
        "{rows[2], rows[0], rows[1], gn}",
        "{gn, rows[0], rows[1], rows[2]}",
    ),
    "state": ("gpu.cu", "state[net * B * H + i] = kept;", ""),
    "distance of nets": ("gpu_scan.cuh", "kWeights, net_stride", "kWeights, net_stride - 1"),
    "net": ("gpu_cell.cuh", "array + blockIdx.y * size", "array + 0 * size"),
    "padding": ("gpu_scan.cuh", "carry[i] = 0.0f;", ";"),
    "held": ("gpu_scan.cuh", "rank_one(sum, held[i],", "rank_one(sum, held[0],"),
}


def planted(folder: Path, fault: str) -> Path:
    """A copy of the kernels with it."""
    for path in SOURCE.parent.glob("gpu*.cu*"):
        shutil.copy(path, folder)
    file, text, other = FAULTS[fault]
    whole = (folder / file).read_text()
    assert whole.count(text) == 1
    (folder / file).write_text(whole.replace(text, other))
    return folder / SOURCE.name


def shows_fault(library: Path) -> bool:
    for order, cell, form in itertools.product(ORDERS, CELLS, FORMS):
        try:
            with served(library, form, order):
                Case((4, 13, 2, 25), torch.float32, cell, "rows").check(with_Rx=True)
        except AssertionError:
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows(tmp_path: Path, library: Path, fault: str) -> None:
    assert not shows_fault(library)
    assert shows_fault(build(planted(tmp_path, fault), tmp_path, optimise="-O0"))


def test_these_are_all_barriers() -> None:
    text = "".join(path.read_text() for path in SOURCE.parent.glob("gpu*.cu*"))
    assert text.count("__syncthreads();") == sum("__syncthreads" in f[1] for f in FAULTS.values())


LESS_SHARED = """
import sys, torch
from emulation import Emulator
from hfcore.kernels.gated import GatedStates, gpu
launch = Emulator(sys.argv[1]).launch
def short(kernel, grid, block, shared, arguments):
    launch(kernel, grid, block, shared - int(sys.argv[2]), arguments)
H = int(sys.argv[3])
one = lambda *size: torch.ones(1, *size)
at = GatedStates(one(3, 9, H), one(4, 3, 9, H), one(2, 3, 9, H))
out = one(4, 3, 9, H)
gpu.gated_backward(short, one(3, 9, H), at, one(4 * H, H), "lstm", out, shared_limit=232448)
"""


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="starts sanitized processes itself")
def test_planned_shared_memory_is_exact(tmp_path: Path) -> None:
    """To the padding of 4 words behind the last group of sums."""
    library = build(SOURCE, tmp_path, sanitize=True)
    for H in ("20", "100"):
        assert_shared_memory_is_exact(LESS_SHARED, library, 20, H)


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="starts sanitized processes itself")
def test_under_sanitizers(require_tool: Callable[[str], str]) -> None:
    require_tool("g++")
    kept = "test_every or test_by_the_rule or test_weights or test_nets or test_states or test_nan"
    assert_sanitized_tests_pass(__file__, kept)
