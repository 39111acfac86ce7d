"""The recurrence on clusters of blocks (gpu_cluster.cu), run on the CPU: every thread is a fiber.

Sums are cut as tensor cores cut them; blocks of a cluster drift apart as far as its barrier allows.
Results are held to first-order bounds in float64, in three orders of the threads and blocks; shared
memory and allocations start as NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

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
    Machine,
    check_all,
    check_forward,
    check_product,
    check_same_bits,
    check_stop,
    no_worse_than_float32,
    planted,
    shows_fault,
)
from hfcore.kernels.recurrence import gpu, gpu_cluster
from hfcore.kernels.recurrence.gpu_choice import tensor_form
from hfcore.kernels.recurrence.gpu_launch import Run, TensorLaunch
from hfcore.kernels.scratch import Scratch
from oracles.cases import recurrence as cases
from oracles.cases.recurrence import STEPS, Size

SOURCE = gpu_source("recurrence", gpu_cluster.SOURCE)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(scope="session")
def libraries(emulated: Callable[..., Path]) -> Libraries:
    return Libraries(emulated("recurrence"), cluster=emulated("recurrence", gpu_cluster.SOURCE))


# Every form, full and not; a tile without a slot (5 and 7 chunks of a slice); one sequence, part of
# a cluster's, several clusters; products of inputs by the package's kernels and by torch (H > 220).
SIZES = (
    Size(3, 9, 2, 129, 1),
    Size(2, 1, 3, 257, 2),
    Size(1, 2, 1, 192, 1),
    Size(4, 3, 35, 193, 3),
    Size(2, 17, 2, 256, 1),
    Size(3, 2, 2, 300, 5),
    Size(2, 8, 1, 384, 1),
    Size(3, 3, 2, 400, 1),
    Size(2, 9, 2, 450, 2),
    Size(2, 1, 1, 512, 1),
)
QUICK = SIZES[:2]


# ---- the rule


def test_forms_are_those_of_the_source() -> None:
    macros = re.findall(r"^HFCORE_CLUSTER\((\d), (\d), (\d), \d\)", SOURCE.read_text(), re.M)
    compiled = tuple((int(chunks), int(tiles), int(every)) for tiles, chunks, every in macros)
    assert compiled == gpu_cluster.PLANS
    constants = SOURCE.with_name("gpu_cluster_scan.cuh").read_text()
    assert f"constexpr int kClusterSlices = {gpu_cluster.SLICES};" in constants
    constants = (SOURCE.parents[1] / "gpu" / "cluster.cuh").read_text()
    assert f"constexpr int kClusterBlocks = {gpu_cluster.BLOCKS};" in constants


def test_plan() -> None:
    """The smallest form that holds the units; what it needs is there on every GPU with clusters."""
    for H in range(129, 513):
        form = gpu_cluster.plan(H)
        assert H <= 64 * form.chunks <= 128 * form.tiles
        assert form.chunks == max(3, -(-H // 64))
        assert form.threads <= 512
    assert gpu_cluster.MOST_UNITS == 512
    assert min(gpu.SHARED_LIMIT[c] for c in (90, 100)) >= gpu_cluster.MOST_SHARED
    with pytest.raises(ValueError, match="H: got 513, need at most 512"):
        gpu_cluster.plan(513)


def test_choice() -> None:
    """By size alone, and only among what launches."""

    def nothing(*_: object) -> None: ...

    def chosen(B: int, H: int, tensor: TensorLaunch, *, gradient: bool = False) -> str | None:
        run = Run(nothing, None, 2**17, Scratch(), tensor)
        return tensor_form(run, B, H, 2, with_gradient=gradient)

    both = TensorLaunch(nothing, nothing)
    assert [chosen(100, H, both) for H in (100, 128, 129, 512, 513)] == [
        *("block",) * 2,
        *("cluster",) * 2,
        None,
    ]
    assert [chosen(100, H, both, gradient=True) for H in (108, 109, 129)] == [
        "block",
        None,
        "cluster",
    ]
    assert [chosen(B, 220, both) for B in (256, 257)] == ["cluster", None]
    assert [chosen(B, 221, both) for B in (257, 4094, 4095)] == ["cluster", "cluster", None]
    for H, block, cluster in ((100, "block", None), (300, None, "cluster")):
        assert chosen(100, H, TensorLaunch(block=nothing)) == block
        assert chosen(100, H, TensorLaunch(cluster=nothing)) == cluster
        assert chosen(100, H, TensorLaunch()) is None


# ---- values


def on_clusters(machine: Machine, case: cases.Case) -> None:
    """All checks, and that clusters ran them."""
    for number, nonlinearity in enumerate(NONLINEARITIES):
        if number == case.size.H % 3:
            check_all(machine, case, nonlinearity)
    chunks = gpu_cluster.plan(case.size.H).chunks
    ops = ("forward", "tangent", "backward")
    assert machine.ran() == {f"rnn_{op}_cluster_{chunks}" for op in ops}


@pytest.mark.parametrize("size", QUICK, ids=str)
def test_quick(libraries: Libraries, size: Size) -> None:
    order = ("shuffled", "reverse")[QUICK.index(size)]
    on_clusters(libraries.run(order), Case(size, "alone", ("scattered", "all")[size.T % 2]))


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size_and_group(libraries: Libraries, size: Size, group: str) -> None:
    at = SIZES.index(size) + GROUPS.index(group)
    on_clusters(libraries.run(ORDERS[at % 3]), Case(size, group, STEPS[at % len(STEPS)]))


@pytest.mark.slow
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("steps", STEPS)
def test_steps_and_nonlinearities(libraries: Libraries, steps: str, nonlinearity: str) -> None:
    check_all(libraries.run("shuffled"), Case(Size(4, 3, 2, 130, 2), "alone", steps), nonlinearity)


def test_barriers(libraries: Libraries) -> None:
    """Two a step that carries and is carried on, and the weights one for every two chunks."""
    T, machine = 3, libraries.run()
    case = Case(Size(T, 1, 1, 129, 1))
    check_forward(machine, case)
    check_product(machine, case, "tanh", 0.0, False)
    assert [barriers for _, barriers in machine.launches()] == [2 * (T - 1) + 2] * 4


@pytest.mark.slow
def test_same_bits_in_every_order_and_alone(libraries: Libraries) -> None:
    check_same_bits(libraries, Case(Size(3, 11, 3, 140, 2), "rows", "scattered"))


def test_stop_leaves_outputs_alone(libraries: Libraries) -> None:
    check_stop(libraries, Case(Size(2, 3, 2, 131, 2)))


def test_nan_stays_in_its_sequence(libraries: Libraries) -> None:
    """A sequence with a NaN or Inf spoils itself from that step on, and no other."""
    case, machine = Case(Size(4, 9, 2, 129, 1)), libraries.run()
    case.x[0, 2, 3, 1] = math.nan
    case.x[0, 1, 8, 0] = math.inf
    h, _ = gpu.rnn_forward(machine.others.launch, case.x, case.w, "relu", None, **machine.options())
    assert h is not None
    spoilt = ~h.isfinite().all(-1)[0]
    assert spoilt.nonzero().tolist() == [[1, 8], [2, 3], [2, 8], [3, 3], [3, 8]]


# ---- quality


@pytest.mark.slow
@pytest.mark.parametrize(("H", "T"), [(150, 40), (300, 8), (450, 4)])
def test_errors_are_those_of_float32(libraries: Libraries, H: int, T: int) -> None:
    assert no_worse_than_float32(libraries, H, T)


# ---- the gate itself: planted faults must show

SCAN = "gpu_cluster_scan.cuh"
FAULTS: dict[str, Fault] = {
    "no barrier of the cluster": (SCAN, """            cluster_arrive();
        }
        const int t = time(step);
        if (place.exists && (kBackward || slots.has(t)))
            out[(kBackward ? t : slots.slot(t)) * BH + place.at] = y;
        if (more) {
            fetch(time(step + 1), now);
            cluster_wait();  // the rows""", """        }
        const int t = time(step);
        if (place.exists && (kBackward || slots.has(t)))
            out[(kBackward ? t : slots.slot(t)) * BH + place.at] = y;
        if (more) {
            fetch(time(step + 1), now);
            //"""),
    "blocks may not have started": (SCAN, """    cluster_arrive();
    cluster_wait();  // all""", "    //"),
    "one buffer": (SCAN, "shared + (step + 1) % 2 * kRowWords", "shared + step % 2 * kRowWords"),
    "arrives before it stores": (SCAN, """            share_rows<kTiles, kChunks>(next);
            cluster_arrive();""", """            cluster_arrive();
            share_rows<kTiles, kChunks>(next);"""),
    "wrong rank": (SCAN, "(rank + 1 + i / kMost)", "(rank + 2 + i / kMost)"),
    "wrong tiles": (SCAN, "rows + kTiles * rank * kChunkWords", "rows + kTiles * kChunkWords"),
    "last store": (SCAN, "first < kStores; first", "first < kStores - kThreads; first"),
    "barrier of sums": (SCAN, "__syncthreads();  // the sums", "//"),
    "barrier of rows": (SCAN, "__syncthreads();  // the block's own", "//"),
    "slice left out": (SCAN, "int s = 0; s < kClusterSlices", "int s = 1; s < kClusterSlices"),
    "order of sequences": (SCAN, "(within ^ within / 2)", "within"),
    "order of units": (SCAN, "unit % kUnits / 8;", "1 - unit % kUnits / 8;"),
    "distance of nets": (SCAN, "kCarryWeights, s.net_stride", "kCarryWeights, s.H * s.H"),
    "transposed": (SCAN, "kBackward ? W[column", "!kBackward ? W[column"),
    "slots of u": (SCAN, "slots.slot(t) * BH + place.at];", "t * BH + place.at];"),
    "first bias": (SCAN, "y += initial;", "y -= initial;"),
}  # fmt: skip
IN_QUICK = ("arrives before it stores",)


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=[] if f in IN_QUICK else pytest.mark.slow) for f in FAULTS]
)
def test_planted_fault_shows(tmp_path: Path, libraries: Libraries, fault: str) -> None:
    source = planted(tmp_path, gpu_cluster.SOURCE, FAULTS[fault])
    # One form is enough, and compiled in a sixth of the time.
    source.write_text(re.sub(r"^HFCORE_CLUSTER\(\d, [^3].*$", "", source.read_text(), flags=re.M))
    faulty = libraries._replace(cluster=build(source, tmp_path, include=tmp_path))
    group = "rows" if fault == "distance of nets" else "alone"
    case = Case(Size(4, 3, 2, 130, 2), group, "scattered")
    assert shows_fault(faulty, lambda machine: check_all(machine, case, "tanh"))


