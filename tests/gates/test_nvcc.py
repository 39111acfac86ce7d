"""Gate: every .cu compiles without a spill, and registers are those of the committed table.

Quick tests look at the binaries that nvcc made for the installed package; slow ones compile anew.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

import gpu_resources as gate
import planted
from hfcore.bindings import cuda
from hfcore.kernels.dense import gpu as dense
from hfcore.kernels.recurrence import gpu_cluster, gpu_step, gpu_tensor

PLANTED = Path(planted.__file__).parent


every_build = pytest.mark.parametrize(
    ("source", "architecture"),
    [pytest.param(source, a, id=f"{source}-sm_{a}") for source, a in gate.BUILDS],
)
every_architecture = pytest.mark.parametrize(
    "architecture", gate.ARCHITECTURES, ids=lambda a: f"sm_{a}"
)


@pytest.fixture(scope="session")
def nvcc(require_tool: Callable[[str], str], request: pytest.FixtureRequest) -> str:
    found = require_tool("nvcc")
    gates = (i for i in request.session.items if i.name.startswith("test_no_spills"))
    gate.compile_all(found, {i.callspec.params["architecture"] for i in gates})
    return found


@pytest.fixture(scope="session")
def cuobjdump(require_tool: Callable[[str], str]) -> str:
    return require_tool("cuobjdump")


@pytest.fixture(scope="session")
def binary(not_run: Callable[[str], None]) -> Callable[[Path | str], Path]:
    """``binary("dense")``: what nvcc made of a source when the package was built."""

    def found(source: Path | str) -> Path:
        source = Path("kernels", source, "gpu.cu") if isinstance(source, str) else source
        name = source.with_suffix(".fatbin").name
        path = cuda.find_binary(source.parent.name, name)
        if path is None:
            not_run(f"this install has no {name} of {source.parent.name}")
        assert path is not None
        return path

    return found


def test_there_are_kernels_to_compile() -> None:
    for family in ("recurrence", "gated", "dense"):
        assert Path(f"kernels/{family}/gpu.cu") in gate.SOURCES


def assert_as_committed(
    kernels: list[gate.Resources],
    source: Path,
    architecture: int,
    nvcc: str,
    not_run: Callable[[str], None],
) -> None:
    """No spills, and the rows of the table where it is by this nvcc."""
    assert kernels, f"{source}: no kernel for sm_{architecture}"
    assert [k.kernel for k in kernels if k.stack or k.spills] == []
    if gate.version(nvcc) != gate.version_in_table():
        # Another release may allocate other registers; the spill gate above stands all the same.
        not_run(f"table of nvcc {gate.version_in_table()}, here is {gate.version(nvcc)}")
    committed = [r for r in gate.rows_in_table(architecture) if f"| {source} |" in r]
    measured = [k.row() for k in sorted(kernels)]
    assert measured == committed, (
        "run: python -P tests/support/gpu_resources.py --write "
        "(with a package that is built from these sources, if it is its binary that differs)"
    )


@every_build
def test_binaries_have_no_spills_and_resources_as_committed(
    binary: Callable[[Path], Path],
    cuobjdump: str,
    require_tool: Callable[[str], str],
    source: Path,
    architecture: int,
    not_run: Callable[[str], None],
) -> None:
    """Of what is in the package."""
    found = gate.resources_in(cuobjdump, binary(source), source)
    kernels = [k for k in found if k.architecture == architecture]
    assert_as_committed(kernels, source, architecture, require_tool("nvcc"), not_run)


# A minute of two cores each; the package was compiled for all of them anyhow.
@pytest.mark.slow
@every_build
def test_no_spills_and_resources_as_committed(
    nvcc: str, source: Path, architecture: int, not_run: Callable[[str], None]
) -> None:
    """ptxas, which is asked to refuse a spill."""
    kernels = gate.compile_source(nvcc, gate.ROOT / source, architecture)
    assert_as_committed(kernels, source, architecture, nvcc, not_run)


# What the models beside the kernels count on in one round of the loop that multiplies: 4 k of a
# thread's tile on the chain and in rows_product, 8 rows of a gradient.
MODELS = {
    "rnn_forward": (64, 8, 77),
    "rnn_tangent": (64, 8, 77),
    "linear_scan": (64, 8, 77),
    "rows_product": (64, 8, 83),
    "outer_partials": (512, 32, 549),
}


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=[] if a == 90 else pytest.mark.slow) for a in gate.ARCHITECTURES],
)
def test_loops_are_those_of_the_models(
    nvcc: str, cuobjdump: str, binary: Callable[[str], Path], architecture: int
) -> None:
    loops = gate.hottest_loops(cuobjdump, binary("recurrence"), architecture)
    for kernel, (fma, shared_loads, instructions) in MODELS.items():
        assert loops[kernel][:2] == (fma, shared_loads), kernel
        if gate.version(nvcc) == gate.version_in_table():
            assert loops[kernel].all <= instructions + 3, kernel


DENSE_OPS = ("forward", "rforward", "backward", "gradient", "squares")


# Blackwell adds in pairs, under another name.
@pytest.mark.parametrize("architecture", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_dense_loops_are_those_of_the_rule(
    nvcc: str, cuobjdump: str, binary: Callable[[str], Path], architecture: int
) -> None:
    """One round is a chunk: every sum of a thread's tile, and what the rule counts with in all."""
    loops = gate.hottest_loops(cuobjdump, binary("dense"), architecture)
    for tile, op in product(dense.TILES, DENSE_OPS):
        loop, name = loops[f"dense_{op}_{tile.name}"], f"dense_{op}_{tile.name}"
        fma, vectors = tile.depth * tile.tall * tile.width // 8, tile.tall // 4 + tile.width // 32
        # The sums of squares beside a product are multiply-adds as well.
        assert loop.fma - fma in ((4, 8, 16) if op == "squares" else (0,)), name
        assert loop.shared_loads == tile.depth * vectors, name
        if op == "forward" and gate.version(nvcc) == gate.version_in_table():
            assert loop.all <= tile.issue + 3, name


