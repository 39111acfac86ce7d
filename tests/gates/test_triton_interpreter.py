"""The Triton kernels in Triton's interpreter, in a process of their own, against the references.

The cases are in ``interpreted_*.py`` next to this file: the interpreter must be chosen before
Triton is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from python_process import in_triton_interpreter

import planted

HERE = Path(__file__).parent
Tool = Callable[[str], str]
interpret = partial(in_triton_interpreter, timeout=1800)


def test_quick_cases(require_tool: Tool) -> None:
    require_tool("triton")
    said = interpret(HERE / "interpreted_kernels.py", "-m", "not slow")
    passed = re.search(r"(\d+) passed", said)
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
