"""The command and a program under torchrun, with processes that were not forked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

# Four processes that import torch, one after the other or at once: too slow for every day.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

TORCHRUN = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
TRAIN = ["-m", "hfcore", "train", "addition", "--length", "4", "--hidden", "5", "--quiet"]
TRAIN += ["--batch-size", "32", "--gradient-batches", "2", "--test-size", "20"]
TRAIN += ["--cg-max-iter", "5", "--seed", "1", "--solved-below", "0"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
SECONDS = 240


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def parameters(run_dir: Path) -> dict[str, Any]:
    """Those of the last checkpoint."""
    newest = max((run_dir / "checkpoints").glob("*.safetensors"))
    return {k: v for k, v in load_file(newest).items() if k.startswith("model/")}


def test_killed_restarted_and_the_same_bits(tmp_path: Path) -> None:
    """torchrun starts the processes again, and the run goes on by itself to where one process
    gets; then a signal to one worker ends it."""
    limit = ["--iterations", "40", "--timeout", "30"]
    alone = run(
        sys.executable, "-P", *TRAIN, *limit, "--reduction", "exact",
        "--run-dir", str(tmp_path / "alone"),
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    folder = tmp_path / "two"
    command = [*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "2", *TRAIN, *limit]
    with subprocess.Popen(
        [*command, "--run-dir", str(folder)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        workers = _until(lambda: _children(process.pid) if _iterations(folder) >= 3 else [])
        os.kill(workers[-1], signal.SIGKILL)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert out.count("run folder") == 1  # one of the two speaks
    assert _iterations(folder) == 40
    for name, value in parameters(tmp_path / "alone").items():
        assert torch.equal(parameters(folder)[name], value)
    config = json.loads((folder / "config.json").read_text())
    assert config["optimizer"]["reduction"] == "exact"


def test_restarts_need_a_folder_and_an_example_under_ddp() -> None:
    refused = run(*TORCHRUN, "--nproc-per-node", "1", "--max-restarts", "1", *TRAIN)
    assert refused.returncode != 0
    assert "need one with torchrun's --max-restarts" in refused.stderr
    both = run(*TORCHRUN, "--nproc-per-node", "2", "-m", "hfcore.examples.with_ddp")
    assert both.returncode == 0, both.stderr
    alone = run(sys.executable, "-P", "-m", "hfcore.examples.with_ddp")
    losses = [[float(w.strip(",")) for w in text.split() if w[0].isdigit()] for text in (
        both.stdout, alone.stdout)]  # fmt: skip
    assert len(losses[0]) == 2
    assert losses[0][0] == losses[1][0]
    # Differences of float32 gradients leave three digits.
    assert abs(losses[0][1] - losses[1][1]) <= 2e-2 * losses[1][0]
    assert losses[0][1] < 0.9 * losses[0][0]


def _iterations(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _until(found: Any) -> list[int]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        value: list[int] = found()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("the run did not begin")
