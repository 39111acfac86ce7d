"""A few hundred of the random calls, without sanitizers, in a process that may crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("fuzz_native.py")


def test_random_calls_do_not_crash() -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT)],
        env={**os.environ, "HFCORE_FUZZ_CALLS": "300"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "calls, no crash" in done.stdout
    for outcome in ("good    answered", "spoilt  answered", "spoilt  ValueError", "TypeError"):
        assert outcome in done.stdout, f"no call was {outcome}:\n{done.stdout}"
