"""The programs of docs/distributed.md run: on one process and two, by processes, by dask."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import hfcore as hf
from ranks import Failed, Server, cases

PAGE = Path(__file__).parents[3] / "docs" / "distributed.md"
SMALL = "seeds=2, updates=2, batch_size=3, test_every=2, test_size=7, progress=False"


def block(imported: str) -> str:
    """The one with this import."""
    (found,) = (
        code
        for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)
        if imported in code
    )
    return str(found)


def changed(code: str, **to: str) -> str:
    """The code with some texts made others, each of which must be there."""
    for old, new in to.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


def test_the_program_on_one_process_and_on_two(ranks: Server, tmp_path: Path) -> None:
    def code(folder: str) -> str:
        few = "progress=False, stop=hf.training.Limits(iterations=2)"
        run = {'run_dir="runs/mine"': f"run_dir={str(tmp_path / folder)!r}, {few}"}
        return changed(block("started_group"), **run)

    alone = cases.program(None, code=code("one"))
    for one in ranks.run(2, "program", code=code("two")):
        assert not isinstance(one, Failed), one
        # Sums in another order.
        assert torch.allclose(one, alone, rtol=1e-6, atol=1e-9)
    assert (tmp_path / "two" / "result.json").exists()


def test_a_sweep_by_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = changed(block("ProcessPoolExecutor"), **{"Executor(4)": "Executor(1)", "seeds=8": SMALL})
    names: dict[str, Any] = {"hf": hf, "grid": {"learning_rate": [0.1, 0.01]}}
    exec(compile(code, "page", "exec"), names)
    assert len(names["result"].runs) == 4


def test_a_sweep_by_dask(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        places = {
            "tcp://scheduler:8786": cluster.scheduler_address,
            "/shared/sweeps/addition": str(tmp_path / "run"),
        }
        names: dict[str, Any] = {"hf": hf}
        exec(compile(changed(block("dask"), **places, **{"seeds=8": SMALL}), "page", "exec"), names)
        names["client"].close()
    assert len(names["result"].runs) == 12
    assert names["result"].reason == "updates"
