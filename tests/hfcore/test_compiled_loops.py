"""Compiled loops are cached where that is possible, and compiled afresh where a file is no good."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import caching

from hfcore.draws import compile_kernel

SOURCE = "def fill(array):\n    for i in range(array.size):\n        array[i] = i + 1.0\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def hits(folder: Path) -> int:
    """Compile the loop as a new process would, use it; gives how often the cache served."""
    source = folder / "filler.py"
    if not source.exists():
        source.write_text(SOURCE)
    gc.collect()  # a new process knows nothing of the loop before
    space: dict[str, Any] = {"__name__": __name__}  # numba imports the loop's module on reading
    exec(compile(SOURCE, str(source), "exec"), space)
    kernel: Any = compile_kernel(space["fill"])
    array = np.zeros(3)
    kernel(array)
    assert array.tolist() == [1.0, 2.0, 3.0]
    return sum(kernel.dispatcher.stats.cache_hits.values())


def test_torn_files_are_mended(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert [hits(tmp_path), hits(tmp_path)] == [0, 1]
    assert not caplog.messages
    files = sorted(cache.rglob("*.nb?"))
    assert {file.suffix for file in files} == {".nbi", ".nbc"}
    for file in files:
        whole = file.read_bytes()
        for torn in (b"", whole[: len(whole) // 2], bytes(len(whole))):
            file.write_bytes(torn)
            assert hits(tmp_path) == 0
            assert str(cache) in caplog.messages[-1]
            assert hits(tmp_path) == 1


def test_a_disk_that_takes_nothing(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Writing fails behind numba's own look at the folder."""

    def full(self: Any, name: str, mode: str | None = None) -> None:
        raise OSError(28, "No space left on device", name)

    monkeypatch.setattr(caching.IndexDataCacheFile, "_open_for_write", full)
    assert [hits(tmp_path), hits(tmp_path)] == [0, 0]
    assert "No space left on device" in caplog.messages[-1]
