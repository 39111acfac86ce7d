"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before torch is loaded: a thread of OpenMP's that waits for another sleeps at once. Where more
# threads want to run than there are cores, spinning costs several times what is computed.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# Their assertions tell what was compared, as those of test files do.
pytest.register_assert_rewrite("oracles", "guarded", "emulation")


@pytest.fixture(autouse=True)
def single_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread on the small tensors of everything but the kernels' own tests.

    There a second brings nothing, and beside other work its barriers cost a hundred times more.
    """
    if "kernels" in request.path.parts:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
