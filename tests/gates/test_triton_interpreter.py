"""The Triton kernels in Triton's interpreter, in a process of their own, against the references.

The cases are in ``interpreted_*.py`` next to this file: the interpreter must be chosen before
Triton is imported.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import planted

HERE = Path(__file__).parent
Tool = Callable[[str], str]


def interpret(path: Path, *options: str) -> str:
    """pytest on one file under the interpreter; gives its output, fails where a case fails."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", str(path), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_quick_cases(require_tool: Tool) -> None:
    require_tool("triton")
    passed = re.search(
        r"(\d+) passed", interpret(HERE / "interpreted_kernels.py", "-m", "not slow")
    )
    assert passed is not None
    assert int(passed.group(1)) > 40


@pytest.mark.slow
def test_all_other_cases(require_tool: Tool) -> None:
    require_tool("triton")
    interpret(HERE / "interpreted_kernels.py", "-m", "slow")


def test_planted_write_out_of_bounds_is_found(require_tool: Tool) -> None:
    require_tool("triton")
    with pytest.raises(AssertionError, match="wrote outside of out"):
        interpret(Path(planted.__file__).with_name("interpreted_out_of_bounds.py"))