# Weights in registers: products a step, LDS.128 of each a k, and instructions of the loop over time
# at 13 k a slice, with what other nonlinearities and absent terms would take.
STEPS = {
    "rnn_forward_registers": (1, 1, 833),
    "rnn_tangent_registers": (2, 2, 1182),
    "linear_scan_registers": (1, 1, 780),
}


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=[] if a == 90 else pytest.mark.slow) for a in gate.ARCHITECTURES],
)
def test_weights_stay_in_registers(
    nvcc: str, cuobjdump: str, binary: Callable[[str], Path], architecture: int
) -> None:
    """A step reads the carry for 32 multiply-adds a k, and no weight."""
    loops = gate.every_loop(cuobjdump, binary("recurrence"), architecture)
    inputs = 3  # two columns a round, and an odd one
    for kernel, (products, reads, instructions) in STEPS.items():
        for length in (4, 8, 13, 16):
            loads = products * reads * length + inputs
            step = min(
                (loop for loop in loops[kernel] if loop.shared_loads == loads),
                key=lambda loop: loop.all,
            )
            # The first k of a product is a multiplication.
            assert step.fma >= 32 * (products * length - 1), (kernel, length)
            assert step.local == 0
            # What every step asks for was copied once, by way of shared memory.
            assert step.parameters <= 3, (kernel, length)
            modelled = architecture == 90 and length == 13
            if modelled and gate.version(nvcc) == gate.version_in_table():
                assert step.all <= instructions + 30, kernel


