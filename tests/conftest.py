"""What all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is loaded: a thread of OpenMP's that waits for another sleeps at once. Where more
# threads want to run than there are cores, spinning costs several times what is computed.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Behind a shell's & Ctrl-C is ignored, by what the tests start, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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


# The files that take longest, in descending order: three quarters to an eighth of a minute each.
LONGEST = (
    "gates/test_triton_aot.py",
    "gates/test_triton_interpreter.py",
    "hfcore/test_rnn.py",
    "hfcore/test_device_cg.py",
    "hfcore/test_module_curvature.py",
    "hfcore/test_checkpoint.py",
    "hfcore/test_reproduce.py",
    "gates/test_emulation.py",
    "hfcore/test_reproduce_autoencoders.py",
    "hfcore/test_reproduce_ablation.py",
    "hfcore/test_examples.py",
    "gates/test_cuda_path.py",
    "gates/test_emulation_dense.py",
    "hfcore/test_hessian_free.py",
    "hfcore/distributed/test_document_of_ranks.py",
    "bench/test_gpu_bench.py",
    "hfcore/test_reproduce_command.py",
    "hfcore/distributed/test_training_of_ranks.py",
    "kernels/test_isa.py",
    "gates/test_emulation_tensor.py",
    "hfcore/distributed/test_sweeps_by_executors.py",
    "hfcore/distributed/test_sums_over_ranks.py",
    "hfcore/test_step_interrupt.py",
    "package/test_documents.py",
    "hfcore/distributed/test_steps_of_ranks.py",
    "kernels/test_recurrence.py",
    "hfcore/test_training.py",
    "kernels/test_loss.py",
    "kernels/test_net.py",
    "fuzz/test_fuzz_api_quick.py",
    "gates/test_nvcc.py",
    "package/test_gallery.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin, so that no process is left alone with one at the end."""
    here, place = Path(__file__).parent, {name: i for i, name in enumerate(LONGEST)}

    def rank(item: pytest.Item) -> int:
        inside = item.path.is_relative_to(here)
        return place.get(item.path.relative_to(here).as_posix() if inside else "", len(place))

    items.sort(key=rank)
