"""Clusters of blocks in the emulation itself: what is right runs, and every planted fault shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import planted
from emulation import ORDERS, EmulationError, Emulator, build, kernel_names

SOURCE = Path(planted.__file__).with_name("clusters.cu")
BLOCKS, CLUSTERS, THREADS = 8, 2, 32


@pytest.fixture(scope="module")
def library(require_tool: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_tool("g++")
    return build(SOURCE, tmp_path_factory.mktemp("clusters"), optimise="-O0")


def run(e: Emulator, kernel: str, grid: int = BLOCKS * CLUSTERS, threads: int = THREADS) -> bool:
    """Whether every block got the number of the next one in its cluster, in both turns."""
    out = torch.full((2, grid, threads), torch.nan)
    e.launch(kernel, (grid, 1, 1), (threads, 1, 1), 2 * 16 * threads, [out])
    want = torch.tensor([[(b + 1) % BLOCKS + 10 * turn for b in range(BLOCKS)] for turn in (0, 1)])
    return torch.equal(out, want.repeat(1, grid // BLOCKS)[..., None].expand_as(out).float())


def test_clusters_are_read_from_the_source() -> None:
    assert set(kernel_names(SOURCE).values()) == {BLOCKS}


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_write_to_one_another(library: Path, order: str) -> None:
    assert run(Emulator(library, order), "handed_on")


@pytest.mark.parametrize(
    "kernel", ["no_barrier", "no_start", "one_buffer", "late_store", "late_read", "early_end"]
)
def test_races_show(library: Path, kernel: str) -> None:
    """In one order at least: as an error, or as a wrong result."""

    def shows(order: str) -> bool:
        try:
            return not run(Emulator(library, order), kernel)
        except EmulationError:
            return True

    assert any(map(shows, ORDERS))


@pytest.mark.parametrize(
    ("kernel", "error"),
    [
        ("no_start", "block 7 is stored to before it has started"),
        ("early_end", "is stored to after its end"),
        ("no_such_block", "the cluster has no block 8"),
        ("missing_thread", "a cluster barrier is not reached by thread 3 of block 2"),
        ("arrives_twice", "a cluster barrier is arrived at twice"),
        ("never_arrives", "a cluster barrier is waited at by who has not arrived"),
    ],
)
def test_errors_say_what_is_wrong(library: Path, kernel: str, error: str) -> None:
    with pytest.raises(EmulationError, match=error):
        run(Emulator(library), kernel)


def test_a_grid_is_of_whole_clusters_and_their_blocks_of_whole_warps(library: Path) -> None:
    with pytest.raises(EmulationError, match="the grid is no multiple of a cluster"):
        run(Emulator(library), "handed_on", grid=BLOCKS + 1)
    with pytest.raises(EmulationError, match="the blocks of a cluster need whole warps"):
        run(Emulator(library), "handed_on", threads=THREADS + 1)