def test_builds_are_those_of_cmake() -> None:
    text = (gate.ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    for name, sources in (("SOURCES", gate.SOURCES), ("SOURCES_FROM_90", gate.FROM_90)):
        listed = re.search(rf"set\(HFCORE_GPU_{name}\s+([^)]*)\)", text)
        assert listed is not None
        assert sorted(listed[1].split()) == sorted(map(str, sources))


def test_gated_loops_are_those_of_the_model(
    nvcc: str, cuobjdump: str, binary: Callable[[str], Path]
) -> None:
    """Four k of a thread's tile a round; weights that are held take no loads."""
    loops = gate.every_loop(cuobjdump, binary("gated"), 90)
    ops = [f"{cell}_{op}" for cell in ("lstm", "gru") for op in ("forward", "tangent", "backward")]
    for op in ops:
        assert not any(loop.fma >= 32 for loop in loops[f"{op}_step"])
        steps = {}
        for name in (op, f"{op}_held"):
            product = max(loop for loop in loops[name] if loop.all < 200)
            assert (product.fma, product.shared_loads) == (4 * 32, 4 * 3), name
            if gate.version(nvcc) == gate.version_in_table():
                assert product.all <= 145 + 3, name
            steps[name] = max(loops[name])
            assert steps[name].local == 0, name
        shared, held = steps.values()
        assert held.fma == shared.fma + 24 * 32
        assert held.shared_loads == shared.shared_loads + 24 * 2


# Products on tensor cores in a step, for every chunk of 16 units.
PRODUCTS = {"rnn_forward": (6,), "rnn_tangent": (6,), "rnn_backward": (6, 12)}


def test_steps_on_tensor_cores(cuobjdump: str, binary: Callable[[Path], Path]) -> None:
    """Six products a chunk, twice as many half as deep for the gradient; no local memory."""
    source = Path("kernels", "recurrence", gpu_tensor.SOURCE)
    loops = gate.every_loop(cuobjdump, binary(source), 90)
    assert len(loops) == 11
    for kernel, found in loops.items():
        op, _, chunks = kernel.partition("_tensor_")
        steps = [loop for loop in found if loop.mma > 0]
        assert sorted(loop.mma for loop in steps) == [p * int(chunks) for p in PRODUCTS[op]], kernel
        assert all(loop.local == 0 for loop in steps), kernel


def test_steps_on_clusters(cuobjdump: str, binary: Callable[[Path], Path]) -> None:
    """Six products a chunk of the warp's slice, stores to the other blocks, no local memory."""
    path = binary(Path("kernels", "recurrence", gpu_cluster.SOURCE))
    loops = gate.every_loop(cuobjdump, path, 90)
    assert len(loops) == 3 * len(gpu_cluster.PLANS)
    for kernel, found in loops.items():
        (step,) = (loop for loop in found if loop.mma > 0)
        assert step.mma == 6 * int(kernel.rpartition("_")[2]), kernel
        assert step.local == 0, kernel


def test_one_kernel_a_step(cuobjdump: str, binary: Callable[[Path], Path]) -> None:
    """Six products for each of 7 tiles of sequences in a chunk, no local memory."""
    path = binary(Path("kernels", "recurrence", gpu_step.SOURCE))
    loops = gate.every_loop(cuobjdump, path, 90)
    for kernel in ("rnn_forward_step_tensor", "linear_scan_step_tensor"):
        (chunk,) = (loop for loop in loops[kernel] if loop.mma > 0)
        assert chunk.mma == 6 * gpu_step.COLUMNS, kernel
        assert chunk.local == 0, kernel


def test_head_of_the_committed_table() -> None:
    """It names the kernels that no GPU has run, as their sources do."""
    text = gate.TABLE.read_text(encoding="utf-8")
    assert text.startswith(gate.header(gate.version_in_table()))
    assert "No GPU has run the kernels of `kernels/gated/gpu.cu`" in text
    assert "| -" not in text.partition("| --- |\n")[2], "no kernel has less than no memory"


@every_architecture
def test_committed_table_names_no_other_source(architecture: int) -> None:
    for row in gate.rows_in_table(architecture):
        assert any(f"| {source} |" in row for source in gate.SOURCES), row


@every_architecture
def test_planted_spill_fails_the_gate(nvcc: str, architecture: int) -> None:
    with pytest.raises(gate.CompileError, match="spilled to local memory in function 'spill'"):
        gate.compile_source(nvcc, PLANTED / "spill.cu", architecture)


def test_planted_spill_shows_in_a_binary(nvcc: str, cuobjdump: str, tmp_path: Path) -> None:
    fatbin, source = tmp_path / "spill.fatbin", PLANTED / "spill.cu"
    command = [nvcc, "-fatbin", "-arch=sm_90", "-o", str(fatbin), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (kernel,) = gate.resources_in(cuobjdump, fatbin, source)
    assert kernel.kernel == "spill"
    assert kernel.stack > 0
    (code,) = gate.machine_code(cuobjdump, fatbin, 90).values()
    assert "STL" in code


def test_changed_registers_show(
    cuobjdump: str,
    binary: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The comparison bites: a row that differs by one register is not the committed one."""
    source = gate.SOURCES[0]
    table = tmp_path / "table.md"
    text = gate.TABLE.read_text(encoding="utf-8")
    row = gate.rows_in_table(90)[0]
    fields = row.split(" | ")
    fields[3] = str(int(fields[3]) + 1)
    table.write_text(text.replace(row, " | ".join(fields)), encoding="utf-8")
    monkeypatch.setattr(gate, "TABLE", table)
    found = gate.resources_in(cuobjdump, binary(source), source)
    measured = [k.row() for k in sorted(found) if k.architecture == 90]
    committed = [r for r in gate.rows_in_table(90) if f"| {source} |" in r]
    assert measured != committed
    assert len(measured) == len(committed)
