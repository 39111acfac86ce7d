"""A gate without its tool says NOT RUN, and fails where the environment asks for every gate."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

GATE = """
def test_gate(require_tool):
    require_tool("a-tool-that-nobody-has")
"""


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
def test_missing_tool(tmp_path: Path, required: bool) -> None:
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "test_gate.py").write_text(GATE)
    environment = {k: v for k, v in os.environ.items() if k != "HFCORE_REQUIRE_GATES"}
    if required:
        environment["HFCORE_REQUIRE_GATES"] = "1"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-ra", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "NOT RUN: a-tool-that-nobody-has" in done.stdout
    assert done.returncode == (1 if required else 0), done.stdout
    assert ("1 failed" if required else "1 skipped") in done.stdout.replace("error", "failed")
