"""The recurrence by one kernel a step on tensor cores (gpu_step.cu), run on the CPU.

Every thread is a fiber, sums are cut as tensor cores cut them, and blocks run in three orders: who
brings the last sums of a tile finishes it. The rule gives these kernels nets above 220 units; here
they run small ones, cut into as many splits as larger ones are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from emulation import ORDERS, SANITIZED, assert_sanitized_tests_pass, build, gpu_source
from emulation.on_tensor_cores import (
    GROUPS,
    NONLINEARITIES,
    Case,
    Fault,
    Libraries,
    check_all,
    check_product,
    check_same_bits,
    check_stop,
    no_worse_than_float32,
    planted,
    shows_fault,
)
from hfcore.kernels.recurrence import (
    gpu,
    gpu_choice,
    gpu_cluster,
    gpu_step,
)
from hfcore.kernels.recurrence.gpu_launch import Run, TensorLaunch
from hfcore.kernels.scratch import Scratch
from oracles.cases.recurrence import STEPS, Size

SOURCE = gpu_source("recurrence", gpu_step.SOURCE)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(scope="session")
def libraries(emulated: Callable[..., Path]) -> Libraries:
    return Libraries(emulated("recurrence"), step=emulated("recurrence", gpu_step.SOURCE))


@pytest.fixture
def small_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets of any size, and splits of any length."""
    monkeypatch.setattr(gpu_choice, "MOST_UNITS_OF_A_BLOCK", 0)
    monkeypatch.setattr(gpu_step, "SHORTEST_SPLIT", 1)


# One step; units and sequences of one tile and of several, full and not; groups of 7 tiles of
# sequences, full and not; several blocks of units, and of sequences.
SIZES = (
    Size(1, 1, 1, 1, 1),
    Size(4, 9, 3, 37, 2),
    Size(3, 59, 2, 16, 1),
    Size(2, 56, 1, 130, 1),
    Size(2, 120, 2, 70, 3),
    Size(3, 3, 40, 17, 35),
)
QUICK = SIZES[:3]


def test_plan_and_constants() -> None:
    """Splits fill the chip, are worth their sums, and depend on one net alone."""
    assert gpu_step.plan(100, 1024) == (64, 13, 16, 8)
    assert gpu_step.plan(100, 300) == (19, 13, 5, 4)
    assert gpu_step.plan(1000, 1024) == (64, 125, 144, 1)
    for B in (1, 56, 57, 112, 113, 1000):
        for H in (221, 300, 513, 1024, 4096):
            cut = gpu_step.plan(B, H)
            assert 16 * cut.tiles >= H
            assert 8 * cut.columns >= B
            assert cut.blocks * 4 * 14 >= cut.tiles * cut.columns
            assert 1 <= cut.splits <= 8
            assert cut.splits == 1 or cut.blocks * cut.splits <= 132
    text = SOURCE.with_name("gpu_step_product.cuh").read_text()
    for name, value in (
        ("kStepTiles", gpu_step.TILES),
        ("kStepGroups", gpu_step.GROUPS),
        ("kStepColumns", gpu_step.COLUMNS),
        ("kPackWarps", gpu_step.PACK_WARPS),
    ):
        assert f"constexpr int {name} = {value};" in text


def test_choice() -> None:
    """Above 220 units, where no cluster serves."""

    def nothing(*_: object) -> None: ...

    def chosen(B: int, H: int, tensor: TensorLaunch) -> str | None:
        return gpu_choice.tensor_form(Run(nothing, None, 2**17, Scratch(), tensor), B, H, 2)

    every, no_cluster = TensorLaunch(*(nothing,) * 3), TensorLaunch(nothing, None, nothing)
    sizes = (128, 220, 221, 512, 513, 4096)
    assert [chosen(100, H, every) for H in sizes] == ["block", *("cluster",) * 3, *("step",) * 2]
    assert [chosen(100, H, no_cluster) for H in sizes] == ["block", None, *("step",) * 4]
    assert [chosen(B, 300, every) for B in (2222, 2223)] == ["cluster", "step"]
    assert chosen(1000, 220, every) is None
    assert gpu_cluster.MOST_UNITS == 512


@pytest.mark.usefixtures("small_nets")
@pytest.mark.parametrize("size", QUICK, ids=str)
def test_quick(libraries: Libraries, size: Size) -> None:
    at, machine = QUICK.index(size), libraries.run(ORDERS[QUICK.index(size) % 3])
    case = Case(size, GROUPS[at % len(GROUPS)], STEPS[at % len(STEPS)])
    check_all(machine, case, NONLINEARITIES[at % 3])
    assert machine.ran() == {
        "pack_step_weights",
        "rnn_forward_step_tensor",
        "linear_scan_step_tensor",
    }


