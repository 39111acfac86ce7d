"""Python in a process of its own: what must be chosen before an import, or may crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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


# A child leaves the loop and ends as any interpreter does.
_FORKING = """
import json, os, sys
folder, imports, programs = json.load(sys.stdin)
exec(imports)
for i, program in enumerate(programs):
    sys.stdout.flush()
    if os.fork() == 0:
        for descriptor in (1, 2):
            path = os.path.join(folder, f"{i}.{descriptor}")
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def forked(
    imports: str, programs: Sequence[str], *, cwd: Path | None = None, timeout: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """Each program in a process of its own, forked from one that has executed ``imports``.

    What that imports takes seconds, a fork milliseconds. It must start no thread.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _FORKING],
            input=json.dumps([folder, imports, list(programs)]),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = [
            [Path(folder, f"{i}.{d}").read_text() for d in (1, 2)] for i in range(len(programs))
        ]
    return [
        subprocess.CompletedProcess(program, code, *texts)
        for program, code, texts in zip(programs, map(int, done.stdout.split()), said, strict=True)
    ]


def in_triton_interpreter(path: Path, *options: str, timeout: float) -> str:
    """pytest on one file whose kernels run in Triton's interpreter; fails where a case fails."""
    return python_output(
        *("-m", "pytest", "-q", path, *options),
        timeout=timeout,
        TRITON_INTERPRET="1",
        OMP_NUM_THREADS="1",
    )
