"""A few hundred of the random calls, without sanitizers, in a process that may crash."""

from __future__ import annotations

from pathlib import Path

from python_process import python_output

SCRIPT = Path(__file__).with_name("fuzz_native.py")


def test_random_calls_do_not_crash() -> None:
    said = python_output(SCRIPT, HFCORE_FUZZ_CALLS="300")
    assert "calls, no crash" in said
    for outcome in ("good    answered", "spoilt  answered", "spoilt  ValueError", "TypeError"):
        assert outcome in said, f"no call was {outcome}:\n{said}"