@pytest.mark.slow
@pytest.mark.usefixtures("small_nets")
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size_and_group(libraries: Libraries, size: Size, group: str) -> None:
    at = SIZES.index(size) + GROUPS.index(group)
    case = Case(size, group, STEPS[at % len(STEPS)])
    check_all(libraries.run(ORDERS[at % 3]), case, NONLINEARITIES[at // 2 % 3])


@pytest.mark.usefixtures("small_nets")
@pytest.mark.parametrize("steps", ["first", "last", "scattered"])
def test_steps_and_nonlinearities(libraries: Libraries, steps: str) -> None:
    case = Case(Size(5, 9, 2, 18, 3), "alone", steps)
    for nonlinearity in NONLINEARITIES:
        check_all(libraries.run("shuffled"), case, nonlinearity)


@pytest.mark.slow
@pytest.mark.parametrize("size", [Size(2, 3, 2, 530, 2), Size(2, 9, 1, 230, 1)], ids=str)
def test_nets_that_the_rule_gives(libraries: Libraries, size: Size) -> None:
    check_product(libraries.run(), Case(size, "alone", "last"), "tanh", 0.4, True)


@pytest.mark.usefixtures("small_nets")
def test_a_step_is_one_launch(libraries: Libraries) -> None:
    T, machine = 5, libraries.run()
    check_product(machine, Case(Size(T, 3, 2, 20, 1)), "tanh", 0.0, False)
    launched = [name for name, _ in machine.launches()]
    assert launched == 2 * ["pack_step_weights", *T * ["linear_scan_step_tensor"]]


@pytest.mark.usefixtures("small_nets")
def test_same_bits_in_every_order_and_alone(libraries: Libraries) -> None:
    check_same_bits(libraries, Case(Size(3, 11, 3, 40, 2), "rows", "scattered"))


@pytest.mark.usefixtures("small_nets")
def test_stop_leaves_outputs_alone(libraries: Libraries) -> None:
    check_stop(libraries, Case(Size(3, 9, 2, 20, 2)))


@pytest.mark.usefixtures("small_nets")
def test_nan_stays_in_its_sequence(libraries: Libraries) -> None:
    case, machine = Case(Size(4, 9, 2, 20, 1)), libraries.run()
    case.x[0, 2, 3, 1] = math.nan
    case.x[0, 1, 8, 0] = math.inf
    h, _ = gpu.rnn_forward(machine.others.launch, case.x, case.w, "relu", None, **machine.options())
    assert h is not None
    spoilt = ~h.isfinite().all(-1)[0]
    assert spoilt.nonzero().tolist() == [[1, 8], [2, 3], [2, 8], [3, 3], [3, 8]]


@pytest.mark.slow
@pytest.mark.usefixtures("small_nets")
def test_errors_are_those_of_float32(libraries: Libraries) -> None:
    assert no_worse_than_float32(libraries, 100, 40)


PRODUCT = "gpu_step_product.cuh"
FAULTS: dict[str, Fault] = {
    "one too early": (PRODUCT, "before != product.splits - 1", "before != product.splits - 2"),
    "counter stays": (PRODUCT, "if (lane == 0) *counter = 0;", ""),
    "sums of one split": (PRODUCT, "splits + place.split) * 128", "splits) * 128"),
    "split left out": (PRODUCT, "int s = 0; s < product.splits", "int s = 1; s < product.splits"),
    "order of rows": (PRODUCT, "+ r % 4) + r / 4]", "+ r / 2) + r % 2]"),
    "order of weights": (PRODUCT, "lane % 4 + i / 2 * 4", "lane / 8 + i / 2 * 4"),
    "tile of sequences": (PRODUCT, "place.first + j) * kChunkWords", "j) * kChunkWords"),
    "net of weights": (PRODUCT, "(own ? net : 0)", "(own ? 0 : net)"),
    "distance of nets": ("gpu_step.cu", "W + net * net_stride", "W + net * (net_stride - 1)"),
    "transposed": (PRODUCT, "transposed ? W", "!transposed ? W"),
    "slots of u": ("gpu_step.cu", "slots * move) + slot * move", "slots * move) + t * move"),
}  # fmt: skip


@pytest.mark.usefixtures("small_nets")
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_shows(tmp_path: Path, libraries: Libraries, fault: str) -> None:
    source = planted(tmp_path, gpu_step.SOURCE, FAULTS[fault])
    faulty = libraries._replace(step=build(source, tmp_path, include=tmp_path))
    case = Case(Size(4, 59, 3, 37, 3), "rows", "scattered")
    assert shows_fault(faulty, lambda machine: check_all(machine, case, "tanh"))


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="starts sanitized processes itself")
def test_under_sanitizers(require_tool: Callable[[str], str]) -> None:
    require_tool("g++")
    assert_sanitized_tests_pass(__file__, "test_quick or test_stop or test_nan")
