"""A few hundred of the random calls of ``make fuzz-api``, always the same ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CALLS = 200


def test_only_meant_errors_leave_the_package() -> None:
    driver = Path(__file__).parent / "fuzz_api.py"
    settings = {"HFCORE_FUZZ_CALLS": str(CALLS), "HFCORE_FUZZ_SEED": "0", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-P", str(driver)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{CALLS} calls, 0 faults" in found.stdout
