"""The dense kernels of gpu.cu, run on the CPU with every thread as a fiber.

The bindings' CUDA branch runs on CPU tensors, in three orders of the threads, against a layer that
torch.func differentiates in float64. Shared memory starts as NaN, and
so does every tensor that is written to.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

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
from hfcore.bindings import cuda, dense, dispatch
from hfcore.bindings.forms.dense.cuda import compiled_form
from hfcore.kernels.dense import gpu
from oracles.cases import dense as layers

SOURCE = gpu_source("dense")
OPS = ("dense_forward", "dense_rforward", "dense_backward", "dense_gradient", "dense_squares")


pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(scope="session")
def library(emulated: Callable[[str], Path]) -> Path:
    return emulated("dense")


@contextmanager
def served(
    library: Path, order: Order = "forward", tile: gpu.Tile | None = None, splits: int = 1
) -> Iterator[Emulator]:
    """CPU tensors are served as if they were on a GPU; by this tile if one is given."""
    emulator = Emulator(library, order)

    @contextmanager
    def serving(op: str, family: str, device: torch.device) -> Iterator[Any]:
        yield emulator.launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "serving", serving)
        patch.setattr(cuda, "why_unavailable", lambda *_: None)
        patch.setattr(dispatch, "_fastest", lambda device: "cuda")
        patch.setattr(dispatch, "_why_declined", lambda *_: None)
        if tile is not None:
            patch.setattr(gpu, "tile_of", lambda *_: tile)
            patch.setattr(gpu, "splits_of", lambda m, n, B: (tile, -(-B // splits)))
        yield emulator


def make(shape: tuple[int, int, int], e: str = "tanh", group: str = "alone") -> Any:
    """A float32 layer, its weights and gradients off every alignment."""
    return layers.Case(shape, torch.float32, e, group)


# B, n, m. Ones; one less, exactly and one more than tiles and chunks (16, 32, 64, 80, 128); primes.
SHAPES = (
    (1, 1, 1),
    (2, 3, 1),
    (17, 31, 33),
    (33, 16, 79),
    (131, 65, 17),
    (64, 80, 81),
    (16, 129, 32),
    (97, 7, 131),
)
QUICK_SHAPES = SHAPES[:5]
every_tile = pytest.mark.parametrize("tile", gpu.TILES, ids=lambda tile: tile.name)


@every_tile
@pytest.mark.parametrize("shape", QUICK_SHAPES, ids=str)
def test_quick(library: Path, shape: tuple[int, int, int], tile: gpu.Tile) -> None:
    """Every op in every form, weights aligned or not, the gradient in up to three splits."""
    at = QUICK_SHAPES.index(shape) + gpu.TILES.index(tile)
    group = [*layers.GROUPS][at % len(layers.GROUPS)]
    case = make(shape, dense.ACTIVATIONS[at % 4], group)
    if at % 2:
        case.W, case.V = case.W.contiguous(), case.V.contiguous()
    with served(library, ORDERS[at % 3], tile, splits=min(1 + at % 3, shape[0])):
        layers.check_all(case)


@pytest.mark.slow
@every_tile
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("e", dense.ACTIVATIONS)
def test_every_shape(library: Path, e: str, shape: tuple[int, int, int], tile: gpu.Tile) -> None:
    at = SHAPES.index(shape) + dense.ACTIVATIONS.index(e)
    with served(library, ORDERS[at % 3], tile, splits=min(at % 4 + 1, shape[0])):
        layers.check_all(make(shape, e, [*layers.GROUPS][at // 2 % len(layers.GROUPS)]))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("group", layers.GROUPS)
def test_by_the_rule(library: Path, group: str, order: Order) -> None:
    """The tiles that are chosen, in every group."""
    with served(library, order):
        layers.check_all(make((70, 33, 21), "logistic", group))


@every_tile
def test_same_bits_in_every_order_and_alone(library: Path, tile: gpu.Tile) -> None:
    """Bits depend on the shape only: not on the order of threads, not on the group."""
    case = make((41, 50, 37), "logistic", "nets")
    together = []
    for order in ORDERS:
        with served(library, order, tile, splits=3):
            together.append(layers.all_results(case))
    names = ("z", "a", "W", "b", "V", "v_b", "Ra", "add", "delta", "y")
    for g in range(3):
        own = make((41, 50, 37), "logistic", "nets")
        own.G = 1
        for name in names:
            setattr(own, name, getattr(case, name)[g : g + 1])
        with served(library, "forward", tile, splits=3):
            alone = layers.all_results(own)
        for results in together:
            assert all(torch.equal(results[name][g], alone[name][0]) for name in alone)


@pytest.mark.parametrize("splits", [1, 3])
@every_tile
def test_stop_leaves_outputs_alone(library: Path, tile: gpu.Tile, splits: int) -> None:
    """Every kernel looks at the flag itself, the one that adds up the splits too."""
    case = make((20, 19, 18))
    scratch = dense.Scratch()

    def run(stop: Tensor) -> list[Tensor]:
        Ry, below, gW, gb = (
            torch.full(s, 7.0) for s in ((1, 20, 18), (1, 20, 19), (1, 18, 19), (1, 18))
        )
        rest = {"activation": "tanh", "stop": stop}
        dense.dense_rforward(case.a, case.Ra, case.W, case.V, case.v_b, case.y, out=Ry, **rest)
        dense.dense_backward(case.delta, case.W, case.a, out=below, **rest)
        for squared in (False, True):
            dense.dense_gradient(
                case.delta, case.a, squared=squared, out=(gW, gb), stop=stop, scratch=scratch
            )
        return [Ry, below, gW, gb]

    with served(library, "shuffled", tile, splits):
        for written in run(torch.tensor([0], dtype=torch.int32)):
            assert bool(written.isfinite().all())
            assert not bool((written == 7.0).any())
        for buffer in scratch._kept.values():
            buffer.fill_(7.0)
        for untouched in run(torch.tensor([1], dtype=torch.int32)):
            assert bool((untouched == 7.0).all())
        assert len(scratch._kept) == (splits > 1)
        assert all(bool((buffer == 7.0).all()) for buffer in scratch._kept.values())


@every_tile
@pytest.mark.parametrize("e", dense.ACTIVATIONS)
def test_nan_stays_where_it_belongs(library: Path, e: str, tile: gpu.Tile) -> None:
    with served(library, "reverse", tile):
        layers.check_nan(e, torch.float32)
        layers.check_saturated(torch.float32)
        layers.check_relu_at_zero(torch.float32)


def test_the_fewest_launches(library: Path) -> None:
    """One kernel an op; a second one where the cases of a gradient are split."""
    case = make((90, 5, 4))
    tile = gpu.TILES[-1]
    for splits in (1, 2):
        with served(library, "forward", tile, splits) as emulator:
            layers.all_results(case)
        finish = ["dense_gradient_finish"] * (splits - 1)
        wanted = [f"{op}_{tile.name}" for op in OPS]
        forward, rforward, backward, gradient, squares = wanted
        launched = [name for name, _ in emulator.launches]
        assert launched == [
            forward, *[rforward] * 2, *[backward] * 2, gradient, *finish, squares, *finish
        ]  # fmt: skip
        chunks = -(-90 // splits // tile.chunk)
        assert dict(emulator.launches)[gradient] == chunks + 3


def test_other_data_is_left_to_triton(library: Path) -> None:
    """float64, TF32, more nets than the grid holds, no binary."""
    x = torch.zeros(2, 3, 4)
    with served(library):
        assert compiled_form(x)
        assert not compiled_form(x.double())
        assert not compiled_form(x[:1, :1, :1].expand(gpu.MOST_NETS + 1, 1, 1))
        assert not any(compiled_form(x, other) for other in ("tf32", "tf32x3", "bf16x6"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda, "why_unavailable", lambda *_: "no nvcc")
            assert not compiled_form(x)


# ---- the rule


def test_tiles_are_those_of_the_kernels() -> None:
    found = re.findall(r"^DENSE_KERNELS\(([\w, ]+)\)", SOURCE.read_text(), re.M)
    assert found == [", ".join(map(str, (tile.name, *tile[:6]))) for tile in gpu.TILES]
    kernels = {f"{op}_{tile.name}" for op in OPS for tile in gpu.TILES}
    assert set(kernel_names(SOURCE)) == kernels | {"dense_gradient_finish"}


def test_rule_by_shape() -> None:
    """What the table in gpu.cu says, and that every split has cases."""
    assert gpu.tile_of(5000, 400, 784).name == "64x80x32"
    assert gpu.tile_of(200, 400, 784).name == "32x32x64"
    assert gpu.tile_of(200, 784, 400).name == "16x80x64"
    assert gpu.tile_of(200, 6, 25).name == "16x32x64"
    for B, n, m in itertools.product((1, 63, 64, 200, 5000, 60_001), (1, 100, 785), (1, 6, 400)):
        tile, cases = gpu.splits_of(m, n, B)
        splits = -(-B // cases)
        assert splits * cases >= B > (splits - 1) * cases
        assert cases >= min(B, gpu.SPLIT_CASES)
        assert tile in gpu.TILES


def test_every_tile_is_chosen_somewhere() -> None:
    shapes = itertools.product((16, 200, 1000, 5000, 8192), (16, 128, 400, 784, 8192), (100, 784))
    assert {gpu.tile_of(*shape) for shape in shapes} == set(gpu.TILES)


# ---- the gate itself: planted faults must show

# Steps that one thread takes for another, of gpu_tile.cuh.
GUARDS = (
    "wait_for_copies<T::stages - 2>();",
    "__syncthreads();  // the chunk is complete, and nobody reads the one before any more",
    "__syncthreads();  // nobody reads a chunk any more",
    "__syncthreads();  // the sums are complete",
    "__syncthreads();  // the parts are complete",
)


def without(folder: Path, guard: str) -> Path:
    """A copy of the kernels without one of these."""
    text = SOURCE.with_name("gpu_tile.cuh").read_text()
    assert text.count(guard) == 1
    (folder / "gpu_tile.cuh").write_text(text.replace(guard, ""))
    source = folder / "gpu.cu"
    source.write_text(
        SOURCE.read_text().replace("kernels/dense/gpu_tile.cuh", str(folder / "gpu_tile.cuh"))
    )
    return source


def shows_fault(library: Path) -> bool:
    for order, tile in itertools.product(ORDERS, (gpu.TILES[2], gpu.TILES[-1])):
        try:
            with served(library, order, tile):
                layers.check_all(make((300, 17, 33)))
        except AssertionError:
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("guard", GUARDS)
def test_a_guard_taken_out_shows(tmp_path: Path, library: Path, guard: str) -> None:
    assert not shows_fault(library)
    assert shows_fault(build(without(tmp_path, guard), tmp_path, optimise="-O0"))


def test_these_are_all_guards() -> None:
    text = SOURCE.with_name("gpu_tile.cuh").read_text() + SOURCE.read_text()
    found = re.findall(r"(?:__syncthreads\(\)|wait_for_copies<[^>]*>\(\));", text)
    assert len(found) == len(GUARDS)


LESS_SHARED = """
import sys, torch
from hfcore.kernels.dense import gpu
from emulation import Emulator
launch = Emulator(sys.argv[1]).launch
def short(kernel, grid, block, shared, arguments):
    launch(kernel, grid, block, shared - int(sys.argv[2]), arguments)
