"""Several processes on gloo for a test: forked from one server, which has imported everything.

>>> results = Server().run(3, "products", kind="rnn")     # what rank 0, 1 and 2 returned

A rank's result is what its case returned, or :class:`Failed`. Cases are the functions of
:mod:`ranks.cases`; they get the group and their keywords.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 60.0


@dataclass(frozen=True)
class Failed:
    """An exception of a rank, or how its process ended."""

    kind: str
    message: str


class Server:
    """The process that forks; end it with :meth:`close`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            # An empty entry would be the checkout.
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
            ),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ranks.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._calls = 0

    def run(self, size: int, case: str, *, timeout: float = TIMEOUT, **arguments: Any) -> list[Any]:
        """``case`` on so many ranks."""
        self._calls += 1
        folder = Path(self._folder.name) / str(self._calls)
        folder.mkdir()
        request = pickle.dumps((size, case, arguments, str(folder), timeout)).hex()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(request.encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer, "the server of ranks has ended"
        statuses = [int(status) for status in answer.split()]
        return [_result(folder / str(rank), status) for rank, status in enumerate(statuses)]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(TIMEOUT)
        self._folder.cleanup()


def _result(path: Path, status: int) -> Any:
    if not path.exists():
        return Failed("status", str(status))
    return pickle.loads(path.read_bytes())
