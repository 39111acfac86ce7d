"""Python in a process of its own: what must be chosen before an import, or may crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def python(
    *arguments: str | Path, timeout: float = 300, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """``python -P ARGUMENTS`` with these variables set too, and what it wrote."""
    return subprocess.run(
        [sys.executable, "-P", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def python_output(
    *arguments: str | Path, timeout: float = 300, cwd: Path | None = None, **environment: str
) -> str:
    """Its standard output; fails, with the ends of both outputs, where it does not exit with 0."""
    done = python(*arguments, timeout=timeout, cwd=cwd, **environment)
    assert done.returncode == 0, f"{done.stdout[-6000:]}{done.stderr[-4000:]}"
    return done.stdout


def in_triton_interpreter(path: Path, *options: str, timeout: float) -> str:
    """pytest on one file whose kernels run in Triton's interpreter; fails where a case fails."""
    return python_output(
        *("-m", "pytest", "-q", path, *options),
        timeout=timeout,
        TRITON_INTERPRET="1",
        OMP_NUM_THREADS="1",
    )
