"""A few hundred of the random calls of ``make fuzz-api``, always the same ones."""

from __future__ import annotations

from pathlib import Path

from python_process import python_output

CALLS = 200


def test_only_meant_errors_leave_the_package() -> None:
    driver = Path(__file__).parent / "fuzz_api.py"
    said = python_output(
        driver, HFCORE_FUZZ_CALLS=str(CALLS), HFCORE_FUZZ_SEED="0", OMP_NUM_THREADS="1"
    )
    assert f"{CALLS} calls, 0 faults" in said
