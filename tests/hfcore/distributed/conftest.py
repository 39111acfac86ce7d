"""One server of ranks for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ranks import Server


@pytest.fixture(scope="session")
def ranks() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()