tile = next(tile for tile in gpu.TILES if tile.name == sys.argv[3])
gpu.tile_of, gpu.splits_of = lambda *_: tile, lambda m, n, B: (tile, B)
B, n, m = 260, 150, 150
a, W, b, y = (torch.ones(1, *s) for s in ((B, n), (m, n), (m,), (B, m)))
if sys.argv[4] == "dense_forward":
    gpu.dense_forward(short, a, W, b, "tanh", y)
elif sys.argv[4] == "dense_backward":
    gpu.dense_backward(short, y, W, a, "tanh", None, torch.empty_like(a))
else:
    gpu.dense_gradient(short, y, a, 1.0, False, torch.empty_like(W), b)
"""


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="starts sanitized processes itself")
def test_planned_shared_memory_is_exact(tmp_path: Path) -> None:
    """To the padding of 4 words behind the last row."""
    library = build(SOURCE, tmp_path, sanitize=True)
    ops = itertools.cycle(("dense_forward", "dense_backward", "gradient"))
    for tile, op in zip(gpu.TILES, ops, strict=False):
        assert_shared_memory_is_exact(LESS_SHARED, library, 20, tile.name, op)


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="starts sanitized processes itself")
def test_under_sanitizers(require_tool: Callable[[str], str]) -> None:
    require_tool("g++")
    kept = "test_quick or test_by_the_rule or test_stop or test_nan"
    assert_sanitized_tests_pass(__file__, kept)
