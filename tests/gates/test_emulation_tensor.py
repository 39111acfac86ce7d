"""The recurrence on tensor cores (gpu_tensor.cu), run on the CPU with every thread as a fiber.

Sums are cut as tensor cores cut them (``tensor_cores_on_cpu.h``). Results are held to first-order
bounds in float64, in three orders of the threads; shared memory and allocations start as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emulation import (
    ORDERS,
    SANITIZED,
    assert_sanitized_tests_pass,
    assert_shared_memory_is_exact,
    build,
    gpu_source,
)
from emulation.on_tensor_cores import (
    GROUPS,
    NONLINEARITIES,
    Case,
    Fault,
    Libraries,
    check_all,
    check_forward,
    check_product,
    check_same_bits,
    no_worse_than_float32,
    planted,
    shows_fault,
)
from hfcore.kernels.recurrence import Curvature, gpu, gpu_tensor
from hfcore.kernels.scratch import Scratch
from oracles.cases.recurrence import STEPS, Size

SOURCE = gpu_source("recurrence", gpu_tensor.SOURCE)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(scope="session")
def libraries(emulated: Callable[..., Path]) -> Libraries:
    return Libraries(emulated("recurrence"), emulated("recurrence", gpu_tensor.SOURCE))


# One step; every number of chunks, full and not; one sequence, a block, part of one, several
# blocks; inputs in the padding and beside, there as one column too many.
SIZES = (
    Size(1, 1, 1, 1, 1),
    Size(4, 9, 3, 29, 2),
    Size(3, 8, 30, 3, 1),
    Size(3, 3, 1, 32, 1),
    Size(3, 11, 5, 37, 3),
    Size(2, 9, 2, 100, 1),
    Size(3, 10, 2, 127, 2),
    Size(2, 17, 40, 100, 1),
    Size(2, 3, 5, 128, 2),
)
QUICK = SIZES[:5]


# ---- the rule


def test_plan() -> None:
    """The smallest form that holds units and inputs, else the units; none beyond 128 units."""
    for H in range(1, 200):
        for m in (1, 2, 31, 40, 200):
            chosen = gpu_tensor.plan(H, m)
            assert (chosen is None) == (H > 128)
            if chosen is None:
                continue
            assert chosen.chunks in gpu_tensor.CHUNKS
            held = H + m if chosen.inputs_on_chip else H
            assert held <= 16 * chosen.chunks
            assert chosen.inputs_on_chip == (H + m <= 128)
            assert not any(held <= 16 * c < 16 * chosen.chunks for c in gpu_tensor.CHUNKS)
    # Backpropagation has two columns more, and one form fewer.
    for H, chunks in ((28, 2), (29, 4), (60, 4), (61, 7), (108, 7), (109, None)):
        assert gpu_tensor._backward_chunks(H, 2) == chunks
    assert gpu_tensor.plan(100, 2) == gpu_tensor.TensorPlan(7, True)
    text = SOURCE.with_name("gpu_tensor_tile.cuh").read_text()
    for name, value in (("kUnits", gpu_tensor.UNITS), ("kSequences", gpu_tensor.SEQUENCES)):
        assert f"constexpr int {name} = {value};" in text


# ---- values


@pytest.mark.parametrize("size", QUICK, ids=str)
def test_quick(libraries: Libraries, size: Size) -> None:
    at = QUICK.index(size)
    case = Case(size, GROUPS[at % len(GROUPS)], STEPS[at % len(STEPS)])
    check_all(libraries.run(ORDERS[at % 3]), case, NONLINEARITIES[at % 3])


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size_and_group(libraries: Libraries, size: Size, group: str) -> None:
    at = SIZES.index(size) + GROUPS.index(group)
    case = Case(size, group, STEPS[at % len(STEPS)])
    check_all(libraries.run(ORDERS[at % 3]), case, NONLINEARITIES[at // 2 % 3])


@pytest.mark.parametrize("steps", ["first", "last", "scattered"])
def test_steps_and_nonlinearities(libraries: Libraries, steps: str) -> None:
    case = Case(Size(5, 9, 2, 6, 3), "alone", steps)
    for nonlinearity in NONLINEARITIES:
        check_all(libraries.run("shuffled"), case, nonlinearity)


def test_larger_nets_keep_their_kernels(libraries: Libraries) -> None:
    case, machine = Case(Size(2, 2, 1, 129, 1)), libraries.run()
    gpu.rnn_forward(machine.others.launch, case.x, case.w, "tanh", None, **machine.options())
    assert machine.ran() == set()
    assert "rnn_forward" in {name for name, _ in machine.others.launches}


def test_a_step_has_one_barrier(libraries: Libraries) -> None:
    """And the weights one for every two chunks, and one more before the first step."""
    T, machine = 6, libraries.run()
    case = Case(Size(T, 3, 2, 9, 1))
    check_forward(machine, case)
    check_product(machine, case, "tanh", 0.0, False)
    found = [barriers for _, barriers in machine.launches()]
    # The R-op's second group is a step ahead, that of backpropagation one behind.
    assert found == [T + 1 + 1] * 2 + [T + 1 + 1 + 1] * 2


def test_same_bits_in_every_order_and_alone(libraries: Libraries) -> None:
    check_same_bits(libraries, Case(Size(3, 11, 3, 22, 2), "rows", "scattered"))


def test_stop_leaves_outputs_alone(libraries: Libraries) -> None:
    case = Case(Size(3, 9, 2, 6, 2))
    at = case.forward_pass(h=case.states("tanh"))
    for raised in (0, 1):
        machine, scratch = libraries.run(), Scratch()
        stop = torch.tensor([raised], dtype=torch.int32)
        states, product = torch.full((1, 3, 9, 6), 7.0), torch.full((1, case.shape.numel), 7.0)
        launch, rest = machine.others.launch, {"stop": stop, **machine.options()}
        if raised:  # every buffer that a product keeps is there by now
            gpu.rnn_gauss_newton(launch, at, case.v, Curvature(case.c), scratch=scratch,
                                 **machine.options())  # fmt: skip
            for buffer in scratch._kept.values():
                buffer.fill_(7.0)
        gpu.rnn_forward(launch, case.x, case.w, "tanh", None, out=states, **rest)
        gpu.rnn_gauss_newton(
            launch, at, case.v, Curvature(case.c), scratch=scratch, out=product, **rest
        )
        for written in (states, product, *(scratch._kept.values() if raised else ())):
            assert bool((written == 7.0).all()) == bool(raised)
            assert bool(written.isfinite().all())


def test_nan_stays_in_its_sequence(libraries: Libraries) -> None:
    """A sequence with a NaN or Inf spoils itself from that step on, and no other."""
    case, machine = Case(Size(4, 9, 2, 7, 1)), libraries.run()
    case.x[0, 2, 3, 1] = math.nan
    case.x[0, 1, 8, 0] = math.inf  # becomes NaN: note 2 of tensor_core.cuh
    for nonlinearity in NONLINEARITIES:
        h, _ = gpu.rnn_forward(
            machine.others.launch, case.x, case.w, nonlinearity, None, **machine.options()
        )
        assert h is not None
        spoilt = h.isnan().any(-1)[0]
        assert spoilt.nonzero().tolist() == [[1, 8], [2, 3], [2, 8], [3, 3], [3, 8]]


# ---- quality


@pytest.mark.parametrize(("H", "T"), [(30, 12), pytest.param(100, 100, marks=pytest.mark.slow)])
def test_errors_are_those_of_float32(libraries: Libraries, H: int, T: int) -> None:
    assert no_worse_than_float32(libraries, H, T)


# ---- the gate itself: planted faults must show

# In which file, what in the place of what: barriers, a lane that reads what another has, rows
# stored and read in different orders, registers of a fragment exchanged, pieces left out or wrong.
FAULTS: dict[str, Fault] = {
    "barrier": ("gpu_tensor_forward.cuh", "__syncthreads();  // the rows of the next step", "//"),
    "first barrier": ("gpu_tensor_forward.cuh", "__syncthreads();  // the rows of the first", "//"),
    "barrier of R": ("gpu_tensor_tangent.cuh", "__syncthreads();  // the rows and sums", "//"),
    "parity of R": ("gpu_tensor_tangent.cuh", "*rooms.sums(odd, tile) = make",
                    "*rooms.sums(0, tile) = make"),
    "barrier of BPTT": ("gpu_tensor_backward.cuh", """
        block_barrier();  // gt_t and what it is multiplied by are complete
    }
    block_barrier();""", "\n}\nblock_barrier();"),
    "states of BPTT": ("gpu_tensor_backward.cuh", "states + kChunkWords * c", "states"),
    "pairs of BPTT": ("gpu_tensor_backward.cuh", "a[p][0] = low_halves", "a[p][0] = high_halves"),
    "padding of BPTT": ("gpu_tensor_backward.cuh", "if (!lane.inside(i)) y[i] = 0.0f;", ""),
    "lane": ("gpu_tensor_tile.cuh", "lane % 4 + i / 2 * 4", "lane / 8 + i / 2 * 4"),
    "swizzle": ("gpu_tensor_tile.cuh", "rows + 8 * (b ^ b / 2)", "rows + 8 * b"),
    "registers": ("gpu_tensor_tile.cuh", "v[p][0] = pair.x;", "v[p][0] = pair.y;"),
    "slots": ("gpu_tensor_tile.cuh", "Pieces pieces(y[next], y[2 + next])",
              "Pieces pieces(y[2 + next], y[next])"),
    "beside": ("gpu_tensor_tile.cuh", "beside[(c - kAllInRegisters) * 32]", "beside[0]"),
    "distance of nets": ("gpu_tensor_backward.cuh", "kCarryWeights, task.net_stride",
                         "kCarryWeights, task.H * task.H"),
    "piece": ("../gpu/tensor_core.cuh", "mma(small[(5 * c + 3) % kSmall], a[0], b[2]);", ""),
    "rounding": ("../gpu/tensor_core.cuh", "low -= as_float(part[i] << 16);",
                 "low -= as_float(part[i] >> 16);"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_shows(tmp_path: Path, libraries: Libraries, fault: str) -> None:
    source = planted(tmp_path, gpu_tensor.SOURCE, FAULTS[fault])
    faulty = libraries._replace(block=build(source, tmp_path, include=tmp_path))
    if fault in ("piece", "beside"):  # cost the last bits; beside registers in larger nets only
        assert not no_worse_than_float32(faulty, 30 if fault == "piece" else 100, 4)
    else:
        case = Case(Size(4, 9, 3, 37, 3), "rows" if fault == "distance of nets" else "alone")
        assert shows_fault(faulty, lambda machine: check_all(machine, case, "tanh"))


# ---- under the sanitizers

LESS_SHARED = """
import sys, torch
from emulation import Emulator
from hfcore.kernels.recurrence import RnnWeights, gpu_tensor
from hfcore.kernels.recurrence.gpu_launch import Run, TensorLaunch
from hfcore.kernels.scratch import Scratch
launch = Emulator(sys.argv[1]).launch
def short(kernel, grid, block, shared, arguments):
    launch(kernel, grid, block, shared - int(sys.argv[2]), arguments)
run = Run(short, None, 2**17, Scratch(), TensorLaunch(short))
a = torch.ones(1, 2, 9, 20)
w = RnnWeights(*(torch.ones(1, *s) for s in ((20, 20), (20, 20), (1, 20), (20,), (20,), (1,))))
x = a[..., :2].contiguous()
gpu_tensor.rnn_forward(run, x, w._replace(W_hx=torch.ones(1, 20, 2)), "tanh", None, a)
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
    assert_sanitized_tests_pass(__file__, "test_quick or test_steps or test_stop or test_nan")