# ---- under the sanitizers

LESS_SHARED = """
import sys, torch
from emulation import Emulator
from hfcore.kernels.recurrence import RnnWeights, gpu_cluster
from hfcore.kernels.recurrence.gpu_launch import Run, TensorLaunch
from hfcore.kernels.scratch import Scratch
launch = Emulator(sys.argv[1]).launch
def short(kernel, grid, block, shared, arguments):
    launch(kernel, grid, block, shared - int(sys.argv[2]), arguments)
run = Run(short, None, 2**17, Scratch(), TensorLaunch(cluster=short))
H = int(sys.argv[3])
a = torch.ones(1, 2, 9, H)
w = RnnWeights(*(torch.ones(1, *s) for s in ((H, 2), (H, H), (1, H), (H,), (H,), (1,))))
gpu_cluster.rnn_forward(run, a, w, "tanh", None, a.clone())
"""


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="starts sanitized processes itself")
def test_planned_shared_memory_is_exact(tmp_path: Path) -> None:
    library = build(SOURCE, tmp_path, sanitize=True)
    for H in (130, 450):  # all pieces of the weights in registers, and not
        assert_shared_memory_is_exact(LESS_SHARED, library, 4, str(H))


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="starts sanitized processes itself")
def test_under_sanitizers(require_tool: Callable[[str], str]) -> None:
    require_tool("g++")
    assert_sanitized_tests_pass(__file__, "test_quick or test_stop or test_nan")
